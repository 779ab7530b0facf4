"""What must hold of every architecture under every method: being in the tables is enough to be tested."""

import pytest
import torch
import transformers
from conftest import WORDS
from crossing import crossed
from test_methods import ALIKE

from lit_spectral import adapters as ad
from lit_spectral import methods
from lit_spectral.errors import InputError
from lit_spectral.generation import generate
from zoo.matrix import FILE, matrix
from zoo.models import DECODERS, MODELS, has_task, make

# Each model under one of these on every run, and under all where there is time, as under the others.
KINDS = {
    "LoRA": methods.LoRA(rank=4),
    "FCLoRA": methods.FCLoRA(rank=4),
    "HiRA": methods.HiRA(rank=4),
}
OTHERS = {
    "PiSSA": methods.PiSSA(rank=4),
    "HiPLoRA": methods.HiPLoRA(rank=4, principal_rank=3),
    "RsLoRA": methods.RsLoRA(rank=4),
    "LoRAPlus": methods.LoRAPlus(rank=4),
    "MiLoRA": methods.MiLoRA(rank=4),
    "RandomSVDLoRA": methods.RandomSVDLoRA(rank=4),
    "SORSA": methods.SORSA(rank=4),
    "FCLoRA zero": methods.FCLoRA(rank=4, start="zero", principal_rank=3),
    "HiLoRA": methods.HiLoRA(rank=4, ball="q2"),
    "ProjLoRA": methods.ProjLoRA(rank=4, principal_rank=3),
    "HiRALoRA": methods.HiRALoRA(rank=4, lora_rank=3),
    "StelLA": methods.StelLA(rank=4),
    "EBLoRA": methods.EBLoRA(rank=4),
    "MoRA": methods.MoRA(rank=2),
    "FullFineTuning": methods.FullFineTuning(),
    "Houlsby": methods.Houlsby(width=3),
    "Parallel": methods.Parallel(width=3),
    "DoRA of peft": methods.Peft(config={"peft_type": "LORA", "r": 4, "use_dora": True}),
}
# Those with adapters of another's need no more than one model of each kind of linear map and of sharing.
FEW = {"BERT", "GPT-2", "Llama, tied", "ALBERT", "T5", "Mixtral"}
assert {*MODELS} >= FEW
# peft names a module of Mamba that it refuses, since kernels there read past its layers; no part of XLNet's blocks is
# known to be closed by a map.
REFUSED = {("Mamba", "DoRA of peft"), ("XLNet", "Houlsby")}
NOT_LINEAR = {"Houlsby", "Parallel"}
EVERY = [
    *crossed(MODELS, KINDS),
    *(
        pytest.param(name, method, marks=pytest.mark.slow)
        for name in MODELS
        for method in OTHERS
        if (name, method) not in REFUSED and (method not in ALIKE or name in FEW)
    ),
]
pytestmark = pytest.mark.filterwarnings("ignore")
TOKENS = torch.tensor([[2, 9, 30, 17, 44, 8, 3], [2, 5, 6, 7, 40, 41, 3]])


def head(name):
    return "CausalLM" if name in DECODERS else "SequenceClassification"


def adapted(name, method):
    model = make(name, head(name))
    (KINDS | OTHERS)[method].apply(model, model.base_model)
    return model.eval()


@torch.no_grad()
def perturb(model):
    """A change of every adapter's trained tensors, as training would make."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += 0.05 * torch.rand(parameter.shape, generator=generator)


@torch.no_grad()
def logits(model):
    return model(input_ids=TOKENS, attention_mask=torch.ones_like(TOKENS)).logits


def gradients(model):
    """Of the logits against a fixed direction, by parameter."""
    model.zero_grad()
    out = model(input_ids=TOKENS, attention_mask=torch.ones_like(TOKENS)).logits
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("name", "method"), EVERY)
def test_a_model_starts_as_its_backbone(name, method):
    before = logits(make(name, head(name)))
    torch.testing.assert_close(logits(adapted(name, method)), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "method"), EVERY)
def test_every_adapter_is_used(name, method):
    model = adapted(name, method)
    perturb(model)
    reached = gradients(model)
    for path in ad.named_wrappers(model):
        found = [gradient.abs().max() for key, gradient in reached.items() if key.startswith(f"{path}.")]
        assert found, path
        assert max(found) > 0, path


@pytest.mark.parametrize(("name", "method"), EVERY)
def test_folding_changes_nothing_and_is_undone_to_the_bit(name, method):
    model = adapted(name, method)
    perturb(model)
    before = logits(model)
    weights = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    if method in NOT_LINEAR:
        with pytest.raises(InputError, match="not linear"):
            ad.fold(model)
        return
    ad.fold(model)
    torch.testing.assert_close(logits(model), before, rtol=1e-3, atol=1e-3 * float(before.std()))
    ad.unfold(model)
    if not isinstance((KINDS | OTHERS)[method], methods.Peft):
        assert all(torch.equal(weights[key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize(("name", "method"), EVERY)
def test_what_a_checkpoint_holds_brings_the_model_back(name, method):
    model = adapted(name, method)
    perturb(model)
    held = {key: tensor.clone() for key, tensor in ad.trained_state(model).items()}
    again = adapted(name, method)
    again.load_state_dict(held, strict=False)
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize(("name", "method"), EVERY)
def test_gradient_checkpointing_changes_no_gradient(name, method):
    model = adapted(name, method)
    if not model.supports_gradient_checkpointing:
        pytest.skip("transformers doesn't checkpoint it")
    perturb(model)
    plain = gradients(model)
    model.train()  # nothing here drops out
    model.gradient_checkpointing_enable({"use_reentrant": False})
    checkpointed = gradients(model)
    assert plain.keys() == checkpointed.keys()
    for key, gradient in plain.items():
        torch.testing.assert_close(checkpointed[key], gradient, rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def tokenizer(backbone_folder):
    return transformers.AutoTokenizer.from_pretrained(backbone_folder("bert"))


@pytest.mark.parametrize("name", [name for name in DECODERS if has_task(name, "CausalLM")])
def test_an_answer_is_the_same_alone_and_in_a_batch(name, tokenizer):
    model = adapted(name, "LoRA")
    perturb(model)
    prompts = [WORDS[0], " ".join(WORDS[:9]), " ".join(WORDS[4:7])]
    together = generate(model, tokenizer, prompts, max_new_tokens=8)
    assert together == [generate(model, tokenizer, [prompt], max_new_tokens=8)[0] for prompt in prompts]


def test_the_page_on_architectures_says_what_there_is():
    assert FILE.read_text(encoding="utf-8") == matrix()
