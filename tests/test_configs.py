"""The shipped YAMLs: as the papers' table says, and each of them instantiates, with no file or network."""

import csv
import importlib.util
from pathlib import Path

import pytest
import yaml
from crossing import crossed

from lit_spectral.lightning_cli import SpectralCLI

CONFIGS = Path(__file__).parents[1] / "configs"
ALL = sorted(path.name for path in CONFIGS.glob("*.yaml"))
SCALES = [name for name in ALL if name.startswith("scale_")]  # that go over another config
PROTOCOLS = [name for name in ALL if name.startswith("protocol_")]  # of others' comparisons, each by itself
EDITS = [name for name in ALL if name.startswith("edit_")]  # for studies of edits (test_edit.py, test_edits_data.py)
OWN = [name for name in ALL if name.startswith("own_")]  # for data of one's own (test_own_data.py)
NAMES = [name for name in ALL if name not in SCALES]


def structure(settings):
    """Sections, names of settings, classes and kinds of values: what a config is, but for the values."""
    if isinstance(settings, dict):
        return tuple((key, value if key == "class_path" else structure(value)) for key, value in settings.items())
    if isinstance(settings, list):
        return tuple(map(structure, settings))
    return type(settings)


# The first of each structure is instantiated on every run, and those of README; others differ from it by values, which
# are those of the tables.
FIRST = {structure(yaml.safe_load((CONFIGS / name).read_text())): name for name in reversed(NAMES)}
README = (CONFIGS.parent / "README.md").read_text(encoding="utf-8")
EACH = [
    pytest.param(name, marks=[] if name in FIRST.values() or name in README else pytest.mark.slow) for name in NAMES
]


