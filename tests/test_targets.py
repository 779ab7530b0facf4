"""What is a linear map, and which of them are adapted by default."""

import copy
import logging
import re
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from zoo.models import make

from lit_spectral import adapters as ad
from lit_spectral.adapters.linear import is_linear, is_plain_and_frozen
from lit_spectral.errors import InputError
from lit_spectral.methods import FCLoRA, HiRA, LoRA, Peft
from lit_spectral.tasks.fit_check import check_gradients


class Codes(nn.Linear):
    """Weights as integers, whose scale lies elsewhere, as bitsandbytes' int8 maps have them."""

    def __init__(self, out_features=8, in_features=8):
        super().__init__(in_features, out_features)
        scale = self.weight.detach().abs().max() / 127
        self.scale = scale
        self.weight = nn.Parameter((self.weight.detach() / scale).round().to(torch.int8), requires_grad=False)

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


class Scaled(nn.Linear):
    """Floats that are codes: the scale lies elsewhere."""

    def forward(self, x):
        return F.linear(x, self.weight, self.bias) * 3


class Rounding(nn.Linear):
    """Rounds what it is given, as maps do that quantise at every call."""

    def forward(self, x):
        return F.linear((x * 8).round() / 8, self.weight, self.bias)


class Lying(nn.Linear):
    """W x + b, written by hand."""

    def forward(self, x):
        return x @ self.weight.mT + self.bias


def eight_bit_float():
    layer = nn.Linear(8, 8)
    layer.weight = nn.Parameter(layer.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    return layer


def replaced():
    layer = nn.Linear(8, 8)
    layer.forward = lambda x: 2 * F.linear(x, layer.weight, layer.bias)
    return layer


class TensorOfCodes(torch.Tensor):
    pass


def subclassed():
    layer = nn.Linear(8, 8)
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(TensorOfCodes), requires_grad=False)
    return layer


NOT_LINEAR = {
    "integers for weights": Codes,
    "a scale elsewhere": lambda: Scaled(8, 8),
    "a rounded input": lambda: Rounding(8, 8),
    "floats of 8 bits": eight_bit_float,
    "a forward put on the module": replaced,
    "a weight of another tensor class": subclassed,
    "a weight that is computed": lambda: parametrizations.weight_norm(nn.Linear(8, 8)),
}


@pytest.mark.parametrize("layer", NOT_LINEAR.values(), ids=NOT_LINEAR)
def test_what_does_not_compute_wx_from_its_own_floats_is_no_linear_map(layer):
    assert not is_linear(layer())


@pytest.mark.parametrize("layer", [nn.Linear(4, 3), Lying(4, 3), nn.Linear(4, 3, bias=False).to(torch.bfloat16)])
def test_what_does_is_one(layer):
    assert is_linear(layer)


def test_a_conv1d_of_ones_own_is_not_gpt2s():
    class Conv1D(nn.Conv1d):
        pass

    assert not is_linear(Conv1D(4, 4, 3))


@pytest.mark.parametrize("kind", [Codes, Scaled, Rounding])
@pytest.mark.parametrize("targets", [None, ["q_proj"]])
@pytest.mark.parametrize("method", [LoRA(rank=2), FCLoRA(rank=2), HiRA(rank=2), Peft(config={"peft_type": "LORA"})],
                         ids=lambda method: type(method).__name__)  # fmt: skip
def test_such_a_map_is_refused_by_name_and_nothing_is_attached(kind, targets, method):
    model = make("Llama", "CausalLM")
    model.model.layers[1].self_attn.q_proj = kind(32, 32)
    before = list(model.state_dict())
    with pytest.raises(InputError, match=r"layers\.1\.self_attn\.q_proj.* does not compute W x \+ b"):
        replace(method, target_modules=targets).apply(model, model.base_model)
    assert list(model.state_dict()) == before


def test_a_hook_on_a_map_goes_on_acting_under_an_adapter():
    model = make("Llama", "CausalLM")
    layer, tokens = model.model.layers[0].self_attn.q_proj, torch.arange(6)[None]
    layer.register_forward_hook(lambda module, args, out: 2 * out)
    before = model(tokens).logits
    LoRA(rank=2).apply(model, model.base_model)
    assert not is_plain_and_frozen(layer)
    torch.testing.assert_close(model(tokens).logits, before)


def endings(model):
    return {name.rpartition(".")[2] for name in ad.find_targets(model.base_model, None)}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((n, "q_proj k_proj v_proj up_proj down_proj") for n in
          ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma 2", "Gemma 3", "Gemma 3, with vision", "SmolLM3",
           "OLMo 2", "Granite", "StableLM")),
        ("GLM", "q_proj k_proj v_proj gate_up_proj down_proj"),
        ("Phi-3", "qkv_proj gate_up_proj down_proj"),
        ("Mixtral", "q_proj k_proj v_proj"),
        ("GPT-OSS", "q_proj k_proj v_proj"),
        ("LFM2", "q_proj k_proj v_proj w3 w2 in_proj out_proj"),
        ("GPT-2", "c_attn c_proj c_fc"),
        ("Phi-2", "q_proj k_proj v_proj dense fc1 fc2"),
    ],
)  # fmt: skip
def test_like_decoders_have_like_defaults(name, expected):
    assert endings(make(name, "CausalLM")) == set(expected.split())


