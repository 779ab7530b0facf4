"""Updates taken away: peft and transformers load what is written, and compute what the adapted model does."""

import json

import pytest
import torch
import transformers
from exporting import HEADS, LOW_RANK, OTHERS, adapted, assert_equal, base, decoder_update, logits, update, update_of  # noqa: F401 (fixtures)
from peft import AutoPeftModelForSequenceClassification, LoraConfig, PeftConfig, PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from zoo.models import make

from lit_spectral import adapters as ad
from lit_spectral import methods
from lit_spectral.updates import Delta, Pair, Update
from lit_spectral.updates.exports import write

pytestmark = pytest.mark.filterwarnings("ignore")


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


def test_of_what_the_config_leaves_out_peft_takes_its_defaults(update, tmp_path):
    write(update, tmp_path / "out", "peft")
    found = PeftConfig.from_pretrained(tmp_path / "out").to_dict()
    defaults = LoraConfig(target_modules=sorted(update.changes)).to_dict()
    asked = {"base_model_name_or_path", "inference_mode", "lora_alpha", "modules_to_save", "r", "task_type"}
    assert {key for key, value in found.items() if value != defaults[key]} <= asked


def test_the_card_says_what_was_done_and_the_largest_change(update, tmp_path):
    write(Update(update.changes, update.whole, update.backbone, origin={**update.origin, "data": "a | b"}),
          tmp_path / "out", "peft")  # fmt: skip
    card = (tmp_path / "out" / "README.md").read_text()
    largest = max(float(torch.linalg.matrix_norm(delta.dense(), 2)) for delta in update.changes.values())
    assert f"{largest:.4g}, of " in card
    assert "| method | test |" in card
    assert "| data | a \\| b |" in card
