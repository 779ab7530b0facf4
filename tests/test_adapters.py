import pytest
import torch
import transformers
from torch import nn

from lit_spectral import adapters as ad
from lit_spectral.errors import InputError
from lit_spectral.methods import (
    SORSA,
    BitFit,
    EBLoRA,
    FCLoRA,
    FullFineTuning,
    HiLoRA,
    HiPLoRA,
    HiRA,
    HiRALoRA,
    LoRA,
    LoRAPlus,
    MiLoRA,
    MoRA,
    PiSSA,
    ProjLoRA,
    RandomSVDLoRA,
    RsLoRA,
    StelLA,
)

ADDITIVE = {
    "LoRA": LoRA(rank=4),
    "LoRA with alpha": LoRA(rank=4, alpha=16),
    "LoRA in a ball": LoRA(rank=4, ball="q2"),
    "RsLoRA": RsLoRA(rank=4),
    "FCLoRA singular": FCLoRA(rank=4, start="singular"),
    "FCLoRA zero": FCLoRA(rank=4, start="zero"),
    "FCLoRA in a ball": FCLoRA(rank=4, ball="q1"),
    "LoRA_SVD": FCLoRA(rank=4, start="zero", sigma="free"),
    "LoRA_UVT": FCLoRA(rank=4, start="zero", sigma="fixed"),
    "HiLoRA": HiLoRA(rank=4),
    "LoRAPlus": LoRAPlus(rank=4),
    "PiSSA": PiSSA(rank=4),
    "PiSSA with alpha": PiSSA(rank=4, alpha=16),
    "MiLoRA": MiLoRA(rank=4),
    "RandomSVDLoRA": RandomSVDLoRA(rank=4),
    "PiSSA in a ball": PiSSA(rank=4, ball="q1"),
    "SORSA": SORSA(rank=4),
    "FCLoRA by Gram-Schmidt": FCLoRA(rank=4, orthogonality="gram-schmidt", principal_rank=6),
    "StelLA": StelLA(rank=4, alpha=8),
    "EBLoRA": EBLoRA(rank=4, alpha=8),
    "HiRA": HiRA(rank=4),
    "HiRA uniform": HiRA(rank=4, reference="uniform"),
    "HiRA truncated": HiRA(rank=4, reference="truncated", reference_rank=3),
    "HiRA neighbours": HiRA(rank=4, reference="neighbours"),
    "HiRALoRA": HiRALoRA(rank=4, lora_rank=3, alpha=6),
    "ProjLoRA": ProjLoRA(rank=4, principal_rank=5),
    "HiPLoRA": HiPLoRA(rank=4, principal_rank=5, alpha=8),
    "HiPLoRA without budget": HiPLoRA(rank=4, principal_rank=5, budget=0),
    "HiPLoRA without projection": HiPLoRA(rank=4, principal_rank=5, project=False),
    "MoRA": MoRA(rank=3),
    "FullFineTuning": FullFineTuning(),
}


def bert():
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(config).eval()


def gpt2():
    torch.manual_seed(0)
    return transformers.GPT2Model(transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2)).eval()


