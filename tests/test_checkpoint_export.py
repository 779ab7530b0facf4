"""Checkpoints out of updates: whoever trained them, the task that is loaded computes what they do."""

import copy
import json

import peft
import pytest
import torch
import transformers
from conftest import WORDS, move
from crossing import crossed
from harness_tasks import data  # noqa: F401 (a fixture)
from stored import TASKS, assert_near, outputs, store, task_of
from test_methods import OURS

from lit_spectral import cli
from lit_spectral.checkpoint import load
from lit_spectral.errors import InputError
from lit_spectral.methods import BitFit, FCLoRA, HiRA, LoRA
from lit_spectral.updates import Delta, Pair, Update
from lit_spectral.updates.exports import write
from lit_spectral.updates.sources import read

LOW_RANK = [name for name in OURS if not name.startswith(("HiRA", "MoRA", "Full", "BitFit"))]


@pytest.fixture
def stored(backbone_folder, tmp_path):
    """A task's checkpoint by a method, and its model."""

    def make(method, name="classes, BERT", file="a.ckpt"):
        task = task_of(name, method, backbone_folder)
        return store(task, tmp_path / file), task.model

    return make


@pytest.fixture
def export(tmp_path):
    def run(source, *flags, verb="export"):
        out = str(tmp_path / f"{verb}.ckpt")
        cli.main([verb, *([source] if isinstance(source, str) else source), "--to", "checkpoint", *flags,
                  "--output", out])  # fmt: skip
        return out

    return run


@pytest.mark.parametrize(("name", "task"), crossed(LOW_RANK, TASKS, also=["FCLoRA"]))
def test_loaded_it_computes_what_its_source_does(stored, export, name, task):
    source, model = stored(OURS[name], task)
    out = load(export(source))
    assert type(out.method) is LoRA
    assert_near(outputs(out.model), outputs(model))
    assert sum(parameter.requires_grad for parameter in out.model.parameters())


def test_read_again_it_is_the_same_update(stored, export):
    source, _ = stored(FCLoRA(rank=4))
    before, after = read(source), read(export(source))
    assert after.digest == before.digest
    for path, delta in before.changes.items():
        assert_near(after.changes[path].dense(), delta.dense())
    assert all(torch.equal(after.whole[name], tensor) for name, tensor in before.whole.items())
    kept = ("method", "architecture", "config_labels", "steps", "dtype")
    assert {key: after.origin[key] for key in kept} == {key: before.origin[key] for key in kept}
    assert after.origin["export"].startswith("lit-spectral export")


@pytest.fixture
def theirs(backbone_folder, tmp_path):
    """An adapter's folder that peft alone wrote, with moved factors, and peft's model."""

    def make(kind, architecture, targets, **settings):
        torch.manual_seed(1)
        auto = {
            "SEQ_CLS": transformers.AutoModelForSequenceClassification,
            "CAUSAL_LM": transformers.AutoModelForCausalLM,
            "QUESTION_ANS": transformers.AutoModelForQuestionAnswering,
        }
        model = auto[kind].from_pretrained(backbone_folder(architecture), pad_token_id=0)
        wrapped = peft.get_peft_model(
            model, peft.LoraConfig(**{"task_type": kind, "target_modules": targets, "r": 4, **settings})
        )
        move(wrapped, 0.1)
        wrapped.save_pretrained(tmp_path / "adapter")
        return str(tmp_path / "adapter"), wrapped

    return make


PATTERNS = {"rank_pattern": {"0.self_attn.q_proj": 2, "v_proj": 7}, "alpha_pattern": {"q_proj": 3}, "use_rslora": True}
THEIRS = {
    "a decoder, with patterns": ("CAUSAL_LM", "llama", ["q_proj", "v_proj"], PATTERNS),
    "Conv1D": ("CAUSAL_LM", "gpt2", ["c_attn"], {"fan_in_fan_out": True}),
    "classes": ("SEQ_CLS", "llama", ["q_proj", "v_proj"], {}),
    "answers": ("QUESTION_ANS", "deberta", ["query_proj"], {}),
}


