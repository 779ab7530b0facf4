"""The penalty on how far a model is from its base model, against independent computations in float64."""

import functools
import math
import shutil

import lightning.pytorch as pl
import pytest
import torch
import transformers
from conftest import WORDS, scalars
from fits import ROWS, together
from fits import fit as fit_as_one
from lit_spectral.callbacks import RetentionMonitor
from lit_spectral.datamodules import masked_text
from squad_rows import passage, write
from task_rows import data_modules
from test_exact_resume import Keep, check_equal
from test_methods import QUICK, SHORT
from torch.nn import functional as F

from lit_spectral import tasks
from lit_spectral.adapters import Adapter
from lit_spectral.comparison.variants import pairs_of, variants
from lit_spectral.errors import InputError
from lit_spectral.generation import sample
from lit_spectral.methods import LoRA
from lit_spectral.retention import anchoring
from lit_spectral.retention.anchoring import prompt_positions
from lit_spectral.tasks import Anchor, CausalLM

# Of each: the task, the text, and whether the backbone's files have the masked-language head.
CASES = [
    ("CausalLM", "prompts", True),
    ("CausalLM", "self", True),
    ("CausalLM", "corpus", True),
    ("MaskedLM", "corpus", True),
    ("SequenceClassification", "prompts", True),
    ("SequenceClassification", "corpus", True),
    ("SequenceClassification", "prompts", False),
    ("SequenceClassification", "corpus", False),
    ("QuestionAnswering", "prompts", True),
    ("QuestionAnswering", "prompts", False),
]
WEIGHT, EVERY = 3.0, 2


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A text of eight lines of 12 words."""
    generator = torch.Generator().manual_seed(0)
    lines = [" ".join(WORDS[i] for i in torch.randint(len(WORDS), (12,), generator=generator)) for _ in range(8)]
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def data(mrpc_folder, tmp_path_factory):
    prompts, lines = [(2 + i % 5, 1 + i % 4) for i in range(16)], [4 + i % 9 for i in range(40)]
    return data_modules(tmp_path_factory.mktemp("rows"), mrpc_folder, prompts, lines, asked=(8, 12), stride=4)


@pytest.fixture(scope="session")
def headless_folder(backbone_folder, tmp_path_factory):
    """An encoder whose files have no masked-language head."""
    folder = tmp_path_factory.mktemp("headless")
    transformers.AutoModel.from_pretrained(backbone_folder("bert")).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(backbone_folder("bert")).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def anchored(data, backbone_folder, decoder_folder, headless_folder, tmp_path):
    """Fit a task with an anchor, by default LoRA at a rate that moves it far; returns the trainer."""

    def run(kind, anchor, *callbacks, head=True, method=None, batch_size=8, lr=0.05, ckpt_path=None, **options):
        folder = decoder_folder() if kind == "CausalLM" else backbone_folder("bert") if head else headless_folder
        pl.seed_everything(0)
        optimizer = functools.partial(torch.optim.AdamW, lr=lr, weight_decay=0.0)
        task = getattr(tasks, kind)(folder, method or LoRA(rank=4), optimizer=optimizer, anchor=anchor)
        quiet = ["enable_checkpointing", "enable_progress_bar", "enable_model_summary"]
        settings = {"accelerator": "cpu", "max_steps": 2, "limit_val_batches": 0, "log_every_n_steps": 1}
        settings |= {"logger": pl.loggers.TensorBoardLogger(tmp_path), "default_root_dir": tmp_path}
        trainer = pl.Trainer(callbacks=list(callbacks), **dict.fromkeys(quiet, False) | settings | options)
        trainer.fit(task, data(kind, batch_size), ckpt_path=ckpt_path)
        return trainer

    return run


class Look(pl.Callback):
    """What the penalised step of LoRA computes with, and the gradients before and after the penalty."""

    def on_train_start(self, trainer, pl_module):
        self.given, self.batch = [], None
        pl_module.model.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, model, args, kwargs):
        self.given.append({k: v.clone() for k, v in kwargs.items() if isinstance(v, torch.Tensor)})

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batch = batch

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        """Before the task's own hook, which adds the penalty."""
        self.given.clear()
        found = {n: m for n, m in pl_module.encoder.named_modules() if isinstance(m, Adapter)}
        self.factors = {n: [p.detach().double().clone() for p in (m.left, m.right)] for n, m in found.items()}
        self.before = {n: [p.grad.double().clone() for p in (m.left, m.right)] for n, m in found.items()}

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.inputs = self.given[:2]  # of the base and the adapted model
        found = pl_module.encoder.get_submodule
        self.after = {n: [p.grad.double().clone() for p in (found(n).left, found(n).right)] for n in self.factors}