def perturb(model):
    """A change of every trainable tensor, as training would make."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.rand(parameter.shape, generator=generator)


TOKENS = torch.arange(12).reshape(2, 6)


@pytest.mark.parametrize("method", ADDITIVE.values(), ids=ADDITIVE)
def test_the_change_is_exactly_zero_at_the_start(method):
    model = bert()
    expected = model(TOKENS).logits
    method.apply(model, model.base_model)
    assert torch.equal(model(TOKENS).logits, expected)
    assert all(adapter.delta_weight().abs().max() == 0 for adapter in ad.adapters(model))


@pytest.mark.parametrize("make", [bert, gpt2])
@pytest.mark.parametrize("method", ADDITIVE.values(), ids=ADDITIVE)
def test_the_folded_model_is_the_adapted_model(method, make):
    model = make()
    method.apply(model, model.base_model)
    perturb(model)
    adapted = model(TOKENS)[0]
    ad.fold(model)
    torch.testing.assert_close(model(TOKENS)[0], adapted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ADDITIVE.values(), ids=ADDITIVE)
def test_folding_writes_the_sum_rounded_once_and_unfolding_restores_every_bit(method):
    model = bert()
    method.apply(model, model.base_model)
    perturb(model)
    attached = ad.adapters(model)
    before = [adapter.weight.clone() for adapter in attached]
    delta = [adapter.delta_weight() for adapter in attached]
    ad.fold(model)
    if not isinstance(method, FullFineTuning):
        assert all(torch.equal(a.weight, w + d) for a, w, d in zip(attached, before, delta, strict=True))
    ad.fold(model)  # a second time adds nothing
    ad.unfold(model)
    assert all(torch.equal(a.weight, w) for a, w in zip(attached, before, strict=True))


@pytest.mark.parametrize("method", ADDITIVE.values(), ids=ADDITIVE)
def test_detaching_gives_the_backbone_back(method):
    model = bert()
    names = [name for name, _ in model.named_parameters()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    method.apply(model, model.base_model)
    if not isinstance(method, FullFineTuning):
        perturb_adapters_only(model)
    ad.detach(model)
    assert [name for name, _ in model.named_parameters()] == names
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def perturb_adapters_only(model):
    for adapter in ad.adapters(model):
        perturb(adapter)


def test_detaching_while_folded_leaves_the_change_in_the_weights():
    model = bert()
    LoRA(rank=4).apply(model, model.base_model)
    perturb(model)
    adapted = model(TOKENS).logits
    ad.fold(model)
    ad.detach(model)
    torch.testing.assert_close(model(TOKENS).logits, adapted, rtol=1e-4, atol=1e-5)


def test_dropout_acts_on_the_adapter_alone_and_only_in_training():
    layer = nn.Linear(16, 8)
    adapter = ad.LowRankAdapter(layer, rank=4, scale=1.0, dropout=0.5)
    perturb(adapter)
    x = torch.randn(3, 16)
    torch.testing.assert_close(adapter.eval()(x), layer(x) + x @ adapter.delta_weight().T)
    adapter.train()
    assert not torch.equal(adapter(x), adapter(x))
    with torch.no_grad():
        adapter.left.zero_()
    torch.testing.assert_close(adapter(x), layer(x))


def test_factors_stay_float32_and_nothing_is_cast_up_under_autocast():
    adapter = ad.LowRankAdapter(nn.Linear(16, 8), rank=4, scale=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        out = adapter(torch.randn(3, 16))
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert adapter.left.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (bert, {"query": 2, "key": 2, "value": 2, "dense": 6}),
        (gpt2, {"c_attn": 2, "c_proj": 4, "c_fc": 2}),
    ],
)
def test_default_targets_are_the_linear_maps_of_the_blocks(make, expected):
    found = [name.rsplit(".", 1)[-1] for name in ad.find_targets(make(), None)]
    assert {ending: found.count(ending) for ending in found} == expected


def test_llama_adapts_what_the_papers_adapt():
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    found = ad.find_targets(transformers.LlamaForCausalLM(config), None)
    assert {name.rsplit(".", 1)[-1] for name in found} == {"q_proj", "k_proj", "v_proj", "up_proj", "down_proj"}


def test_targets_by_ending_and_by_regular_expression():
    model = bert()
    assert len(ad.find_targets(model, ["query", "attention.output.dense"])) == 4
    assert list(ad.find_targets(model, r".*layer\.1\..*query")) == ["bert.encoder.layer.1.attention.self.query"]


@pytest.mark.parametrize("target", [["query", "quary"], "quary"])
def test_a_target_that_matches_nothing_lists_what_there_is(target):
    with pytest.raises(InputError, match=r"quary.*matches nothing.*query \(2\)"):
        ad.find_targets(bert(), target)


def test_a_target_that_is_not_linear_is_refused():
    with pytest.raises(InputError, match="LayerNorm"):
        ad.find_targets(bert(), ["LayerNorm"])


def test_a_tied_weight_is_refused():
    config = transformers.BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(InputError, match="tied"):
        ad.find_targets(transformers.BertForMaskedLM(config), ["predictions.decoder"])


def test_attaching_twice_is_refused_and_changes_nothing():
    model = bert()
    LoRA(rank=4).apply(model, model.base_model)
    keys = list(model.state_dict())
    with pytest.raises(InputError, match=r"matches nothing|adapter already"):
        LoRA(rank=4, target_modules=["query"]).apply(model, model.base_model)
    assert list(model.state_dict()) == keys


def test_a_rank_above_the_matrix_names_the_module_and_attaches_nothing():
    model = bert()
    keys = list(model.state_dict())
    with pytest.raises(InputError, match=r"query: rank 17 is above .* 16 x 16"):
        LoRA(rank=17).apply(model, model.base_model)
    with pytest.raises(InputError, match=r"query: rank \+ offset = 17 is above .* 16 x 16"):
        PiSSA(rank=4, offset=13).apply(model, model.base_model)
    assert list(model.state_dict()) == keys


def test_scales_of_lora_and_rslora():
    assert LoRA(rank=4, alpha=16).scale == 4
    assert RsLoRA(rank=4, alpha=16).scale == 8
    assert LoRA(rank=4).scale == 1


@pytest.mark.parametrize(
    ("method", "indices"),
    [
        (PiSSA(rank=4), range(4)),
        (PiSSA(rank=4, alpha=16), range(4)),
        (PiSSA(rank=4, offset=3), range(3, 7)),
        (MiLoRA(rank=4), range(12, 16)),
        (MiLoRA(rank=4, alpha=16, offset=3), range(9, 13)),
        (SORSA(rank=4), range(4)),
        (SORSA(rank=4, offset=12), range(12, 16)),
    ],
)
def test_the_start_is_the_named_part_of_the_weight(method, indices):
    model = bert()
    method.apply(model, model.base_model)
    for adapter in ad.adapters(model):
        u, s, v = torch.linalg.svd(adapter.weight.detach().double(), full_matrices=False)
        expected = sum(s[i] * torch.outer(u[:, i], v[i]) for i in indices)
        found = adapter.scale * adapter.left_start.double() @ adapter.right_start.double()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("make", [bert, gpt2])
@pytest.mark.parametrize("method", ADDITIVE.values(), ids=ADDITIVE)
def test_products_with_vectors_are_those_of_the_dense_change(method, make):
    model = make()
    method.apply(model, model.base_model)
    perturb(model)
    for adapter in ad.adapters(model):
        v, u = torch.randn(adapter.in_features), torch.randn(adapter.out_features)
        torch.testing.assert_close(adapter.times(v), adapter.delta_weight() @ v, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(adapter.transposed_times(u), adapter.delta_weight().T @ u, rtol=1e-4, atol=1e-5)


def test_packed_tensors_are_the_same_and_lie_in_one_memory_unless_they_are_large():
    large = torch.zeros(2**20 + 1)
    state = {"a": torch.randn(3, 4).mT, "b": nn.Parameter(torch.randn(5)), "c": torch.arange(6), "large": large}
    found = ad.packed(state)
    assert list(found) == list(state)
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    assert found["a"].untyped_storage().data_ptr() == found["b"].untyped_storage().data_ptr()
    assert found["large"] is large


def test_lora_plus_declares_the_rate_of_its_left_factor():
    model = bert()
    LoRAPlus(rank=4, lr_ratio=8).apply(model, model.base_model)
    assert all(adapter.lr_ratios == {"left": 8} for adapter in ad.adapters(model))


def test_bitfit_trains_the_biases_of_the_blocks_only():
    model = bert()
    BitFit().apply(model, model.base_model)
    trained = [name for name, p in model.base_model.named_parameters() if p.requires_grad]
    assert trained
    assert all(name.endswith("bias") and "pooler" not in name for name in trained)


def test_full_fine_tuning_trains_everything():
    model = bert()
    FullFineTuning().apply(model, model.base_model)
    assert all(p.requires_grad for p in model.base_model.parameters())


@pytest.mark.parametrize(("sigma_bar", "quantile"), [("q1", 0.25), ("q4", 1.0), ({"quantile": 0.6}, 0.6)])
def test_sigma_bar_is_a_quantile_of_each_weights_own_singular_values(sigma_bar, quantile):
    model = bert()
    FCLoRA(rank=4, sigma_bar=sigma_bar).apply(model, model.base_model)
    for adapter in ad.adapters(model):
        values = torch.linalg.svdvals(adapter.weight.detach().double())
        assert adapter.sigma_bar == pytest.approx(float(torch.quantile(values, quantile)), rel=1e-5)
