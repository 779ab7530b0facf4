import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.large_run import SLAB, Widened
from benchmarks.large_weights import SHAPES, parse, write


def test_a_written_folder_is_a_llama_of_its_shape(tmp_path):
    shape = parse("24,40,2,3,1,50")
    write(tmp_path, shape)
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[keys] for keys in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.model.layers[1].self_attn.k_proj.weight.shape == (8, 24)
    loss = model(**dict.fromkeys(("input_ids", "labels"), torch.arange(12).unsqueeze(0))).loss
    assert torch.isfinite(loss)


def test_a_folder_is_written_once_and_again_for_another_shape(tmp_path):
    write(tmp_path, SHAPES["tiny"])
    before = (tmp_path / "model-00002-of-00005.safetensors").stat().st_mtime_ns
    write(tmp_path, SHAPES["tiny"])
    assert (tmp_path / "model-00002-of-00005.safetensors").stat().st_mtime_ns == before
    write(tmp_path, SHAPES["tiny"]._replace(hidden=32))
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["hidden_size"] == 32
    assert (tmp_path / "model-00002-of-00005.safetensors").stat().st_mtime_ns != before


@pytest.mark.parametrize("text", ["9b", "1,2,3", "64,160,0,4,2,128"])
def test_another_shape_is_refused(text):
    with pytest.raises(ValueError, match="a shape is one of 8b, 7b-width, 1b, tiny, or hidden,"):
        parse(text)


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).bfloat16()


@pytest.mark.parametrize("slab", [SLAB, 400])
def test_products_widened_are_those_of_float32_rounded(slab, monkeypatch):
    monkeypatch.setattr("benchmarks.large_run.SLAB", slab)
    x, weight, bias = drawn(6, 20), drawn(30, 20), drawn(30)
    exact = x.float() @ weight.float().T
    with Widened():
        plain = torch.nn.functional.linear(x, weight)
        shifted = torch.nn.functional.linear(x, weight, bias)
        added = drawn(6, 30)
        result = added.addmm_(x, weight.T)
        stacked = torch.bmm(x[None].expand(2, -1, -1), weight.T[None].expand(2, -1, -1))
    assert result is added
    close = {"rtol": 0.01, "atol": 0.02}
    torch.testing.assert_close(plain.float(), exact, **close)
    torch.testing.assert_close(stacked.float(), exact.expand(2, -1, -1), **close)
    torch.testing.assert_close(shifted.float(), exact + bias.float(), **close)
    torch.testing.assert_close(added.float(), exact + drawn(6, 30).float(), **close)


def test_gradients_flow_through_widened_products():
    x, weight = drawn(6, 20).requires_grad_(), drawn(30, 20)
    with Widened():
        torch.nn.functional.linear(x, weight).sum().backward()
    torch.testing.assert_close(x.grad.float(), weight.float().sum(0).expand(6, -1), rtol=0.01, atol=0.05)