def reference(kind, folder, head, factors, inputs, scored):
    """D in float64 and its gradients by L and R, of models that transformers makes, whose weights are W₀ + L R."""
    makers = {"CausalLM": transformers.AutoModelForCausalLM}
    make = makers.get(kind, transformers.AutoModelForMaskedLM if head else transformers.AutoModel)
    model = make.from_pretrained(folder).double().eval()
    prefix = f"{model.base_model_prefix}." if model.base_model is not model else ""
    leaves = {name: [factor.clone().requires_grad_() for factor in pair] for name, pair in factors.items()}
    weights = dict(model.named_parameters())
    moved = {f"{prefix}{n}.weight": weights[f"{prefix}{n}.weight"].detach() + x @ y for n, (x, y) in leaves.items()}

    def outputs(changed):
        found = torch.func.functional_call(model, changed, kwargs=inputs)
        if head:
            return found.logits.log_softmax(-1)[scored]
        mask = inputs["attention_mask"].double()
        return torch.einsum("nlw,nl->nw", found.last_hidden_state, mask / mask.sum(1, keepdim=True))

    base, adapted = outputs({}).detach(), outputs(moved)
    if head:
        distance = (base.exp() * (base - adapted)).sum(-1).mean()
    else:
        distance = 1 - (F.normalize(adapted) * F.normalize(base)).sum(-1).mean()
    flat = [leaf for pair in leaves.values() for leaf in pair]
    return float(distance.detach()), torch.autograd.grad(distance, flat)


def positions(kind, text, batch, inputs, masks):
    """Which predictions count, by another way than the code's."""
    ids = inputs["input_ids"]
    if kind != "CausalLM":
        return masks[0] != -100
    scored = torch.zeros_like(ids, dtype=torch.bool)
    for row in range(len(ids)):
        length = int(inputs["attention_mask"][row].sum())
        if text == "prompts":
            length = next(i for i, label in enumerate(batch["labels"][row].tolist()) if label != -100)
        for position in range(length - 1):
            scored[row, position] = True
    return scored


@pytest.mark.parametrize(("kind", "text", "head"), CASES)
def test_value_and_gradient_are_those_of_float64(
    kind, text, head, anchored, corpus, backbone_folder, decoder_folder, headless_folder, monkeypatch
):
    masks = []

    def mask(*args):
        found = masked_text.__dict__["really"](*args)
        masks.append(found[1])
        return found

    monkeypatch.setattr(masked_text, "really", masked_text.mask_tokens, raising=False)
    for module in (masked_text, anchoring):
        monkeypatch.setattr(module, "mask_tokens", mask)
    look = Look()
    chosen = corpus if text == "corpus" else text
    settings = Anchor(WEIGHT, EVERY, chosen, limit=8, max_length=16, batch_size=8)

    class Forget(pl.Callback):
        def on_before_optimizer_step(self, *args):
            masks.clear()

    trainer = anchored(kind, settings, look, Forget(), head=head, lr=1.0)
    base, adapted = look.inputs
    assert base.keys() == adapted.keys()
    assert all(torch.equal(base[name], adapted[name]) for name in base)
    folder = decoder_folder() if kind == "CausalLM" else backbone_folder("bert") if head else headless_folder
    scored = positions(kind, text, look.batch, base, masks) if head else None
    value, gradients = reference(kind, folder, head, look.factors, base, scored)
    logged = scalars(trainer)
    assert logged["train/anchor"] == [(1, pytest.approx(value, rel=1e-3))]
    assert value > 1e-4
    added = [a - b for n in look.before for b, a in zip(look.before[n], look.after[n], strict=True)]
    ours, theirs = (torch.cat([g.flatten() for g in each]) for each in (added, gradients))
    assert float((ours - WEIGHT * EVERY * theirs).norm() / ours.norm()) < 2e-3


def test_it_is_retentions_forgetting_loss_less_the_entropy(anchored, corpus):
    """Of the same windows, after two steps: at the third, whose model they have made, it is the same number."""
    settings = Anchor(0.1, 1, corpus, limit=4, max_length=16, batch_size=4)
    monitor = RetentionMonitor({"text": corpus}, every_n_steps=1, every_n_epochs=0, limit=4, max_length=16)
    logged = scalars(anchored("CausalLM", settings, monitor, max_steps=4))
    kept = zip(logged["retention/text/forgetting_loss"], logged["retention/text/base_entropy"], strict=True)
    after = [loss - entropy for (_, loss), (_, entropy) in kept]  # of the start, and after each step but the last two
    assert [value for _, value in logged["train/anchor"]][1:] == pytest.approx(after[1:4], rel=1e-3, abs=1e-6)