@pytest.mark.parametrize(("kind", "architecture", "targets", "settings"), THEIRS.values(), ids=THEIRS)
def test_of_an_adapter_of_pefts_it_computes_what_peft_does(theirs, export, kind, architecture, targets, settings):
    folder, wrapped = theirs(kind, architecture, targets, **settings)
    assert_near(outputs(load(export(folder)).model), outputs(wrapped))


def test_adapters_of_other_ranks_and_methods_are_merged_into_one(stored, export):
    one, _ = stored(LoRA(rank=3), "next, Llama")
    other, _ = stored(FCLoRA(rank=4), "next, Llama", "b.ckpt")
    found, first, second = (read(each) for each in (export([one, other], verb="merge"), one, other))
    for path, delta in found.changes.items():
        assert_near(delta.dense(), first.changes[path].dense() + second.changes[path].dense())


def test_mended_it_is_scaled(stored, export):
    source, _ = stored(LoRA(rank=3))
    found, before = read(export(source, "--scale", "0.5", verb="mend")), read(source)
    for path, delta in found.changes.items():
        assert_near(delta.dense(), 0.5 * before.changes[path].dense())


def test_what_is_cut_off_is_noted_by_layer(stored, export, capsys):
    source, _ = stored(HiRA(rank=2))
    out = export(source, "--rank", "3")
    assert "cut off" in capsys.readouterr().out
    errors = read(out).origin["left_out"]
    assert errors.keys() == read(source).changes.keys()
    assert load(out).method.rank == 3


def test_changes_of_more_factors_than_a_rank_are_kept_whole(stored, tmp_path, backbone_folder):
    source, _ = stored(LoRA(rank=3), "next, Llama")
    update = read(source)
    wide = {path: Delta.added([delta] * 12) for path, delta in update.changes.items()}  # 36 columns in 32 x 32
    write(Update(wide, backbone=update.backbone, origin=update.origin), tmp_path / "out.ckpt", "checkpoint")
    for path, delta in read(str(tmp_path / "out.ckpt")).changes.items():
        assert_near(delta.dense(), wide[path].dense())


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(" ".join(WORDS[i:]) for i in range(len(WORDS) - 4)) + "\n")
    return str(tmp_path / "text.txt")


def test_retain_measures_it_as_its_source(stored, export, text, tmp_path):
    source, _ = stored(LoRA(rank=3), "next, Llama")
    reports = []
    for checkpoint in (source, export(source)):
        file = tmp_path / "report.json"
        flags = ["--corpora", text, "--max_length", "16", "--output_path", str(file)]
        cli.main(["retain", "--checkpoint", checkpoint, *flags])
        reports.append(json.loads(file.read_text(encoding="utf-8"))["retention"])
    assert reports[0] == pytest.approx(reports[1], rel=1e-4)


def test_evaluate_measures_it_as_its_source(backbone_folder, decoder_folder, export, data, tmp_path):
    task = task_of("next, Llama", LoRA(rank=3), decoder_folder)
    source = store(task, tmp_path / "a.ckpt")
    results = []
    for checkpoint in (source, export(source)):
        file = tmp_path / f"{len(results)}.json"
        cli.main(["evaluate", "--checkpoint", checkpoint, "--tasks", "tiny_text", "--include_path", str(data),
                  "--output_path", str(file)])  # fmt: skip
        results.append(json.loads(file.read_text(encoding="utf-8"))["results"]["tiny_text"]["word_perplexity,none"])
    assert results[0] == pytest.approx(results[1], rel=1e-4)


@pytest.fixture
def of_mrpc(backbone_folder, tmp_path, export):
    """Of two classes, as the rows of the fixture `fit` have."""
    from lit_spectral.tasks import SequenceClassification

    task = SequenceClassification(backbone_folder("roberta"), FCLoRA(rank=4), num_labels=2, metrics=["accuracy"])
    task.configure_model()
    return export(store(task, tmp_path / "a.ckpt"))


SAME = ["--model.method=LoRA", "--model.method.rank=4", "--trainer.logger=false"]


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_validate_and_test_take_it(fit, of_mrpc, verb):
    done = fit("fclora_roberta_mrpc", *SAME, f"--ckpt_path={of_mrpc}", command=verb)
    assert any(name.endswith("/accuracy") for name in done.trainer.callback_metrics)