def test_a_decoder_under_another_name_has_the_same_defaults():
    model = make("Llama", "CausalLM")
    for module in model.modules():
        if hasattr(module, "config"):
            module.config.model_type = "mine"
    assert endings(model) == {"q_proj", "k_proj", "v_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Llama", [r"self_attn\.o_proj, mlp\.gate_proj \(gates and what closes attention, as in the papers\)"]),
        (
            "Mixtral",
            [r"mlp\.experts \(MixtralExperts: gate_up_proj, down_proj\)", r"mlp\.gate \(MixtralTopKRouter", "9%"],
        ),
        ("Qwen2-MoE", [r"mlp\.shared_expert_gate \(gates of one row\)", "Qwen2MoeExperts"]),
        ("Gemma 3, with vision", [r"self_attn\.out_proj, mlp\.fc1, mlp\.fc2 \(not used when text is read\)"]),
        ("XLNet", ["XLNetRelativeAttention: q, k, v, o"]),
    ],
)
def test_what_the_default_leaves_out_is_one_line(name, said, caplog):
    model = make(name, "CausalLM" if name != "XLNet" else "SequenceClassification")
    with caplog.at_level(logging.INFO, logger="lit_spectral"):
        LoRA().apply(model, model.base_model)
    (line,) = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert "\n" not in line
    for part in said:
        assert re.search(part, line)


def test_a_map_that_the_rank_does_not_fit_into_is_left_out_and_named(caplog):
    model = make("Llama", "CausalLM")  # keys and values of 16 rows
    with caplog.at_level(logging.INFO, logger="lit_spectral"):
        LoRA(rank=20).apply(model, model.base_model)
    assert {name.rpartition(".")[2] for name in ad.named_changes(model)} == {"q_proj", "up_proj", "down_proj"}
    assert "self_attn.k_proj, self_attn.v_proj (too small for this rank)" in caplog.text


def test_where_nothing_is_left_out_nothing_is_said(caplog):
    model = make("BERT", "SequenceClassification")
    with caplog.at_level(logging.INFO, logger="lit_spectral"):
        LoRA(rank=4).apply(model, model.base_model)
    assert not caplog.records


@pytest.mark.parametrize("method", [LoRA(rank=2, target_modules=["out_proj"]),
                                    Peft(config={"peft_type": "LORA"}, target_modules=["out_proj"])])  # fmt: skip
def test_a_map_that_text_does_not_reach_is_refused(method):
    model = make("Gemma 3, with vision", "CausalLM")
    with pytest.raises(InputError, match=r"vision_tower.*out_proj: the model reads text without this map"):
        method.apply(model, model.base_model)


def test_a_weight_that_is_read_past_its_module_counts_as_unused():
    model = make("Mamba", "CausalLM")
    with pytest.raises(InputError, match=r"dt_proj: the model reads text without this map"):
        LoRA(rank=1, target_modules=["dt_proj"]).apply(model, model.base_model)


def test_a_map_that_the_loss_does_not_reach_stops_the_run(train, backbone_folder):
    """Such as reading can't tell of: they are called, and what comes of it is cut off."""
    from lit_spectral.tasks import SequenceClassification

    class Dropping(SequenceClassification):
        def load_model(self, folder):
            model, missing = super().load_model(folder)
            model.bert.encoder.layer[0].register_forward_hook(lambda module, args, out: out.detach())
            return model, missing

    with pytest.raises(InputError, match=r"^6 adapters get no gradient.*layer\.0\.attention\.self\.query"):
        train(None, task=Dropping(backbone_folder("bert"), LoRA(rank=2), num_labels=2))


def test_a_change_of_peft_that_can_not_be_folded_stops_folding():
    import peft

    model = peft.get_peft_model(make("Llama", "CausalLM"), peft.LoraConfig(target_modules=["q_proj", "embed_tokens"]))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match=r"^fold: .*embed_tokens changes a Embedding, no linear map"):
        ad.fold(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


class FirstExpert(nn.Module):
    """Experts as modules of their own, of which these tokens need one."""

    def __init__(self, mlp):
        super().__init__()
        self.experts = nn.ModuleList([mlp, copy.deepcopy(mlp)])

    def forward(self, x):
        return self.experts[0](x)


def test_experts_that_a_text_does_not_need_are_adapted_like_those_that_it_does():
    model = make("Llama", "CausalLM")
    for layer in model.model.layers:
        layer.mlp = FirstExpert(layer.mlp)
    LoRA(rank=2).apply(model, model.base_model)
    inside = {name.partition("experts.")[2] for name in ad.named_changes(model) if "experts" in name}
    assert inside == {"0.up_proj", "0.down_proj", "1.up_proj", "1.down_proj"}
    model(torch.arange(6)[None]).logits.sum().backward()
    check_gradients(model)