def test_the_heavier_it_is_the_nearer_a_model_stays(anchored, corpus):
    ends = []
    for weight in (1e-6, 100.0):
        settings = Anchor(weight, 2, corpus, max_length=16)
        trainer = anchored("CausalLM", settings, batch_size=4, lr=0.01, max_steps=10, max_epochs=-1)
        ends.append(scalars(trainer)["train/anchor"][-1][1])
    assert ends[0] > 3 * ends[1] > 0


def test_it_acts_at_every_so_many_steps_and_is_no_part_of_the_loss(anchored, corpus):
    plain = scalars(anchored("CausalLM", None, max_steps=9, max_epochs=-1))
    logged = scalars(anchored("CausalLM", Anchor(10.0, 4, corpus, max_length=16), max_steps=9, max_epochs=-1))
    assert [step for step, _ in logged["train/anchor"]] == [3, 7]
    # Until the fourth step has been made both are one run, and the fourth's loss is of the model before it.
    assert logged["train/loss"][:4] == plain["train/loss"][:4]
    assert logged["train/loss"][4:] != plain["train/loss"][4:]


def test_without_weight_nothing_changes(train, backbone_folder):
    def weights(anchor):
        task = tasks.SequenceClassification(backbone_folder("bert"), LoRA(rank=2, dropout=0.1), anchor=anchor)
        trainer = train(None, task=task, max_epochs=1)
        assert "train/anchor" not in trainer.callback_metrics
        return [p.detach().clone() for p in trainer.lightning_module.model.parameters() if p.requires_grad]

    assert all(torch.equal(a, b) for a, b in zip(weights(Anchor(weight=0)), weights(None), strict=True))


@pytest.mark.parametrize(
    ("kind", "text"), [("CausalLM", "prompts"), ("CausalLM", "self"), ("SequenceClassification", "corpus")]
)
def test_a_run_that_was_stopped_goes_on_as_one_that_was_not(kind, text, anchored, corpus, tmp_path):
    """From between two penalised steps, with accumulation; texts and rows are drawn again as they were."""
    settings = Anchor(10.0, 2, corpus if text == "corpus" else text, limit=12, max_length=16, batch_size=3)
    options = {
        "max_steps": 6,
        "max_epochs": -1,
        "accumulate_grad_batches": 2,
        "batch_size": 4,
        "gradient_clip_val": 1.0,
    }
    options["method"] = LoRA(rank=4, dropout=0.1)
    logs = functools.partial(pl.loggers.TensorBoardLogger, tmp_path, "logs")
    whole = anchored(
        kind, settings, Keep(tmp_path / "kept"), logger=logs(version="whole"), enable_checkpointing=True, **options
    )
    folder = shutil.copytree(whole.log_dir, tmp_path / "logs" / "rest")
    path = shutil.copy(tmp_path / "kept" / "3.ckpt", folder)
    check_equal(anchored(kind, settings, logger=logs(version="rest"), ckpt_path=path, **options), whole)
    assert len(scalars(whole)["train/anchor"]) == 3


