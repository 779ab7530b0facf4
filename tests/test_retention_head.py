"""A masked-language head that is fitted once and kept, and how figures of retention are told."""

import pytest
import torch
from conftest import another_user
from transformers import DebertaV2Config, DebertaV2ForMaskedLM

from lit_spectral.retention import head
from lit_spectral.retention.measures import told
from lit_spectral.tensor_files import kept


@pytest.mark.parametrize("content", [None, b"damaged"])
def test_a_head_that_is_not_there_whole_is_fitted_and_kept(tmp_path, content):
    file, fitted = tmp_path / "x.safetensors", {"bias": torch.arange(3.0)}
    if content is not None:
        file.write_bytes(content)
    assert torch.equal(kept(file, lambda: fitted, "x")["bias"], torch.arange(3.0))
    assert torch.equal(kept(file, None, "x")["bias"], torch.arange(3.0))


def test_a_head_that_can_not_be_read_is_fitted_and_left_as_it_is(shared_folder, caplog):
    file = shared_folder / "x.safetensors"
    file.write_bytes(b"another user's")
    file.chmod(0)
    shared_folder.chmod(0o777)
    with another_user():
        assert kept(file, lambda: {"bias": torch.ones(1)}, "retention: the head") == {"bias": torch.ones(1)}
    file.chmod(0o644)
    assert file.read_bytes() == b"another user's"
    (line,) = caplog.messages
    assert line.startswith(f"retention: the head can't be kept in {shared_folder} ([Errno 13] Permission denied")


def test_a_head_is_fitted_where_nothing_may_be_written(read_only_folder, caplog):
    assert kept(read_only_folder / "x", lambda: {"bias": torch.ones(1)}, "retention: the head") == {
        "bias": torch.ones(1)
    }
    (line,) = caplog.messages
    assert line.startswith(f"retention: the head can't be kept in {read_only_folder} (")


def test_a_head_may_read_the_encoders_embeddings():
    """DeBERTa's does, where it is the one that was pretrained (legacy: false)."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = DebertaV2ForMaskedLM(DebertaV2Config(vocab_size=50, legacy=False, **sizes)).eval()
    inputs = {"input_ids": torch.arange(5, 17).view(2, 6), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    scored = torch.tensor([[True, False] * 3, [False, True] * 3])
    with torch.no_grad():
        expected = model(**inputs).logits[scored]
        found = head.masked_logits(model, model.deberta, inputs, scored)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("value", "sign", "said"), [(0.0123456, "", "0.0123"), (1.65e-5, "+", "+1.7e-05"), (0.0, "", "0.0000")]
)
def test_small_figures_have_digits_too(value, sign, said):
    assert told(value, sign) == said
