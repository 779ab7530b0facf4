"""Made-up rows for every task, and the data modules that read them."""

import json

import torch
from lit_spectral.datamodules import GLUE, MaskedText, PromptedText, SQuAD
from squad_rows import passage, questions, write


def data_modules(root, mrpc_folder, prompts, lines, asked, stride, masked=MaskedText):
    """From a task and the size of a batch to a data module, over rows that are written to a folder.

    `prompts` are pairs of numbers of words, of a prompt and its answer, `lines` numbers of words, `asked` how many
    questions there are and the words of their longest context.
    """
    generator = torch.Generator().manual_seed(0)
    rows = [{"q": passage(generator, given), "a": passage(generator, said)} for given, said in prompts]
    for split in ("train", "validation"):
        (root / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "lines.txt").write_text("\n".join(passage(generator, words) for words in lines))
    (root / "squad").mkdir()
    for seed, split in enumerate(("train", "validation")):
        write(root / "squad", split, questions(asked[0], seed, longest=asked[1]))

    def module(task, batch_size):
        size = {"batch_size": batch_size, "max_length": 40}
        return {
            "SequenceClassification": lambda: GLUE("mrpc", mrpc_folder, **size),
            "QuestionAnswering": lambda: SQuAD(str(root / "squad"), stride=stride, max_query_length=4, **size),
            "MaskedLM": lambda: masked(str(root / "lines.txt"), validation_fraction=0.5, **size),
            "CausalLM": lambda: PromptedText(str(root), "{q}", "{a}", **size),
        }[task]()

    return module
