"""What must hold of every architecture in every task that it has a head for, from files to metrics."""

from contextlib import nullcontext

import lightning.pytorch as pl
import pytest
import transformers
from crossing import crossed
from task_rows import data_modules

from lit_spectral import tasks
from lit_spectral.errors import InputError
from lit_spectral.methods import FCLoRA, LoRA, Peft
from lit_spectral.tasks.padding_check import check_padding
from zoo.models import MODELS, TASKS, config, has_task, make

PAIRS = [(name, task) for name in MODELS for task in TASKS if has_task(name, task)]
CLASSIFIERS = [name for name, task in PAIRS if task == "SequenceClassification"]
# One of each kind on every run, the others where there is time.
QUICK = {"BERT", "RoBERTa", "XLNet", "T5", "GPT-2", "Llama", "Gemma 3, with vision"}
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="session")
def stored(backbone_folder, tmp_path_factory):
    """From an architecture and a task to a folder of it, with a tokenizer and config of these settings."""
    root = tmp_path_factory.mktemp("zoo")

    def folder(name, task, tokenizer=None, config=None):
        path = root / f"{name}-{task}-{tokenizer}-{config}".replace("/", "-").replace(" ", "")[:200]
        if not path.exists():
            model = make(name, task)
            for key, value in (config or {}).items():
                setattr(model.config, key, value)
            model.save_pretrained(path)
            words = transformers.AutoTokenizer.from_pretrained(backbone_folder("bert"))
            words.eos_token = words.sep_token
            for key, value in (tokenizer or {}).items():
                setattr(words, key, value)
            words.save_pretrained(path)
        return str(path)

    return folder


@pytest.fixture(scope="session")
def rows(mrpc_folder, tmp_path_factory):
    """From a task to its data module with rows of many lengths."""
    root = tmp_path_factory.mktemp("rows")
    prompts, lines = [(1 + i % 13, 1 + i % 4) for i in range(24)], [2 + i % 15 for i in range(40)]
    modules = data_modules(root, mrpc_folder, prompts, lines, asked=(8, 20), stride=4)
    return lambda task: modules(task, 8)


@pytest.fixture
def trainer(tmp_path):
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    return pl.Trainer(accelerator="cpu", max_steps=2, num_sanity_val_steps=0, limit_val_batches=1.0,
                      default_root_dir=tmp_path, **quiet)  # fmt: skip


def losses(trainer, task, data):
    """Validation losses in batches of 1, 5 and 33 rows; random heads will do."""
    task.is_trained = True
    found = []
    for data.eval_batch_size in (1, 5, 33):
        found.append(trainer.validate(task, data, verbose=False)[0]["val/loss"])
    return found


@pytest.mark.parametrize(
    ("name", "kind"),
    [pytest.param(*pair, marks=[] if pair[0] in QUICK else pytest.mark.slow) for pair in PAIRS],
)
@pytest.mark.slow
def test_defaults_train_and_a_row_alone_is_the_row_in_any_batch(name, kind, stored, rows, trainer):
    task, data = getattr(tasks, kind)(stored(name, kind), FCLoRA()), rows(kind)
    trainer.fit(task, data)
    assert trainer.global_step == 2
    first, *others = losses(trainer, task, data)
    assert others == pytest.approx([first] * 2, rel=1e-5)


PADDING = {
    "on the left": ({"padding_side": "left"}, {}),
    "another token in the config": ({}, {"pad_token_id": 9}),
    "a token of the config alone": ({"pad_token": None}, {"pad_token_id": 5}),
    "no token at all": ({"pad_token": None}, {"pad_token_id": None}),
}
# Some count positions from the padding's number, some take the end of a text, which then pads, for its place.
NEED_A_TOKEN = {"RoBERTa", "XLM-R", "T5", "BART"}
PADDED = [
    pytest.param(*pair.values, marks=[] if pair.values[0] in QUICK and not pair.marks else pytest.mark.slow)
    for pair in crossed(sorted(CLASSIFIERS, key=lambda name: name not in QUICK), PADDING, also=["GPT-2"])
]


@pytest.mark.parametrize(("name", "how"), PADDED)
def test_a_class_does_not_depend_on_how_rows_are_padded(name, how, stored, rows, trainer):
    folder = stored(name, "SequenceClassification", *PADDING[how])
    task, data = tasks.SequenceClassification(folder, LoRA(rank=4)), rows("SequenceClassification")
    if how == "no token at all" and name in NEED_A_TOKEN:
        with pytest.raises(InputError, match="can't read rows padded with"):
            losses(trainer, task, data)
    else:
        first, *others = losses(trainer, task, data)
        assert others == pytest.approx([first] * 2, rel=1e-5)


PROMPTS = {
    "prompt tuning": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3},
    "P-tuning": {"peft_type": "P_TUNING", "num_virtual_tokens": 3, "encoder_hidden_size": 8},
    "prefix tuning": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 3},
}
PROMPTED = [
    ("BERT", "SequenceClassification"),
    ("BERT", "QuestionAnswering"),
    ("BERT", "MaskedLM"),
    ("GPT-2", "CausalLM"),
    ("Llama", "CausalLM"),
]


@pytest.mark.parametrize(("pair", "prompt"), crossed(PROMPTED, PROMPTS))
def test_prompts_of_peft_leave_rows_independent(pair, prompt, stored, rows, trainer):
    name, kind = pair
    task = getattr(tasks, kind)(stored(name, kind), Peft(config=dict(PROMPTS[prompt])))
    first, *others = losses(trainer, task, rows(kind))
    assert others == pytest.approx([first] * 2, rel=1e-5)


@pytest.mark.parametrize("name", ["GPT-2", "Llama"])
def test_where_prompts_hide_a_rows_end_rows_go_alone_or_not_at_all(name, stored, rows, trainer):
    folder = stored(name, "SequenceClassification")
    task = tasks.SequenceClassification(folder, Peft(config=PROMPTS["prompt tuning"]))
    data, task.is_trained = rows("SequenceClassification"), True
    with pytest.raises(InputError, match=r"depends on the padding .* --data.batch_size 1 --data.eval_batch_size 1"):
        trainer.validate(task, data, verbose=False)
    data.batch_size = data.eval_batch_size = 1
    assert trainer.validate(task, data, verbose=False)[0]["val/loss"] > 0


def test_many_classes_are_not_taken_for_tokens(backbone_folder):
    """More of them than the tokens of the texts that are tried."""
    made = config("GPT-2")
    made.num_labels = 150
    model = transformers.AutoModelForSequenceClassification.from_config(made)
    assert check_padding(model, transformers.AutoTokenizer.from_pretrained(backbone_folder("bert"))) == "right"


@pytest.mark.parametrize(("padded_alone", "refused"), [(False, False), (True, True)])
def test_a_models_own_rounding_is_not_taken_for_padding(padded_alone, refused, backbone_folder):
    """Larger than most models' in any batch of several rows, or beside padding alone."""
    model = transformers.AutoModelForSequenceClassification.from_config(config("BERT"))

    def rounded(module, given, kwargs, outputs):
        if len(kwargs["input_ids"]) > 1 and not (padded_alone and kwargs["attention_mask"].all()):
            outputs.logits = outputs.logits + 3e-4 * outputs.logits.std()

    model.register_forward_hook(rounded, with_kwargs=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(backbone_folder("bert"))
    with pytest.raises(InputError, match="depends on the padding") if refused else nullcontext():
        check_padding(model, tokenizer)
