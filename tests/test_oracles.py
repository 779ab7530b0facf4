"""Our methods against independent implementations: peft's, and plain autograd."""

import copy
import dataclasses

import lightning.pytorch as pl
import peft
import pytest
import torch
import transformers
from conftest import scalars
from lit_spectral.datamodules import GLUE
from torch import nn

from lit_spectral import adapters as ad
from lit_spectral.adapters import HadamardAdapter
from lit_spectral.methods import FCLoRA, HiPLoRA, HiRA, LoRA, Peft, PiSSA, RsLoRA
from lit_spectral.tasks import SequenceClassification

TARGETS = ["query", "key", "value", "dense"]


def model(seed=0):
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(seed)
    return transformers.BertModel(config, add_pooling_layer=False)


def train(adapted, steps=10):
    """The same ten steps on the same random inputs and targets."""
    generator = torch.Generator().manual_seed(3)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=5e-3)
    for _ in range(steps):
        tokens = torch.randint(0, 50, (4, 6), generator=generator)
        target = torch.randn(4, 6, 16, generator=generator)
        loss = (adapted(tokens).last_hidden_state - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("scaled", ["", "rs"])
def test_lora_makes_the_change_that_peft_makes(scaled):
    """So that it is no straw man beside which others look well."""
    ours, theirs = model(), model()
    (RsLoRA if scaled else LoRA)(rank=4, alpha=8).apply(ours, ours)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, use_rslora=bool(scaled))
    theirs = peft.get_peft_model(theirs, config)
    layers = {name: m for name, m in theirs.base_model.model.named_modules() if hasattr(m, "lora_A")}
    changes = ad.named_changes(ours)
    assert changes.keys() == layers.keys()
    for name, layer in layers.items():
        right, drawn = changes[name].right.detach(), layer.lora_A["default"].weight.detach()
        assert float(right.abs().max()) == pytest.approx(float(drawn.abs().max()), rel=0.2)  # uniform, up to 1/√in
        drawn.copy_(right)
    train(ours)
    train(theirs)
    for name, layer in layers.items():
        expected = layer.get_delta_weight("default")
        assert expected.abs().max() > 1e-4
        torch.testing.assert_close(changes[name].delta_weight(), expected, rtol=1e-4, atol=1e-6)


def test_hira_makes_the_change_that_peft_makes():
    ours, theirs = model(), model()
    HiRA(rank=4).apply(ours, ours)
    theirs = peft.get_peft_model(theirs, peft.HiraConfig(r=4, target_modules=TARGETS))
    layers = {name: m for name, m in theirs.base_model.model.named_modules() if hasattr(m, "hira_A")}
    changes = ad.named_changes(ours)
    assert changes.keys() == layers.keys()
    with torch.no_grad():
        for name, layer in layers.items():
            layer.hira_A["default"].copy_(changes[name].right)
    train(ours)
    train(theirs)
    for name, layer in layers.items():
        expected = layer.get_base_layer().weight * (layer.hira_B["default"] @ layer.hira_A["default"])
        assert expected.abs().max() > 1e-4
        torch.testing.assert_close(changes[name].delta_weight(), expected, rtol=1e-4, atol=1e-6)


def test_pissa_makes_the_change_that_peft_makes():
    ours, theirs = model(), model()
    before = {name: module.weight.detach().clone() for name, module in ad.find_targets(theirs, TARGETS).items()}
    PiSSA(rank=4).apply(ours, ours)
    config = peft.LoraConfig(r=4, lora_alpha=4, target_modules=TARGETS, init_lora_weights="pissa")
    theirs = peft.get_peft_model(theirs, config)
    train(ours)
    train(theirs)
    changes = ad.named_changes(ours)
    layers = theirs.base_model.model
    for name, weight in before.items():
        layer = layers.get_submodule(name)
        expected = layer.get_base_layer().weight + layer.get_delta_weight("default") - weight
        assert expected.abs().max() > 1e-3
        # peft takes the product out of the weight in float32, which cancels.
        torch.testing.assert_close(changes[name].delta_weight(), expected, rtol=1e-2, atol=2e-5)


@pytest.mark.parametrize("shape", [(24, 16), (16, 24)])
@pytest.mark.parametrize("block", [2**24, 50], ids=["one block", "many blocks"])
def test_hiras_one_product_has_the_gradients_of_the_plain_form(monkeypatch, shape, block):
    """To 1e-6 relative, in float32, against W₀x + (W₀ ⊙ LR)x by autograd."""
    monkeypatch.setattr("lit_spectral.adapters.hadamard.BLOCK", block)
    torch.manual_seed(0)
    adapter = HadamardAdapter(nn.Linear(shape[1], shape[0]), rank=4)
    nn.init.normal_(adapter.left)
    x = torch.randn(2, 5, shape[1], requires_grad=True)
    dy = torch.randn(2, 5, shape[0])
    found = torch.autograd.grad(adapter(x), [x, adapter.left, adapter.right], dy)
    inputs = [t.detach().double().requires_grad_() for t in (x, adapter.left, adapter.right)]
    weight, bias = adapter.weight.detach().double(), adapter.bias.detach().double()
    plain = inputs[0] @ weight.T + bias + inputs[0] @ (weight * (inputs[1] @ inputs[2])).T
    torch.testing.assert_close(adapter(x).double(), plain, rtol=0, atol=1e-5)
    for mine, exact in zip(found, torch.autograd.grad(plain, inputs, dy.double()), strict=True):
        assert (mine.double() - exact).norm() < 1e-6 * exact.norm()


