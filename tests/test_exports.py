"""Updates taken away: peft and transformers load what is written, and compute what the adapted model does."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from peft import AutoPeftModelForSequenceClassification, PeftConfig, PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from zoo.models import make

from lit_spectral import adapters as ad
from lit_spectral import methods
from lit_spectral.errors import InputError
from lit_spectral.updates import Delta, Pair, Update
from lit_spectral.updates.exports import write
from lit_spectral.updates.weights import Weights

pytestmark = pytest.mark.filterwarnings("ignore")
TOKENS = torch.tensor([[2, 9, 30, 17, 44, 8, 3], [2, 5, 6, 7, 40, 41, 3]])
HEADS = {"BERT": "SequenceClassification", "Llama": "CausalLM", "Llama, tied": "CausalLM", "GPT-2": "CausalLM"}
LOW_RANK = {
    "LoRA": methods.LoRA(rank=4, alpha=12),
    "PiSSA": methods.PiSSA(rank=4),
    "FCLoRA": methods.FCLoRA(rank=4),
    "HiPLoRA": methods.HiPLoRA(rank=4, principal_rank=3),
    "MiLoRA": methods.MiLoRA(rank=4),
}
OTHERS = {"HiRA": methods.HiRA(rank=4), "HiRALoRA": methods.HiRALoRA(rank=4, lora_rank=3), "MoRA": methods.MoRA(rank=2)}


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=TOKENS, attention_mask=torch.ones_like(TOKENS)).logits


def assert_equal(found, expected):
    assert (found - expected).norm() <= 1e-5 * expected.norm()


@torch.no_grad()
def adapted(name, method, seed=1):
    """A model with random changes, and its head's parameters, which count as trained."""
    model = make(name, HEADS[name])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        method.apply(model, model.base_model)
    generator = torch.Generator().manual_seed(seed)
    head = dict(model.classifier.named_parameters(prefix="classifier")) if hasattr(model, "classifier") else {}
    for parameter in [*(p for p in model.parameters() if p.requires_grad), *head.values()]:
        parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model, {key: value.detach().clone() for key, value in head.items()}


def delta_of(change):
    if isinstance(change, ad.HadamardAdapter):
        added = Pair(change.added_left * change.scale, change.added_right) if hasattr(change, "added_left") else None
        return Delta(added, Pair(change.left.detach(), change.right.detach()))
    factors = change.factors()
    if factors is None:
        return Delta(matrix=change.delta_weight())
    return Delta(Pair((factors.left * factors.scale).detach(), factors.right.detach()))


def update_of(model, whole, backbone):
    changes = {path: delta_of(change) for path, change in ad.named_changes(model).items()}
    origin = {"method": "test", "architecture": type(model).__name__}
    return Update(changes, whole, str(backbone), "", origin)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """From a model's name to its folder."""
    root = tmp_path_factory.mktemp("bases")

    def folder(name, dtype=torch.float32, **how):
        path = root / f"{name}-{dtype}-{len(how)}"
        if not path.exists():
            make(name, HEADS[name]).to(dtype).save_pretrained(path, **how)
        return path

    return folder


@pytest.fixture
def update(base):
    """Of BERT with its head, by LoRA."""
    return update_of(*adapted("BERT", LOW_RANK["LoRA"]), base("BERT"))


def decoder_update(base, **given):
    return update_of(*adapted("Llama", methods.LoRA(**{"rank": 4, **given})), base("Llama"))


@pytest.mark.parametrize("method", LOW_RANK)
@pytest.mark.parametrize("name", ["BERT", "Llama", "GPT-2"])
def test_peft_computes_what_the_adapted_model_does(name, method, base, tmp_path):
    model, whole = adapted(name, LOW_RANK[method])
    assert write(update_of(model, whole, base(name)), tmp_path / "out", "peft") == {}
    loaded = PeftModel.from_pretrained(make(name, HEADS[name]), tmp_path / "out")
    assert_equal(logits(loaded), logits(model))


@pytest.mark.parametrize("method", LOW_RANK | OTHERS)
@pytest.mark.parametrize("name", HEADS)
def test_a_merged_model_computes_what_the_adapted_one_does(name, method, base, tmp_path):
    model, whole = adapted(name, (LOW_RANK | OTHERS)[method])
    assert write(update_of(model, whole, base(name)), tmp_path / "out", "merged") == {}
    loaded, info = getattr(transformers, f"AutoModelFor{HEADS[name]}").from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(info.values())
    assert_equal(logits(loaded), logits(model))


def test_peft_finds_the_task_and_the_backbone_by_itself(update, tmp_path):
    write(update, tmp_path / "out", "peft")
    loaded = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert loaded.get_base_model().config._name_or_path == update.backbone


