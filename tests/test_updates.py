"""What training leaves without its model: ΔW and its algebra; Updates of models, checkpoints and files of peft."""

import json
import shutil

import lightning.pytorch as pl
import peft
import pytest
import torch
import transformers
from conftest import move
from safetensors.torch import load_file, save_file
from test_methods import OURS, PEFT

from lit_spectral.adapters import named_changes
from lit_spectral.errors import InputError
from lit_spectral.tasks import SequenceClassification
from lit_spectral.updates import Delta, Pair, Update
from lit_spectral.updates.delta import kept_rank
from lit_spectral.updates.sources import of_model, read
from lit_spectral.updates.update import check_same_backbone

WITH_CHANGES = OURS | {name: PEFT[name] for name in ("DoRA", "AdaLoRA", "FourierFT")}


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def thin(rank=3, out=14, into=9, seed=0):
    return Delta(Pair(drawn(out, rank, seed=seed), drawn(rank, into, seed=seed + 100)))


WEIGHT = drawn(14, 9, seed=7)
KINDS = {
    "thin": thin(),
    "more columns than a side": thin(rank=11),
    "hadamard": Delta(hadamard=thin(seed=1).factors),
    "dense": Delta(matrix=drawn(14, 9, seed=2)),
    "all parts": Delta(thin().factors, thin(seed=1).factors, drawn(14, 9, seed=2)),
}
each_kind = pytest.mark.parametrize("delta", KINDS.values(), ids=KINDS)


def dense(delta):
    total = torch.zeros(14, 9, dtype=torch.float64)
    if delta.factors:
        total += delta.factors.left.double() @ delta.factors.right.double()
    if delta.hadamard:
        total += WEIGHT.double() * (delta.hadamard.left.double() @ delta.hadamard.right.double())
    return total if delta.matrix is None else total + delta.matrix.double()


def near(found, expected, error=1e-6):
    assert (found.double() - expected).norm() <= error * expected.norm()


@each_kind
def test_a_change_is_the_sum_of_its_parts(delta):
    near(delta.dense(WEIGHT), dense(delta))
    assert delta.shape == (14, 9)


@each_kind
def test_scaling_and_adding_are_exact(delta):
    sum_ = Delta.added([delta, thin(5, seed=3).scaled(-0.5), delta.scaled(2)])
    near(sum_.dense(WEIGHT), 3 * dense(delta) - 0.5 * dense(thin(5, seed=3)))


def test_a_sum_of_thin_changes_is_thin():
    assert Delta.added([thin(2), thin(3)]).rank == 5


def test_changes_of_other_shapes_are_not_added():
    with pytest.raises(ValueError, match="have one shape; these have 14 x 9, 5 x 9"):
        Delta.added([thin(), thin(out=5)])


def test_a_part_that_multiplies_the_weight_asks_for_it():
    with pytest.raises(ValueError, match="multiplies the backbone's weight"):
        KINDS["hadamard"].dense()


