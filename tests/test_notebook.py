"""The notebook, cell by cell."""

import json

import matplotlib as mpl
import pytest
from doc_pages import ROOT
from transformers import AutoModelForSequenceClassification

from lit_spectral import tiny

NOTEBOOK = ROOT / "examples" / "first_adapter.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def test_it_keeps_no_outputs():
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in CELLS)


@pytest.mark.slow
def test_it_runs_from_its_first_cell_to_its_last(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tiny, "STEPS", 8)
    names = {}
    mpl.use("agg")
    for number, cell in enumerate(CELLS):
        if cell["cell_type"] == "code":
            source = "".join(cell["source"]).replace("STEPS = 300", "STEPS = 8")
            exec(compile(source, f"cell {number}", "exec"), names)
    assert names["STEPS"] == 8
    assert names["norms"]["spectral_norm/max"].iloc[-1] > 0
    assert names["curves"].filter(like="base_accuracy").notna().to_numpy().any()
    whole = AutoModelForSequenceClassification.from_pretrained("runs/whole")
    assert whole.config.id2label[0] == "network"