def test_what_is_whole_may_be_part_of_a_module_and_the_bias_of_an_adapted_map(base, tmp_path):
    model, whole = adapted("BERT", LOW_RANK["LoRA"])
    path = next(iter(ad.named_changes(model)))
    for name in (f"{path}.bias", "bert.encoder.layer.0.output.LayerNorm.bias", "classifier.bias"):
        owner, _, leaf = name.rpartition(".")
        getattr(model.get_submodule(owner), leaf).data += 0.3
        whole[name] = getattr(model.get_submodule(owner), leaf).detach()
    write(update_of(model, whole, base("BERT")), tmp_path / "out", "peft")
    loaded = PeftModel.from_pretrained(make("BERT", HEADS["BERT"]), tmp_path / "out")
    assert_equal(logits(loaded), logits(model))


def test_an_embedding_that_is_tied_stays_equal_to_the_head_in_peft(base, tmp_path):
    model, whole = adapted("Llama, tied", LOW_RANK["LoRA"])
    model.model.embed_tokens.weight.data += 0.1
    whole["model.embed_tokens.weight"] = model.model.embed_tokens.weight.detach()
    write(update_of(model, whole, base("Llama, tied")), tmp_path / "out", "peft")
    loaded = PeftModel.from_pretrained(make("Llama, tied", "CausalLM"), tmp_path / "out")
    assert_equal(logits(loaded), logits(model))


def test_an_adapted_head_that_is_tied_is_untied_in_the_merged_model(base, tmp_path):
    model = make("Llama, tied", "CausalLM")
    expected = make("Llama, tied", "CausalLM")
    pair = Pair(torch.randn(64, 2), torch.randn(2, 32))
    expected.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() + pair.left @ pair.right)
    write(Update({"lm_head": Delta(pair)}, backbone=str(base("Llama, tied"))), tmp_path / "out", "merged")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert_equal(logits(loaded), logits(expected))


@pytest.mark.parametrize("name", ["Llama", "GPT-2"])
def test_in_bfloat16_the_sum_of_float32_is_rounded_once(name, base, tmp_path):
    folder = base(name, torch.bfloat16)
    update = update_of(*adapted(name, LOW_RANK["FCLoRA"]), folder)
    before = load_file(folder / "model.safetensors")
    write(update, tmp_path / "out", "merged")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert after.keys() == before.keys()
    prefix = "" if f"{next(iter(update.changes))}.weight" in before else "transformer."
    for key, tensor in before.items():
        delta = update.changes.get(key.removesuffix(".weight")) or update.changes.get(
            prefix + key.removesuffix(".weight")
        )
        if delta is not None:
            change = delta.factors.left @ delta.factors.right
            tensor = (tensor.float() + (change.mT if name == "GPT-2" else change)).bfloat16()
        assert torch.equal(after[key], tensor), key