def test_prompts_of_micro_batches_are_those_of_the_step(anchored):
    class Gradients(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            self.found = {n: p.grad.clone() for n, p in pl_module.model.named_parameters() if p.grad is not None}

    found, values = [], []
    for batch_size, accumulated in ((16, 1), (2, 8)):
        gradients = Gradients()
        options = {"accumulate_grad_batches": accumulated, "max_epochs": -1, "gradient_clip_val": 0.5}
        options |= {"batch_size": batch_size, "lr": 0.1}
        trainer = anchored("CausalLM", Anchor(100.0, 2), gradients, **options)
        found.append(torch.cat([g.flatten() for g in gradients.found.values()]))
        values.append(scalars(trainer)["train/anchor"])
    assert float((found[0] - found[1]).norm() / found[0].norm()) < 1e-3
    assert values[0] == [(1, pytest.approx(values[1][0][1], rel=1e-3))]
    assert float(found[0].norm()) == pytest.approx(0.5, rel=1e-4)  # so it is clipped with the task's


@pytest.mark.slow
def test_two_processes_are_held_as_one(decoder_folder, corpus, tmp_path, monkeypatch):
    """Under DDP and with the backbone in shards, on text that they share and on prompts of their own."""
    monkeypatch.setenv("LIT_SPECTRAL_CACHE", "")  # to be put back; `fit` sets it
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", ROWS), ("validation", 5)):
        rows = [{"q": passage(generator, 2 + i % 3), "a": passage(generator, 1 + i % 4)} for i in range(count)]
        write(tmp_path, split, rows)
    shutil.copy(corpus, tmp_path / "text.txt")
    base = {"backbone": decoder_folder(), "data": str(tmp_path), "method": "LoRA", "cache": str(tmp_path / "cache")}
    fits = {}
    for name, text in (("corpus", corpus), ("prompts", "prompts")):
        for strategy, size in (("auto", 4), ("ddp", 2), ("fsdp2", 2)):
            anchor = {"weight": 30.0, "every": 2, "text": text, "limit": 6, "max_length": 12, "batch_size": size}
            out = str(tmp_path / f"{name} {strategy}")
            fits[name, strategy] = base | {"strategy": strategy, "out": out, "anchor": anchor}
    together(tmp_path, [settings for (_, strategy), settings in fits.items() if strategy != "auto"])
    for name in ("corpus", "prompts"):
        fit_as_one(**fits[name, "auto"])
        moved = {
            key: torch.load(f"{settings['out']}.0.pt")["moved"] for key, settings in fits.items() if key[0] == name
        }
        one, *others = (torch.cat([tensor.flatten() for tensor in tensors.values()]) for tensors in moved.values())
        assert [float((other - one).norm() / one.norm()) < 1e-4 for other in others] == [True, True]
    one, other = (torch.load(f"{fits[name, 'auto']['out']}.0.pt")["metrics"] for name in ("corpus", "prompts"))
    assert one["train/anchor"] != other["train/anchor"] > 1e-6


REFUSED = {"FullFineTuning", "BitFit", "prompt tuning", "P-tuning", "prefix tuning"}


class Disturb(pl.Callback):
    """Changes whatever is trained, by much, since a random backbone's weights are small."""

    @torch.no_grad()
    def on_train_start(self, trainer, pl_module):
        generator = torch.Generator().manual_seed(1)
        for parameter in pl_module.encoder.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK | REFUSED else pytest.mark.slow) for name in SHORT]
)
def test_every_method_whose_adapters_can_be_passed_over_is_held(name, anchored):
    options = {"method": SHORT[name], "max_steps": 3}  # in fewer AdaLoRA does not get to its ranks
    run = functools.partial(anchored, "SequenceClassification", Anchor(1.0, 3), Disturb(), **options)
    if name in REFUSED:
        with pytest.raises(InputError, match=r"model.anchor: .* (trains the backbone's own|learned prompt of)"):
            run()
        return
    ((_, value),) = scalars(run())["train/anchor"]
    assert value > 1e-8  # else it is exactly 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": -1}, "model.anchor.weight must be at least 0"),
        ({"weight": math.nan}, "model.anchor.weight must be at least 0"),
        ({"every": 0}, "model.anchor.every must be at least 1"),
        ({"batch_size": 0}, "model.anchor.batch_size must be at least 1"),
        ({"max_length": 1}, "model.anchor.max_length must be at least 2"),
        ({"text": ""}, "model.anchor.text is empty"),
        ({"text": "self", "limit": None}, "model.anchor.limit: of generated texts there is no end"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(InputError, match=message):
        Anchor(**settings)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("SequenceClassification", {"text": "self"}, "model.anchor.text: self is for decoders"),
        ("MaskedLM", {"text": "self"}, "model.anchor.text: self is for decoders"),
        ("MaskedLM", {"text": "prompts"}, "model.anchor.text: masked words have no prompts"),
        ("CausalLM", {"text": "nowhere"}, "model.anchor.text: there is no nowhere"),
        ("CausalLM", {"text": "CORPUS", "max_length": 10**5}, r"model.anchor.max_length: 100000 is above the \d+ that"),
    ],
)
def test_texts_that_are_none_for_a_task_are_refused(kind, settings, message, anchored, corpus):
    settings = {name: corpus if value == "CORPUS" else value for name, value in settings.items()}
    with pytest.raises(InputError, match=message):
        anchored(kind, Anchor(**settings))


def test_rows_without_prompts_are_refused(command, tmp_path):
    (tmp_path / "train.jsonl").write_text('{"q": "", "a": "the cat sat"}\n' * 8)
    (tmp_path / "validation.jsonl").write_text('{"q": "", "a": "the cat sat"}\n')
    flags = ["--data=PromptedText", f"--data.path={tmp_path}", "--data.prompt={q}", "--data.answer={a}"]
    with pytest.raises(InputError, match=r"model.anchor.text: the rows have no prompts apart from what is trained on"):
        command("fit", *flags, "--model.anchor.weight=1")