@pytest.fixture(scope="module")
def write():
    spec = importlib.util.spec_from_file_location("write", CONFIGS / "write.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_files_are_those_that_the_table_gives(write):
    rendered = write.render()
    assert {name: (CONFIGS / name).read_text() for name in rendered} == rendered
    assert set(NAMES) - set(rendered) == {"quickstart.yaml", *PROTOCOLS, *EDITS, *OWN}


def test_the_table_has_every_row_of_the_papers_tables():
    with (CONFIGS / "papers.csv").open() as file:
        rows = list(csv.DictReader(file))
    tables = {table: [r["task"] for r in rows if r["source"] == table] for table in {r["source"] for r in rows}}
    glue = ["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb"]
    squad = ["squad1"] * 4 + ["squad2"] * 4
    assert tables == dict.fromkeys(["FCLoRA Table 8", "FCLoRA Table 9", "FCLoRA Table 10", "HiLoRA Table 5"], glue) | {
        "FCLoRA Table 13": squad,
        "HiLoRA Table 7": squad,
        "FCLoRA App. K": ["cola", "mrpc", "qnli", "rte", "sst2", "stsb"],  # Table 6's columns
    }


@pytest.mark.parametrize(
    ("source", "task", "expected"),
    [  # read off the papers again, a few of every table
        ("FCLoRA Table 8", "mrpc", "8,4e-4,16,30,q2,1e-2,singular"),
        ("FCLoRA Table 8", "sst2", "8,5e-4,32,24,q4,1e-1,zero"),
        ("FCLoRA Table 8", "qqp", "8,5e-4,32,5,q1,1e-3,zero"),
        ("FCLoRA Table 9", "stsb", "8,2.2e-3,32,25,q2,5e-1,zero"),
        ("FCLoRA Table 9", "rte", "8,1.2e-3,32,50,q3,1e-1,zero"),
        ("FCLoRA Table 10", "cola", "2,8e-4,32,25,q4,1.1e-1,zero"),
        ("FCLoRA Table 10", "qnli", "2,7e-4,32,5,q3,1e-1,zero"),
        ("HiLoRA Table 5", "qnli", "8,4e-4,32,5,q2,1e-2,singular"),
        ("HiLoRA Table 5", "stsb", "8,4e-4,32,25,q3,1e-1,zero"),
        ("FCLoRA Table 13", "squad1", "4,1e-3,16,10,q2,1e-2,zero"),
        ("FCLoRA Table 13", "squad2", "8,3e-3,16,12,q3,5e-1,zero"),
        ("HiLoRA Table 7", "squad1", "8,1e-3,16,10,q2,5e-1,zero"),
        ("HiLoRA Table 7", "squad2", "4,1e-3,16,12,q2,1e-1,singular"),
    ],
)
def test_rows_are_as_printed(source, task, expected):
    with (CONFIGS / "papers.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if (row["source"], row["task"]) == (source, task)]
    found = [",".join(list(row.values())[4:11]) for row in rows]
    assert expected in found
    assert len({row["rank"] for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("name", "experiment"), crossed(SCALES, ["hira_llama3_gsm8k.yaml", "hiplora_llama31_code.yaml"])
)
def test_a_scale_changes_how_an_experiment_runs_and_not_what_it_is(name, experiment, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    here = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.strategy=auto"]
    alone = SpectralCLI([f"--config={CONFIGS / experiment}", *here], run=False)
    cli = SpectralCLI([f"--config={CONFIGS / experiment}", f"--config={CONFIGS / name}", *here], run=False)
    scale = yaml.safe_load((CONFIGS / name).read_text())
    assert cli.model.method == alone.model.method
    assert (cli.model.backbone, cli.datamodule.max_length) == (alone.model.backbone, alone.datamodule.max_length)
    assert cli.trainer.max_epochs == alone.trainer.max_epochs
    assert cli.model.loading.dtype == "bfloat16"
    assert cli.model.gradient_checkpointing
    assert cli.model.loading.quantization == scale["model"]["init_args"].get("quantization")
    processes = scale["trainer"]["devices"] * scale["trainer"].get("num_nodes", 1)
    assert cli.datamodule.batch_size * cli.trainer.accumulate_grad_batches * processes == 32


@pytest.mark.parametrize("name", EACH)
@pytest.mark.slow
def test_a_config_instantiates_with_the_settings_it_names(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    cli = SpectralCLI([f"--config={CONFIGS / name}", "--trainer.accelerator=cpu"], run=False)
    settings = yaml.safe_load((CONFIGS / name).read_text())
    wanted = settings["model"]["init_args"]["method"]
    assert type(cli.model.method).__name__ == wanted["class_path"]
    for key, value in wanted["init_args"].items():
        assert getattr(cli.model.method, key) == value
    assert cli.trainer.max_epochs == settings["trainer"]["max_epochs"]
    assert cli.datamodule.batch_size == settings["data"]["init_args"]["batch_size"]


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_a_config_of_the_results_instantiates(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    file = CONFIGS.parent / "docs" / "results" / f"{name}.yaml"
    cli = SpectralCLI([f"--config={file}", "--trainer.accelerator=cpu"], run=False)
    assert type(cli.model.method).__name__ == "LoRA"


@pytest.mark.parametrize(
    ("name", "method", "lr", "batch", "maps"),
    [  # read off the papers again
        ("milora_llama2_gsm8k", {"rank": 64, "alpha": 64, "dropout": 0.05}, 3e-4, 16, 5),
        ("milora_llama2_gsm8k_pissa_setup", {"alpha": 64, "dropout": 0.0}, 2e-5, 128, 7),
        ("lora_llama3_commonsense", {"rank": 32, "alpha": 64, "dropout": 0.05}, 3e-4, 16, 5),
        ("hira_llama3_commonsense", {"rank": 32}, 2e-4, 32, 5),
        ("fclora_llama2_commonsense", {"rank": 32, "sigma_bar": "q4", "gamma": 1e-2, "start": "zero"}, 3e-4, 16, 5),
        ("fclora_llama_commonsense", {"sigma_bar": "q2", "gamma": 0.5}, 2e-4, 16, 5),
        ("hira_llama3_convai2", {"rank": 32}, 2e-4, 32, 5),
        ("hira_llama3_gsm8k", {"rank": 32}, 2e-4, 32, 5),
        ("milora_llama2_ultrafeedback", {"rank": 32, "alpha": 32, "dropout": 0.05}, 3e-4, 16, 5),
        ("lora_llama2_ultrafeedback", {"rank": 32, "alpha": 64}, 3e-4, 16, 5),
        ("hiplora_llama31_gsm8k", {"rank": 16, "principal_rank": 32, "dropout": 0.05}, 2e-4, 128, 4),
        ("hiplora_llama31_code", {"rank": 16, "principal_rank": 32, "dropout": 0.05}, 2e-4, 128, 4),
        ("lora_llama31_scienceqa", {"rank": 16, "dropout": 0.05}, 2e-4, 128, 4),
    ],
)
def test_decoders_are_as_printed(name, method, lr, batch, maps):
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    model, trainer = config["model"]["init_args"], config["trainer"]
    settings = model["method"]["init_args"]
    assert {key: settings[key] for key in method} == method
    assert model["optimizer"]["init_args"]["lr"] == lr
    assert config["data"]["init_args"]["batch_size"] * trainer["accumulate_grad_batches"] == batch
    assert len(settings["target_modules"]) == maps


def test_instructions_are_generated_as_milora_says():
    """Section 4.3: 768 tokens, greedy, up to 2048 new ones, repetition penalty 1.1, no repeated 5-grams."""
    data = yaml.safe_load((CONFIGS / "milora_llama2_ultrafeedback.yaml").read_text())["data"]["init_args"]
    generation = {"repetition_penalty": 1.1, "no_repeat_ngram_size": 5}
    assert (data["max_length"], data["max_new_tokens"], data["generation"]) == (768, 2048, generation)


def test_fourierft_s_set_up_adapts_query_and_value():
    settings = yaml.safe_load((CONFIGS / "fclora_roberta_mrpc_qv.yaml").read_text())["model"]["init_args"]["method"]
    assert settings["init_args"]["target_modules"] == ["query", "value"]