def test_shards_stay_shards_and_what_lies_beside_them_comes_along(base, tmp_path):
    folder = base("Llama", max_shard_size="20KB")
    (folder / "tokenizer_config.json").write_text("{}")
    model, whole = adapted("Llama", LOW_RANK["LoRA"])
    write(update_of(model, whole, folder), tmp_path / "out", "merged")
    kept = {file.name for file in folder.iterdir()}
    assert len(kept) > 4
    assert {file.name for file in (tmp_path / "out").iterdir()} == kept | {"README.md"}
    assert_equal(logits(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")), logits(model))


def test_a_new_head_is_added_and_its_classes_are_named(update, tmp_path):
    model, _ = adapted("BERT", LOW_RANK["LoRA"])
    bare = tmp_path / "bare"
    make("BERT", "MaskedLM").save_pretrained(bare)
    masked = load_file(bare / "model.safetensors")
    for key, tensor in make("BERT", HEADS["BERT"]).state_dict().items():
        if key.startswith("bert."):
            masked[key] = tensor
    save_file(masked, bare / "model.safetensors", metadata={"format": "pt"})
    origin = {**update.origin, "config_labels": {"0": "no", "1": "yes"}}
    write(Update(update.changes, update.whole, str(bare), origin=origin), tmp_path / "out", "merged")
    loaded, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(info.values())
    assert loaded.config.id2label == {0: "no", 1: "yes"}
    assert_equal(logits(loaded), logits(model))


def test_a_head_says_how_many_classes_there_are_where_no_names_are_known(update, tmp_path):
    whole = {"classifier.weight": torch.randn(5, 32), "classifier.bias": torch.randn(5)}
    write(Update(update.changes, whole, update.backbone, origin=update.origin), tmp_path / "out", "merged")
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert torch.equal(loaded.classifier.weight, whole["classifier.weight"])


def test_a_decoder_that_becomes_a_classifier_pads_as_its_tokenizer_does(decoder_folder, tmp_path):
    origin = {"architecture": "LlamaForSequenceClassification"}
    head = {"score.weight": torch.randn(2, 32)}
    write(Update({}, head, decoder_folder(), origin=origin), tmp_path / "out", "merged")
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert torch.equal(loaded.score.weight, head["score.weight"])
    assert loaded.config.pad_token_id == tokenizer.pad_token_id is not None


def test_the_error_of_truncation_is_that_of_a_dense_svd(base, tmp_path):
    model, whole = adapted("Llama", OTHERS["HiRA"])
    errors = write(update_of(model, whole, base("Llama")), tmp_path / "out", "peft", rank=3)
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    for path, change in ad.named_changes(model).items():
        sigma = torch.linalg.svdvals(change.delta_weight().double())
        assert errors[path] == pytest.approx(float(sigma[3:].norm() / sigma.norm()), rel=1e-5)
        left, right = (stored[f"base_model.model.{path}.lora_{which}.weight"] for which in "BA")
        rest = torch.linalg.matrix_norm(change.delta_weight() - left @ right)
        assert float(rest) == pytest.approx(float(sigma[3:].norm()), rel=1e-4)
    card = (tmp_path / "out" / "README.md").read_text()
    assert all(f"| {path} | {error:.3g} |" in card for path, error in errors.items())


def test_an_energy_gives_each_map_a_rank_of_its_own(base, tmp_path):
    model, whole = adapted("Llama", methods.LoRA(rank=8))
    errors = write(update_of(model, whole, base("Llama")), tmp_path / "out", "peft", energy=0.9)
    config = PeftConfig.from_pretrained(tmp_path / "out")
    assert config.rank_pattern == config.alpha_pattern
    assert 0 < max(errors.values()) <= 0.1**0.5
    loaded = PeftModel.from_pretrained(make("Llama", "CausalLM"), tmp_path / "out")
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert len({len(tensor) for key, tensor in stored.items() if "lora_A" in key}) > 1
    for path in ad.named_changes(model):
        layer = loaded.get_submodule(f"base_model.model.{path}")
        left, right = (stored[f"base_model.model.{path}.lora_{which}.weight"] for which in "BA")
        torch.testing.assert_close(layer.get_delta_weight("default"), left @ right)


@pytest.mark.parametrize(("consumer", "rank"), [("vllm", 8), ("llama.cpp", 5)])
def test_one_rank_and_one_alpha_for_who_takes_no_patterns(consumer, rank, base, tmp_path):
    update = decoder_update(base)
    first = next(iter(update.changes))
    update.changes[first] = Delta.added([update.changes[first], Delta(Pair(torch.ones(32, 1), torch.ones(1, 32)))])
    write(update, tmp_path / "out", "peft", consumer=consumer)
    config = PeftConfig.from_pretrained(tmp_path / "out")
    assert (config.r, config.lora_alpha, config.rank_pattern, config.modules_to_save) == (rank, rank, {}, None)
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    for path, delta in update.changes.items():
        left, right = (stored[f"base_model.model.{path}.lora_{which}.weight"] for which in "BA")
        assert (left.shape[1], right.shape[0]) == (rank, rank)
        torch.testing.assert_close(left @ right, delta.factors.left @ delta.factors.right)


def test_the_file_says_where_it_came_from_and_the_config_decomposes_nothing(update, tmp_path):
    write(update, tmp_path / "out", "peft")
    with safe_open(tmp_path / "out" / "adapter_model.safetensors", "pt") as file:
        about = json.loads(file.metadata()["lit_spectral"])
    assert about == {"backbone": update.backbone, "digest": update.digest, "origin": update.origin}
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["init_lora_weights"] is True
    assert config["use_rslora"] is False
    assert config["target_modules"] == sorted(update.changes)


def test_the_card_says_what_was_done_and_the_largest_change(update, tmp_path):
    write(Update(update.changes, update.whole, update.backbone, origin={**update.origin, "data": "a | b"}),
          tmp_path / "out", "peft")  # fmt: skip
    card = (tmp_path / "out" / "README.md").read_text()
    largest = max(float(torch.linalg.matrix_norm(delta.dense(), 2)) for delta in update.changes.values())
    assert f"{largest:.4g}, of " in card
    assert "| method | test |" in card
    assert "| data | a \\| b |" in card


def refused(update, tmp_path, to="peft", **given):
    with pytest.raises(InputError) as refusal:
        write(update, tmp_path / "out", to, **given)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.part").exists()
    return str(refusal.value)


def test_a_change_that_is_not_thin_is_refused_by_peft_with_both_remedies(base, tmp_path):
    line = refused(update_of(*adapted("Llama", OTHERS["HiRA"]), base("Llama")), tmp_path)
    assert "--to merged" in line
    assert "--rank" in line


@pytest.mark.parametrize("consumer", ["vllm", "llama.cpp"])
def test_a_norm_is_nothing_for_them(consumer, base, tmp_path):
    update = decoder_update(base)
    whole = {"model.norm.weight": torch.ones(32)}
    line = refused(Update(update.changes, whole, update.backbone), tmp_path, consumer=consumer)
    assert "model.norm" in line


def test_vllm_takes_a_classifier_and_llama_cpp_does_not(update, tmp_path):
    assert "classifier" in refused(update, tmp_path, consumer="llama.cpp")
    write(update, tmp_path / "out", "peft", consumer="vllm")


def test_a_rank_above_vllms_is_refused(base, tmp_path):
    update = decoder_update(base)
    pair = Pair(torch.ones(32, 513), torch.ones(513, 32))
    first = next(iter(update.changes))
    line = refused(Update({first: Delta(pair)}, backbone=update.backbone), tmp_path, consumer="vllm")
    assert "512" in line


def test_an_adapter_of_another_backbone_is_refused_by_name_and_by_shape(update, base, tmp_path):
    other = Update(update.changes, update.whole, str(base("Llama")))
    assert "no linear map of LlamaForCausalLM" in refused(other, tmp_path)
    path = next(iter(update.changes))
    wide = Update({path: Delta(Pair(torch.ones(7, 1), torch.ones(1, 32)))}, backbone=update.backbone)
    assert "7 x 32" in refused(wide, tmp_path, "merged")


def test_a_folder_with_something_in_it_is_left_alone(update, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    with pytest.raises(InputError, match="not empty"):
        write(update, tmp_path / "out", "merged")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["file"]


def test_without_room_nothing_is_left(update, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lit_spectral.updates.merged.save_file", full)
    assert "No space left on device" in refused(update, tmp_path, "merged")


def copy_of(folder, to):
    to.mkdir()
    for file in Path(folder).iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def test_a_damaged_file_and_a_pickle_are_refused(update, tmp_path):
    damaged = copy_of(update.backbone, tmp_path / "damaged")
    os.truncate(damaged / "model.safetensors", 2000)
    assert "undamaged" in refused(Update(update.changes, backbone=str(damaged)), tmp_path, "merged")
    (damaged / "model.safetensors").rename(damaged / "pytorch_model.bin")
    assert "pickles" in refused(Update(update.changes, backbone=str(damaged)), tmp_path, "merged")


def test_an_index_of_files_elsewhere_is_refused(update, tmp_path):
    folder = copy_of(update.backbone, tmp_path / "elsewhere")
    (folder / "sub").mkdir()
    (folder / "model.safetensors").rename(folder / "sub" / "model.safetensors")
    index = {"weight_map": {"a": "sub/../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert "which is not in its folder" in refused(replace(update, backbone=str(folder)), tmp_path, "merged")


def test_a_sum_that_float16_cannot_hold_is_refused(base, tmp_path):
    folder = base("Llama", torch.float16)
    path = "model.layers.0.self_attn.q_proj"
    huge = Update({path: Delta(Pair(torch.full((32, 1), 1e5), torch.ones(1, 32)))}, backbone=str(folder))
    assert path in refused(huge, tmp_path, "merged")


def test_weights_that_are_codes_are_refused(update, tmp_path):
    coded = copy_of(update.backbone, tmp_path / "coded")
    tensors = load_file(coded / "model.safetensors")
    key = f"{next(iter(update.changes))}.weight"
    save_file(tensors | {key: tensors[key].to(torch.int8)}, coded / "model.safetensors")
    assert "quantised" in refused(Update(update.changes, backbone=str(coded)), tmp_path, "merged")


def test_weights_are_found_with_and_without_the_base_models_prefix(tmp_path):
    model = make("Llama", "CausalLM")
    model.model.save_pretrained(tmp_path / "bare")
    weights = Weights(str(tmp_path / "bare"), "LlamaForCausalLM")
    for path in ("model.layers.1.mlp.up_proj", "layers.1.mlp.up_proj"):
        assert torch.equal(weights[path], model.model.layers[1].mlp.up_proj.weight)


def test_weights_of_conv1d_are_turned_to_out_in(base):
    weights = Weights(str(base("GPT-2")))
    assert torch.equal(
        weights["transformer.h.0.mlp.c_fc"], make("GPT-2", "CausalLM").transformer.h[0].mlp.c_fc.weight.mT
    )


def test_the_others_are_all_but_the_maps_weights(base):
    model = make("BERT", HEADS["BERT"])
    weights = Weights(str(base("BERT")))
    maps = {f"{path}.weight" for path in weights}
    others = dict(weights.others())
    assert others.keys() == model.state_dict().keys() - maps
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in others.items())
    assert weights.about() == {"architecture": "BertForSequenceClassification", "config_labels": model.config.id2label}
