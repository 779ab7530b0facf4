"""What speed rests on, counted and not timed; and the benchmark command itself."""

import codecs
import json
import locale
import sys

import pytest
import torch
import transformers
from torch import nn

from benchmarks import __main__ as command
from benchmarks.measure import counts
from lit_spectral.adapters import LowRankAdapter, adapters, named_changes
from lit_spectral.adapters.stacking import spectral_norms
from lit_spectral.methods import FCLoRA, HiPLoRA, HiRA, LoRA, PiSSA

METHODS = {
    "LoRA": LoRA(rank=4),
    "FCLoRA": FCLoRA(rank=4, principal_rank=6),
    "HiPLoRA": HiPLoRA(rank=4, principal_rank=6),
    "PiSSA": PiSSA(rank=4),
    "HiRA": HiRA(rank=4),
}


def llama(method):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(config)
    method.apply(model, model.base_model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    return model.train()


def gradients(model):
    tokens = torch.arange(24).reshape(2, 12)
    model(tokens, labels=tokens, use_cache=False).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_gradient_checkpointing_gives_the_same_gradients(method):
    model = llama(method)
    expected = {name: gradient.clone() for name, gradient in gradients(model).items()}
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    found = gradients(model)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


@pytest.mark.skipif(
    codecs.lookup(locale.getpreferredencoding(False)).name == "ascii",
    reason="torch's compiler has files that are not ASCII, which it reads as the locale has it",
)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bf16"])
def test_adapters_compile_as_one_graph(method, autocast):
    """With eager's own kernels behind it: whether the graph breaks is the question."""
    torch._dynamo.reset()
    layer = adapters(llama(method))[0]
    x = torch.randn(2, 5, 16, requires_grad=True)
    trained = [x, *(p for p in layer.parameters() if p.requires_grad)]
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected, found = layer(x), compiled(x)
    torch.testing.assert_close(found, expected)
    wanted = torch.autograd.grad(expected.float().square().sum(), trained)
    torch.testing.assert_close(torch.autograd.grad(found.float().square().sum(), trained), wanted)


def test_the_low_rank_forward_keeps_the_input_once_and_nothing_else_as_wide():
    adapter = LowRankAdapter(nn.Linear(64, 64), rank=2, scale=2.0)
    x = torch.randn(32, 64, requires_grad=True)
    figures = counts(adapter, lambda: adapter(x).sum(), lambda: adapter(x).sum().backward())
    wide, narrow = 32 * 64 * 4, (2 * 64 + 2 * 32) * 4  # Lᵀ, and what is 2 wide
    assert figures["saved bytes"] == wide + narrow
    # Two dense products, and three thin ones each way round.
    assert figures["FLOPs"] == 2 * 2 * 32 * 64 * 64 + 6 * 2 * 32 * 64 * 2


@pytest.mark.parametrize("method", [LoRA(rank=4), FCLoRA(rank=4), HiPLoRA(rank=4, principal_rank=6), PiSSA(rank=4)])
def test_the_monitors_norms_are_those_of_the_dense_changes(method):
    changes = list(named_changes(llama(method)).values())
    expected = torch.stack([torch.linalg.matrix_norm(change.delta_weight().double(), 2) for change in changes])
    if isinstance(method, HiPLoRA):  # whose channels are orthogonal after a step only
        for change in changes:
            change.left.data -= change.u_basis @ (change.u_basis.T @ change.left.data)
            change.right.data -= change.right.data @ change.v_basis @ change.v_basis.T
        expected = torch.stack([torch.linalg.matrix_norm(change.delta_weight().double(), 2) for change in changes])
    torch.testing.assert_close(spectral_norms(changes), expected, rtol=2e-6, atol=0)


@pytest.mark.slow
def test_the_benchmark_prints_ratios_beside_their_aims_and_writes_them(tmp_path, monkeypatch, capsys):
    path = tmp_path / "found.json"
    flags = ["--sizes", "tiny", "--dtypes", "bfloat16", "--rounds", "1", "--json", str(path)]
    rows = ["--rows", *(row for row in command.ROWS if row not in {"help", "start"})]
    monkeypatch.setattr(sys, "argv", ["benchmarks", *flags, *rows])
    command.main()
    assert "| tiny-encoder bfloat16 | LoRA, step | peft LoRA |" in capsys.readouterr().out
    lines = json.loads(path.read_text())["lines"]
    found = {(line["where"], line["what"], line["against"]): line["median"] for line in lines if "what" in line}
    assert found["tiny-decoder bfloat16", "HiRA, saved bytes", "peft HiRA"] <= 0.5
    assert found["tiny-decoder bfloat16", "LoRA, operations outside the backbone", "peft LoRA"] < 0.7
