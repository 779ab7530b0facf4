"""Made-up rows in SQuAD's form, and fixtures that read them."""

import json

import pytest
import torch
from conftest import WORDS
from lit_spectral.datamodules import SQuAD


def passage(generator, length):
    return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (length,), generator=generator))


def questions(count, seed, longest=60):
    """Contexts of up to `longest` words, of which 1 to 3 are the answer; every third has none."""
    generator = torch.Generator().manual_seed(seed)
    for number in range(count):
        context = passage(generator, 4 + int(torch.randint(longest - 3, (1,), generator=generator)))
        words = context.split()
        texts, places = [], []
        for _ in range(2 if number % 3 else 0):
            at = int(torch.randint(len(words) - 3, (1,), generator=generator))
            texts.append(" ".join(words[at : at + 1 + number % 3]))
            places.append(len(" ".join([*words[:at], ""])))
        row = {"id": f"q{number}", "title": "", "context": context, "question": passage(generator, 1 + number % 2)}
        yield row | {"answers": {"text": texts, "answer_start": places}}


def write(folder, split, rows):
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path):
    """A folder in SQuAD v2.0's form, with contexts longer than a window."""
    for seed, (split, count) in enumerate({"train": 24, "validation": 15}.items()):
        write(tmp_path, split, questions(count, seed))
    return tmp_path


SHORT = {"max_length": 40, "stride": 6, "max_query_length": 12}


@pytest.fixture
def read(folder, backbone_folder):
    """SQuAD over the folder, set up for training."""

    def make(stage="fit", **options):
        data = SQuAD(str(folder), **{"tokenizer": backbone_folder("bert"), "batch_size": 4} | SHORT | options)
        data.setup(stage)
        return data

    return make
