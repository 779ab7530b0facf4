"""Metrics of generated text against their definitions, worked out here."""

import math
import shutil

import pytest
import torch
import transformers
from conftest import WORDS

from lit_spectral.errors import InputError
from lit_spectral.scoring.texts import BERTScore, bleu, find_wordnet, meteor, rouge_l


def test_bleu_of_one_wrong_word():
    # Of 6 words 5, of 5 pairs 4, of 4 triples 3 and of 3 quadruples 2 are right; the lengths agree.
    expected = math.prod((5 / 6, 4 / 5, 3 / 4, 2 / 3)) ** 0.25
    assert bleu(["the cat sat on the hill"], ["the cat sat on the mat"]) == pytest.approx(expected)


def test_bleu_is_of_the_corpus_not_a_mean():
    texts, references = ["the cat sat on the mat", "no"], ["the cat sat on the mat", "yes"]
    # 6 of 7 words; of pairs, triples and quadruples all.
    assert bleu(texts, references) == pytest.approx((6 / 7) ** 0.25)


def test_rouge_l_is_the_longest_common_subsequence():
    # `the sat the mat` is common: precision 4/5, recall 4/6.
    found = rouge_l(["the dog sat the mat", "a"], ["the cat sat on the mat", "b"])
    assert found == pytest.approx(2 * (4 / 5) * (4 / 6) / (4 / 5 + 4 / 6) / 2)


@pytest.fixture(scope="module", autouse=True)
def wordnet(tmp_path_factory):
    """Nltk's data with a WordNet of a single synset: cat, tom."""
    root = tmp_path_factory.mktemp("nltk_data")
    folder = root / "corpora" / "wordnet"
    folder.mkdir(parents=True)
    (folder / "lexnames").write_text("00\tadj.all\t3\n")
    (folder / "index.sense").write_text("")
    for part in ("noun", "verb", "adj", "adv"):
        (folder / f"index.{part}").write_text("")
        (folder / f"data.{part}").write_text("")
        (folder / f"{part}.exc").write_text("")
    (folder / "data.noun").write_text("00000000 00 n 02 cat 0 tom 0 000 | a pet  \n")
    (folder / "index.noun").write_text("cat n 1 0 1 0 00000000  \ntom n 1 0 1 0 00000000  \n")
    assert find_wordnet(str(root))


@pytest.mark.parametrize("text", ["the cat sat", "the tom sat"])
def test_meteor_takes_a_synonym_for_the_word(text):
    # All three words match in one chunk: F is 1, and the penalty 0.5 (1/3)³.
    assert meteor([text], ["the cat sat"]) == pytest.approx(1 - 0.5 / 27)


def test_meteor_of_another_word():
    # Two of three words in two chunks: F = 2/3, penalty 0.5 (2/2)³.
    assert meteor(["the dog sat"], ["the cat sat"]) == pytest.approx(2 / 3 * 0.5)


def test_a_folder_without_wordnet_is_an_error(tmp_path):
    with pytest.raises(InputError, match="has no corpora/wordnet"):
        find_wordnet(str(tmp_path))


def test_bert_score_is_the_greedy_match_of_states(backbone_folder):
    folder, texts, references = backbone_folder("bert"), ["the cat sat", "the bird"], ["the dog ran on", "the bird"]
    tokenizer, model = (
        transformers.AutoTokenizer.from_pretrained(folder),
        transformers.AutoModel.from_pretrained(folder),
    )
    expected = {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    for text, reference in zip(texts, references, strict=True):
        states = []
        for sentence in (text, reference):
            ids = tokenizer(sentence, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                hidden = model.eval()(ids, output_hidden_states=True).hidden_states[1][0, 1:-1].double()
            states.append(hidden / hidden.norm(dim=1, keepdim=True))
        likeness = states[0] @ states[1].T
        p, r = float(likeness.amax(1).mean()), float(likeness.amax(0).mean())
        for name, value in (("precision", p), ("recall", r), ("f1", 2 * p * r / (p + r))):
            expected[name] += value / 2
    assert BERTScore(folder, layer=1)(texts, references) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("side", ["right", "left"])
def test_bert_score_pairs_texts_of_any_length(side, backbone_folder, tmp_path):
    folder = shutil.copytree(backbone_folder("bert"), tmp_path / "bert")
    transformers.AutoTokenizer.from_pretrained(folder, padding_side=side).save_pretrained(folder)
    score = BERTScore(str(folder), layer=2)
    texts = ["cat dog", "bird ran flew", "hill", " ".join(WORDS * 8), ""]
    references = ["the cat dog bird", "bird ran", "hill tree and", "the cat", "the mat"]
    alone = [score([text], [reference]) for text, reference in zip(texts, references, strict=True)]
    expected = {name: sum(one[name] for one in alone) / 5 for name in ("precision", "recall", "f1")}
    assert score(texts, references) == pytest.approx(expected, abs=1e-5)
    assert alone[-1] == {"precision": 0, "recall": 0, "f1": 0}


@pytest.mark.parametrize(("model", "layer", "message"), [("bert", 3, "layers 1 to 2, not 3"), ("/none", 1, "/none")])
def test_an_encoder_or_layer_that_there_is_not_is_said(backbone_folder, model, layer, message):
    with pytest.raises(InputError, match=message):
        BERTScore(backbone_folder(model) if model == "bert" else model, layer)