@each_kind
def test_singular_values_and_vectors_are_those_of_the_matrix(delta):
    u, sigma, v = delta.svd(WEIGHT)
    values = torch.linalg.svdvals(dense(delta))[: len(sigma)]
    near((u * sigma) @ v.mT, dense(delta))
    torch.testing.assert_close(sigma, values, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(delta.singular_values(WEIGHT), values, atol=1e-5, rtol=1e-5)


@each_kind
@pytest.mark.parametrize("asked", [{"rank": 2}, {"energy": 0.8}, {"rank": 1, "energy": 0.9}], ids=str)
def test_truncated_to_what_is_asked_for(delta, asked):
    u, sigma, vt = torch.linalg.svd(dense(delta), full_matrices=False)
    shares = sigma.square().cumsum(0) / sigma.square().sum()
    enough = int((shares < asked.get("energy", 1)).sum()) + 1
    kept = min(asked.get("rank", 99), enough)
    found, error = delta.truncated(**asked, weight=WEIGHT)
    near(found.dense(), (u[:, :kept] * sigma[:kept]) @ vt[:kept], 1e-5)
    assert found.rank == kept
    assert error == pytest.approx(float(sigma[kept:].norm() / sigma.norm()), abs=1e-6)


def test_truncated_to_nothing_it_has_no_more_factors_than_rank():
    twice = Delta.added([thin(3), thin(3)])
    found, error = twice.truncated()
    assert (found.rank, error) == (3, pytest.approx(0, abs=1e-7))
    near(found.dense(), 2 * dense(thin(3)))


def test_a_change_of_0_keeps_one_factor():
    found, error = thin().scaled(0).truncated(2)
    assert (found.rank, error, float(found.dense().norm())) == (1, 0, 0)
    assert kept_rank(torch.zeros(3), 2, 0.5) == 1


@each_kind
@pytest.mark.parametrize("radius", [1.5, 1e9])
def test_contracted_to_a_ball(delta, radius):
    u, sigma, vt = torch.linalg.svd(dense(delta), full_matrices=False)
    near(delta.contracted(radius, WEIGHT).dense(WEIGHT), (u * sigma.clamp_max(radius)) @ vt, 1e-5)


@each_kind
def test_taken_out_of_subspaces_on_either_side(delta):
    u, v = torch.linalg.qr(drawn(14, 4, seed=5))[0], torch.linalg.qr(drawn(9, 2, seed=6))[0]
    left, right = torch.eye(14) - u @ u.mT, torch.eye(9) - v @ v.mT
    near(delta.outside(u, v, WEIGHT).dense(), left.double() @ dense(delta) @ right.double(), 1e-5)
    near(delta.outside(None, v, WEIGHT).dense(), dense(delta) @ right.double(), 1e-5)


def test_backbones_that_differ_are_refused():
    first, second = Update({"q": thin()}, digest="a-a"), Update({"q": thin()}, digest="a-b")
    with pytest.raises(InputError, match="x and y are adapters of different backbones"):
        check_same_backbone({"x": first, "y": second})
    check_same_backbone({"x": first, "y": Update({"q": thin()}, digest="a-quantised")})
    with pytest.raises(InputError, match="q is 14 x 9 in x and 5 x 9 in y"):
        check_same_backbone({"x": first, "y": Update({"q": thin(out=5)})})


@pytest.fixture
def trained(backbone_folder):
    """A task whose adapters and head have been moved from where they start."""

    def make(method, architecture="bert"):
        torch.manual_seed(0)
        task = SequenceClassification(backbone_folder(architecture), method, num_labels=2, metrics=["accuracy"])
        task.configure_model()
        move(task.model, 0.1)
        return task.eval()

    return make


@pytest.mark.parametrize("method", WITH_CHANGES.values(), ids=WITH_CHANGES)
def test_of_a_live_model_each_change_is_that_of_its_adapter(trained, method):
    task = trained(method)
    update = of_model(task.model)
    changes = named_changes(task.model)
    assert update.changes.keys() == changes.keys()
    for path, change in changes.items():
        weight = change.base_layer.weight.detach()
        torch.testing.assert_close(update.changes[path].dense(weight), change.delta_weight(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", WITH_CHANGES.values(), ids=WITH_CHANGES)
def test_of_a_live_model_what_is_whole_is_what_else_is_trained(trained, method):
    task = trained(method)
    whole = of_model(task.model).whole
    heads = {"classifier.weight", "classifier.bias", "bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    heads &= {name for name, parameter in task.model.named_parameters() if parameter.requires_grad}
    assert heads <= whole.keys()
    plain = {name.replace(".base_layer.", "."): value for name, value in task.model.named_parameters()}
    assert all(torch.equal(value, plain[name]) for name, value in whole.items())
    assert not any("base_layer" in name or "lora" in name or name.endswith((".left", ".right")) for name in whole)


def test_prompts_have_no_update(trained):
    with pytest.raises(InputError, match="prompts have no ΔW"):
        of_model(trained(PEFT["prompt tuning"]).model)


@pytest.mark.parametrize("name", ["LoRA", "FCLoRA", "HiPLoRA", "HiRALoRA", "MoRA", "FullFineTuning", "BitFit", "DoRA"])
def test_of_a_checkpoint_it_is_that_of_the_model(trained, tmp_path, name):
    task = trained(WITH_CHANGES[name])
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_steps=1, accelerator="cpu", default_root_dir=tmp_path, **quiet)
    row = {"input_ids": torch.arange(5, 13), "attention_mask": torch.ones(8, dtype=torch.long), "labels": 1}
    trainer.fit(task, torch.utils.data.DataLoader([row] * 2, batch_size=2))
    trainer.save_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    found, live = read(str(tmp_path / "a.ckpt")), of_model(task.model)
    assert found.changes.keys() == live.changes.keys()
    for path, delta in live.changes.items():
        for one, other in zip(delta.tensors(), found.changes[path].tensors(), strict=True):
            torch.testing.assert_close(one, other)
    assert {name: value.tolist() for name, value in found.whole.items()} == {
        name: value.tolist() for name, value in live.whole.items()
    }
    assert found.digest == task.backbone_digest
    assert found.origin["method"]["name"] == type(task.method).__name__


THEIRS = {
    "plain": {"r": 4, "lora_alpha": 6},
    "patterns": {
        "r": 4,
        "lora_alpha": 6,
        "rank_pattern": {"0.attention.self.query": 2, "^bert.encoder.layer.1.attention.self.value": 7},
        "alpha_pattern": {"query": 3},
    },
    "rsLoRA": {"r": 4, "lora_alpha": 6, "use_rslora": True},
    "rsLoRA with patterns": {"r": 4, "lora_alpha": 6, "use_rslora": True, "rank_pattern": {"value": 2}},
    "biases": {"r": 4, "bias": "all"},
    "DoRA": {"r": 4, "use_dora": True},
}


@pytest.fixture
def theirs(backbone_folder, tmp_path):
    """An adapter's folder that peft alone wrote, with moved factors and a head; and peft's model."""

    def make(architecture="bert", **settings):
        torch.manual_seed(1)
        kind, auto, targets = {
            "bert": ("SEQ_CLS", transformers.AutoModelForSequenceClassification, ["query", "value"]),
            "gpt2": ("CAUSAL_LM", transformers.AutoModelForCausalLM, ["c_attn"]),
        }[architecture]
        model = auto.from_pretrained(backbone_folder(architecture))
        given = {"task_type": kind, "target_modules": targets, "peft_type": "LORA", **settings}
        config = peft.PEFT_TYPE_TO_CONFIG_MAPPING[given.pop("peft_type")](**given)
        wrapped = peft.get_peft_model(model, config)
        move(wrapped, 0.1)
        wrapped.save_pretrained(tmp_path / "adapter")
        return str(tmp_path / "adapter"), wrapped.eval()

    return make


@pytest.mark.parametrize("settings", THEIRS.values(), ids=THEIRS)
def test_of_pefts_lora_each_change_is_what_peft_adds(theirs, settings):
    folder, wrapped = theirs(**settings)
    update = read(folder)
    changes = named_changes(wrapped.base_model.model)
    assert update.changes.keys() == changes.keys()
    for path, change in changes.items():
        torch.testing.assert_close(update.changes[path].dense(), change.delta_weight(), atol=1e-5, rtol=1e-4)
    head = wrapped.base_model.model.classifier.modules_to_save["default"].weight
    assert torch.equal(update.whole["classifier.weight"], head)


def test_of_pefts_lora_biases_are_whole(theirs):
    folder, wrapped = theirs(r=4, bias="all")
    bias = wrapped.base_model.model.bert.encoder.layer[0].attention.self.query.base_layer.bias
    assert torch.equal(read(folder).whole["bert.encoder.layer.0.attention.self.query.bias"], bias)


def test_of_pefts_lora_on_conv1d(theirs):
    folder, wrapped = theirs("gpt2", r=4, fan_in_fan_out=True)
    for path, change in named_changes(wrapped.base_model.model).items():
        torch.testing.assert_close(read(folder).changes[path].dense(), change.delta_weight(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "kind", [{"peft_type": "FOURIERFT", "n_frequency": 20}, {"peft_type": "LOHA", "r": 3}], ids=str
)
def test_of_pefts_other_types_it_is_what_peft_adds(theirs, kind):
    folder, wrapped = theirs(**kind)
    update = read(folder)
    for path, change in named_changes(wrapped.base_model.model).items():
        torch.testing.assert_close(update.changes[path].dense(), change.delta_weight(), atol=1e-5, rtol=1e-4)


@pytest.fixture
def tuned(backbone_folder, tmp_path):
    """From an architecture to a folder of its model with some weights moved, and that model."""

    def make(architecture):
        auto = transformers.AutoModelForCausalLM if architecture == "gpt2" else transformers.AutoModelForMaskedLM
        model = auto.from_pretrained(backbone_folder(architecture))
        torch.manual_seed(3)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "0.mlp.c_fc" in name or "0.attention.self.query" in name or name.endswith("1.ln_1.weight"):
                    parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(tmp_path / "tuned")
        return str(tmp_path / "tuned"), model

    return make


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_of_fine_tuned_weights_it_is_what_differs(tuned, backbone_folder, architecture):
    folder, model = tuned(architecture)
    base = type(model).from_pretrained(backbone_folder(architecture))
    update = read(folder, backbone_folder(architecture))
    (path,) = update.changes
    difference = model.get_submodule(path).weight - base.get_submodule(path).weight
    expected = difference.mT if architecture == "gpt2" else difference  # Conv1D lies transposed
    torch.testing.assert_close(update.changes[path].dense(), expected.detach())
    names = {name for name, p in model.named_parameters() if not torch.equal(p, base.get_parameter(name))}
    assert update.whole.keys() == names - {f"{path}.weight"}
    assert update.origin["architecture"] == type(model).__name__


def test_of_fine_tuned_weights_what_a_rank_leaves_out_is_told(tuned, backbone_folder):
    folder, _ = tuned("bert")
    whole, cut = (read(folder, backbone_folder("bert"), rank=rank) for rank in (None, 3))
    (path,) = whole.changes
    sigma = torch.linalg.svdvals(whole.changes[path].dense().double())
    assert cut.changes[path].rank == 3
    assert cut.origin["left_out"][path] == pytest.approx(float(sigma[3:].norm() / sigma.norm()), rel=1e-5)


def test_of_fine_tuned_weights_a_new_head_is_whole(backbone_folder, tmp_path):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(backbone_folder("bert"), num_labels=3)
    model.save_pretrained(tmp_path)
    update = read(str(tmp_path), backbone_folder("bert"))
    assert not update.changes
    assert {"classifier.weight", "classifier.bias"} <= update.whole.keys()
    assert len(update.origin["config_labels"]) == 3


def test_fine_tuned_weights_need_their_backbone(tuned):
    with pytest.raises(InputError, match="are read against their backbone; give --backbone"):
        read(tuned("bert")[0])


def edited(folder, **settings):
    file = f"{folder}/adapter_config.json"
    with open(file, encoding="utf-8") as opened:
        config = json.load(opened)
    with open(file, "w", encoding="utf-8") as opened:
        json.dump(config | settings, opened)


def test_an_adapter_without_change_of_weights_is_refused(backbone_folder, tmp_path):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(backbone_folder("bert"))
    config = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)
    peft.get_peft_model(model, config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="PROMPT_TUNING has no ΔW, but prompts"):
        read(str(tmp_path))


def test_a_pickle_is_refused(theirs):
    folder, _ = theirs(r=4)
    shutil.move(f"{folder}/adapter_model.safetensors", f"{folder}/adapter_model.bin")
    with pytest.raises(InputError, match="is a pickle, which could run code"):
        read(folder)


def test_a_damaged_file_is_refused(theirs):
    folder, _ = theirs(r=4)
    with open(f"{folder}/adapter_model.safetensors", "r+b") as file:
        file.truncate(500)
    with pytest.raises(InputError, match=r"adapter_model\.safetensors: it is damaged"):
        read(folder)


def test_settings_that_do_not_go_with_the_factors_are_refused(theirs):
    folder, _ = theirs(r=4)
    edited(folder, r=5)
    with pytest.raises(InputError, match="for a rank of 5; give an adapter whose files belong together"):
        read(folder)


def test_weights_that_are_not_finite_are_refused(theirs):
    folder, _ = theirs(r=4)
    tensors = load_file(f"{folder}/adapter_model.safetensors")
    next(iter(tensors.values())).fill_(float("nan"))
    save_file(tensors, f"{folder}/adapter_model.safetensors")
    with pytest.raises(InputError, match="is not finite; give an adapter from before that"):
        read(folder)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder / "nowhere", "there is nothing there"),
        (lambda folder: folder, "neither adapter_config.json"),
    ],
    ids=["nothing", "an empty folder"],
)
def test_what_is_no_source_is_refused(tmp_path, make, said):
    with pytest.raises(InputError, match=said):
        read(str(make(tmp_path)))


def test_peft_type_of_an_update_is_told(theirs):
    folder, _ = theirs(r=4)
    assert read(folder).origin["method"] == {"name": "peft LORA"}