def test_a_fit_that_would_go_on_from_it_is_refused_with_the_remedy(fit, of_mrpc):
    with pytest.raises(InputError, match=r"without the optimizer's state.*by --model\.method\.start_from$"):
        fit("fclora_roberta_mrpc", *SAME, f"--ckpt_path={of_mrpc}")


@pytest.fixture
def refused(stored, tmp_path):
    """Write an update that was changed; returns the one line. There is no file then."""

    def run(change, method=None, name="classes, BERT", **how):
        update = read(stored(method or LoRA(rank=3), name)[0])
        changes, whole = dict(update.changes), dict(update.whole)
        origin = copy.deepcopy(dict(update.origin))
        change(changes, whole, origin)
        found = Update(changes, whole, update.backbone, update.digest, origin)
        with pytest.raises(InputError) as error:
            write(found, tmp_path / "out.ckpt", "checkpoint", **how)
        assert not list(tmp_path.glob("out*"))
        return str(error.value)

    return run


def pair(out, into, rank=2):
    return Delta(Pair(torch.ones(out, rank), torch.ones(rank, into)))


def test_whole_tensors_that_lora_leaves_alone_are_refused(refused):
    name = "bert.encoder.layer.0.output.LayerNorm.bias"
    said = refused(lambda changes, whole, origin: whole.update({name: torch.ones(32)}))
    assert said == (
        f"export: {name} was trained whole, which LoRA of a SequenceClassification leaves as it is; give --to merged"
    )


def test_biases_alone_are_refused(refused):
    assert "is no LoRA; give --to merged" in refused(lambda *given: None, BitFit())


def test_changes_of_full_rank_are_refused(refused):
    assert "give --to merged, or --rank or --energy for the nearest one" in refused(lambda *given: None, HiRA(rank=2))


def test_a_head_that_nobody_has_is_refused(refused):
    said = refused(lambda changes, whole, origin: whole.pop("classifier.weight"))
    assert "neither the adapter nor the backbone has classifier.weight, which is new in a SequenceClass" in said


def test_a_change_of_the_head_is_refused(refused):
    said = refused(lambda changes, whole, origin: changes.update({"lm_head": pair(64, 32)}), name="next, Llama")
    assert "lm_head is no part of the encoder, which tasks adapt; give --to peft or merged" in said


def test_a_rank_that_not_all_maps_can_have_is_refused(backbone_folder, tmp_path):
    changes = {
        "electra.embeddings_project": pair(32, 16),
        "electra.encoder.layer.0.attention.self.query": pair(32, 32, 20),
    }
    update = Update(changes, backbone=backbone_folder("electra"), origin={"architecture": "ElectraForMaskedLM"})
    with pytest.raises(InputError, match=r"the largest rank is 20, and electra\.embeddings_project can have no more"):
        write(update, tmp_path / "out.ckpt", "checkpoint")


def test_an_architecture_of_no_task_is_refused(refused):
    def change(changes, whole, origin):
        whole.clear()
        origin["architecture"] = "BertForTokenClassification"

    assert "there is no task for BertForTokenClassification; give --to peft or merged" in refused(change)


def test_an_encoder_is_no_causal_lm(refused):
    def change(changes, whole, origin):
        whole.clear()
        origin["architecture"] = "BertLMHeadModel"

    assert "is an encoder (bert)" in refused(change)


@pytest.mark.parametrize("verb", ["export", "merge", "mend"])
@pytest.mark.parametrize(("make", "said"), [("touch", "is there already; give a new file"),
                                            ("mkdir", "is a folder, and a checkpoint is a file")])  # fmt: skip
def test_what_is_there_is_not_written_over(verb, make, said, tmp_path, capsys):
    place = tmp_path / "a.ckpt"
    getattr(place, make)()
    flags = ["--scale", "1"] if verb == "mend" else []
    with pytest.raises(SystemExit):
        cli.main([verb, "nowhere", *flags, "--to", "checkpoint", "--output", str(place)])
    assert said in capsys.readouterr().err