@pytest.mark.parametrize("autocast", [False, True])
def test_hira_in_bfloat16_feels_changes_below_its_weights_rounding(autocast):
    """Where the weight lies on bfloat16's grid the sum with such a change, rounded, would be the weight again."""
    torch.manual_seed(0)
    adapter = HadamardAdapter(nn.Linear(64, 64).bfloat16(), rank=2)
    if autocast:
        adapter.base_layer.float()
    nn.init.normal_(adapter.left)
    with torch.no_grad():
        adapter.left *= 0.9 * 2**-9 / (adapter.left @ adapter.right).abs().max()
    assert torch.equal((adapter.weight.float() + adapter.delta_weight()).bfloat16(), adapter.weight.bfloat16())
    x = torch.randn(8192, 64).bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        moved = (adapter(x) - adapter.base_layer(x)).double()
    expected = x.double() @ adapter.delta_weight().double().T
    # Not all of it, since outputs are rounded too.
    assert float((moved * expected).sum() / expected.square().sum()) > 0.05


@pytest.mark.parametrize("transposed", [False, True], ids=["Linear", "Conv1D"])
@pytest.mark.parametrize(
    "method",
    [LoRA(rank=4, alpha=8), FCLoRA(rank=4, sigma_bar=1.0), HiPLoRA(rank=4, principal_rank=5), PiSSA(rank=4)],
    ids=lambda method: type(method).__name__,
)
def test_the_low_rank_forward_and_its_gradients_are_those_of_the_dense_weight(method, transposed):
    torch.manual_seed(0)
    layer = transformers.pytorch_utils.Conv1D(24, 16) if transposed else nn.Linear(16, 24)
    outer = nn.ModuleDict({"layer": layer}).double()
    dataclasses.replace(method, target_modules=["layer"]).apply(outer, outer)
    adapter = outer.double().layer
    trained = [p for p in adapter.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter in trained:
            parameter += 0.1 * torch.randn_like(parameter)
    x = torch.randn(2, 5, 16, dtype=torch.float64, requires_grad=True)
    dy = torch.randn(2, 5, 24, dtype=torch.float64)
    found = torch.autograd.grad(adapter(x), [x, *trained], dy)
    left, scale, right, *_ = adapter.factors()
    weight = ad.linear.weight_matrix(adapter.base_layer) + (left * scale) @ right
    plain = nn.functional.linear(x, weight, adapter.bias)
    torch.testing.assert_close(adapter(x), plain)
    torch.testing.assert_close(found, torch.autograd.grad(plain, [x, *trained], dy))


def test_dropout_in_the_low_rank_forward_has_the_gradients_of_the_inputs_it_kept(monkeypatch):
    torch.manual_seed(0)
    adapter = ad.LowRankAdapter(nn.Linear(16, 8), rank=4, scale=2.0, dropout=0.25).double()
    nn.init.normal_(adapter.left)
    keep = torch.rand(6, 16) < 0.75
    monkeypatch.setattr(torch.Tensor, "bernoulli_", lambda mask, p: mask.copy_(keep))
    x = torch.randn(6, 16, dtype=torch.float64, requires_grad=True)
    inputs = [x, adapter.left, adapter.right]
    found = torch.autograd.grad(adapter(x).square().sum(), inputs)
    plain = adapter.base_layer(x) + (x * keep / 0.75) @ (2 * adapter.left @ adapter.right).T
    torch.testing.assert_close(found, torch.autograd.grad(plain.square().sum(), inputs))


def test_hira_saves_no_dense_weight_for_backward():
    adapter = HadamardAdapter(nn.Linear(64, 64), rank=2)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        adapter(torch.randn(3, 64, requires_grad=True))
    own = [t for t in saved if t.data_ptr() != adapter.weight.data_ptr()]
    assert sum(t.numel() for t in own) < adapter.weight.numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kept", [False, True], ids=["divided", "kept"])
def test_hira_unfolds_by_division_unless_that_is_ill_conditioned(dtype, kept):
    torch.manual_seed(0)
    adapter = HadamardAdapter(nn.Linear(16, 16).to(dtype), rank=2)
    nn.init.normal_(adapter.left, std=0.3)
    with torch.no_grad():
        if kept:  # 1 + L R = 0 in one entry: nothing could be divided back
            adapter.left[0] = torch.tensor([1.0, 0.0])
            adapter.right[:, 0] = torch.tensor([-1.0, 0.0])
        before = adapter.weight.clone()
        adapter.fold()
        assert not torch.equal(adapter.weight, before)
        assert (adapter._unfolded_weight is not None) == kept
        adapter.unfold()
    assert torch.equal(adapter.weight, before)


def test_hira_unfolds_exactly_whatever_happened_while_it_was_folded():
    torch.manual_seed(0)
    adapter = HadamardAdapter(nn.Linear(16, 16), rank=2)
    nn.init.normal_(adapter.left, std=0.3)
    before = adapter.weight.detach().clone()
    adapter.fold()
    nn.init.normal_(adapter.left)  # another checkpoint was loaded
    with torch.autocast("cpu", torch.bfloat16):
        adapter.unfold()
    assert torch.equal(adapter.weight, before)
    adapter.fold()
    adapter.double()
    adapter.unfold()
    assert torch.equal(adapter.weight, before.double())


LAYERS = {
    "LoRA": peft.LoraConfig(r=4, lora_alpha=12, lora_bias=True, target_modules=["0"]),
    "rsLoRA": peft.LoraConfig(r=4, use_rslora=True, target_modules=["0"]),
    "AdaLoRA": peft.AdaLoraConfig(init_r=4, target_r=2, total_step=10, target_modules=["0"]),
    "DoRA": peft.LoraConfig(r=4, use_dora=True, target_modules=["0"]),
    "IA3": peft.IA3Config(target_modules=["0"], feedforward_modules=[]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", LAYERS.values(), ids=LAYERS)
def test_the_change_of_a_layer_of_peft_is_that_of_its_merged_weight(config, dtype):
    torch.manual_seed(0)
    layer = nn.Linear(12, 8)
    changed = peft.get_peft_model(nn.Sequential(layer), config)
    with torch.no_grad():
        for parameter in changed.parameters():
            if parameter.requires_grad:
                parameter.add_(1e-2 * torch.randn(parameter.shape))
    (change,) = ad.named_changes(changed.base_model.model.to(dtype)).values()
    wide = copy.deepcopy(changed).float()
    base = wide.base_model.model[0].get_base_layer().weight.detach().clone()
    expected = wide.merge_and_unload()[0].weight - base
    torch.testing.assert_close(change.delta_weight(), expected, rtol=1e-3, atol=1e-5)
    factors = change.factors()
    assert (factors is not None) == (config.peft_type == "LORA" and not config.use_dora)
    if factors is not None:
        left, scale, right, *_ = factors
        torch.testing.assert_close(scale * left @ right, expected, rtol=1e-3, atol=1e-5)


CONFIGS = {
    "DoRA": {"peft_type": "LORA", "r": 4, "use_dora": True},
    "AdaLoRA": {"peft_type": "ADALORA", "init_r": 6, "target_r": 3, "tinit": 2, "tfinal": 2, "total_step": 12},
}


@pytest.mark.parametrize("fields", CONFIGS.values(), ids=CONFIGS)
def test_the_wrapper_has_the_loss_curve_of_peft_used_directly(backbone_folder, mrpc_folder, tmp_path, fields):
    steps = 12
    fields = fields | {"target_modules": TARGETS}
    pl.seed_everything(0)
    task = SequenceClassification(
        backbone_folder("bert"), Peft(config=fields), optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0)
    )
    task.lr_scheduler = "constant"
    data = GLUE("mrpc", mrpc_folder, batch_size=8)
    options = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    options["precision"] = "64-true"  # where Adam divides two gradients of rounding's size, float32 says nothing
    logger = pl.loggers.TensorBoardLogger(tmp_path)
    batches = []

    class Record(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            batches.append({name: tensor.clone() for name, tensor in batch.items()})

        def on_train_start(self, trainer, pl_module):
            pl_module.eval()  # no dropout, whose draws the two would have to share
            self.start = {n: p.detach().clone() for n, p in pl_module.model.named_parameters() if p.requires_grad}

    record = Record()
    pl.Trainer(max_steps=steps, log_every_n_steps=1, callbacks=[record], logger=logger, **options).fit(task, data)
    ours = [value for _, value in scalars(task.trainer)["train/loss"]]

    base = transformers.AutoModelForSequenceClassification.from_pretrained(backbone_folder("bert"), num_labels=2)
    # With the task's type, else peft's model passes by the forward that adds AdaLoRA's penalty; it copies the head.
    direct = peft.get_peft_model(base.double(), peft.get_peft_config(fields | {"task_type": "SEQ_CLS"})).double().eval()
    for name, parameter in direct.base_model.model.named_parameters():
        start = record.start.get(name.replace("modules_to_save.default.", ""))
        if start is not None:
            parameter.requires_grad_(True)  # of the pooler, which is new to the backbone
            parameter.data.copy_(start)
    optimizer = torch.optim.AdamW([p for p in direct.parameters() if p.requires_grad], lr=1e-2, weight_decay=0)
    theirs = []
    for step, batch in enumerate(batches):
        outputs = direct(**batch)
        loss = torch.nn.functional.cross_entropy(outputs.logits.float(), batch["labels"])
        penalty = outputs.loss - torch.nn.functional.cross_entropy(outputs.logits, batch["labels"])
        theirs.append(float(loss.detach()))
        (loss + penalty).backward()
        optimizer.step()
        if hasattr(direct.base_model, "update_and_allocate"):
            direct.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    assert len(ours) == steps
    assert ours == pytest.approx(theirs, rel=1e-5)