def test_positions_of_packed_prompts():
    """Two examples, of 3 + 2 and 2 + 1 tokens, and two tokens of padding; the first label of each is never scored."""
    labels = torch.tensor([[-100, -100, -100, 7, 8, -100, -100, 9, -100, -100]])
    batch = {"labels": labels, "position_ids": torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 0, 0]])}
    assert prompt_positions(batch)[0].nonzero().flatten().tolist() == [0, 1, 5]


def test_positions_leave_padding_and_ends_of_answers_out():
    labels = torch.tensor([[-100, -100, 5, 6, -100, -100], [-100, -100, -100, -100, 5, 6]])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    assert prompt_positions({"labels": labels, "attention_mask": mask}).nonzero().tolist() == [
        [0, 0], [1, 0], [1, 1], [1, 2]
    ]  # fmt: skip


@pytest.fixture
def writer(decoder_folder):
    """A decoder that is sure of some tokens, and its tokenizer."""
    torch.manual_seed(0)
    task = CausalLM(decoder_folder(), LoRA(rank=2))
    task.configure_model()
    with torch.no_grad():
        task.model.lm_head.weight.mul_(40)
    return task.model.eval(), transformers.AutoTokenizer.from_pretrained(decoder_folder())


def test_a_models_own_text_is_drawn_from_its_predictions(writer):
    model, tokenizer = writer
    model.generation_config.update(top_k=1, temperature=0.1)  # of the files', which don't count
    torch.manual_seed(0)
    texts = sample(model, tokenizer, 1500, 2)["input_ids"]
    assert (texts[:, 0] == tokenizer.bos_token_id).all()
    with torch.no_grad():
        expected = 1500 * model(texts[:1, :1]).logits[0, 0].softmax(-1)
    found = torch.bincount(texts[:, 1], minlength=64)
    assert float(((found - expected) / (expected + 1).sqrt()).abs().max()) < 5
    assert (found > 0).sum() > 10


def test_a_models_own_text_ends_where_it_says_so(writer):
    model, tokenizer = writer
    torch.manual_seed(0)
    texts = sample(model, tokenizer, 64, 30)
    lengths, tokens = set(), {tokenizer.eos_token_id, model.generation_config.eos_token_id}
    for ids, mask in zip(texts["input_ids"].tolist(), texts["attention_mask"].tolist(), strict=True):
        ends = [i for i, token in enumerate(ids) if token in tokens and i > 0]
        length = ends[0] + 1 if ends else len(ids)
        assert mask == [1] * length + [0] * (len(ids) - length)
        lengths.add(length)
    assert len(lengths) > 5


@pytest.mark.parametrize("text", ["self", "prompts", "CORPUS"])
def test_a_decoder_is_held_by_the_command_line(text, command, corpus, tmp_path):
    (tmp_path / "train.jsonl").write_text('{"q": "the dog", "a": "sat on the mat"}\n' * 8)
    (tmp_path / "validation.jsonl").write_text('{"q": "the dog", "a": "sat on the mat"}\n')
    flags = ["--data=PromptedText", f"--data.path={tmp_path}", "--data.prompt={q}", "--data.answer={a}"]
    flags += ["--data.batch_size=2", "--model.anchor.every=2", "--model.anchor.limit=4", "--model.anchor.max_length=12"]
    done = command("fit", *flags, f"--model.anchor.text={corpus if text == 'CORPUS' else text}")
    logged = scalars(done.trainer)["train/anchor"]
    assert [step for step, _ in logged] == [1, 3]
    assert logged[-1][1] > 0


def test_a_weight_is_swept():
    found = variants(["LoRA"], pairs_of(["--model.anchor.weight", "0.1,1", "--model.anchor.text", "self"]))
    assert [variant.name for variant in found] == ["LoRA weight=0.1", "LoRA weight=1"]
    assert found[1].flags() == ["--model.anchor.weight=1", "--model.anchor.text=self", "--model.method=LoRA"]


def test_it_is_set_by_flags_and_in_yaml(fit, tmp_path):
    """A mistake in a flag is a line that names it."""
    (tmp_path / "anchor.yaml").write_text("model: {init_args: {anchor: {every: 1, text: prompts}}}\n")
    flags = [f"--config={tmp_path}/anchor.yaml", "--model.anchor.weight=0.1", "--trainer.max_steps=2"]
    done = fit("lora_roberta_mrpc", *flags)
    assert done.model.anchor == Anchor(0.1, 1, "prompts")
    assert [step for step, _ in scalars(done.trainer)["train/anchor"]] == [0, 1]
    with pytest.raises(InputError, match=r"model.anchor.wieght: Anchor has no such setting; did you mean weight\?"):
        fit("lora_roberta_mrpc", "--model.anchor.wieght=1")
