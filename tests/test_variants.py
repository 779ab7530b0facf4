"""What `lit-spectral compare` makes of methods, flags and sweeps."""

import pytest

from lit_spectral.comparison.variants import alternatives, pairs_of, variants
from lit_spectral.errors import InputError


def names(methods, *flags):
    return [variant.name for variant in variants(methods, pairs_of(flags))]


def test_swept_values_are_combined():
    found = names(["FCLoRA"], "--model.method.sigma_bar", "q1,q2", "--model.optimizer.lr=1e-3,2e-3")
    assert found == [f"FCLoRA sigma_bar={q} lr={lr}" for q in ("q1", "q2") for lr in ("1e-3", "2e-3")]


def test_a_setting_goes_to_the_methods_that_have_it():
    lora, fclora = variants(["LoRA", "FCLoRA"], pairs_of(["--model.method.sigma_bar", "q1"]))
    assert lora.flags() == ["--model.method=LoRA"]
    assert fclora.flags() == ["--model.method=FCLoRA", "--model.method.sigma_bar=q1"]


def test_a_flag_for_one_method_wins_over_that_for_all():
    flags = pairs_of(["--LoRA.model.optimizer.lr", "1", "--FCLoRA.ball=none,0.5", "--model.optimizer.lr", "2"])
    lora, *fclora = variants(["LoRA", "FCLoRA"], flags)
    assert lora.flags() == ["--model.optimizer.lr=1", "--model.method=LoRA"]
    assert [v.name for v in fclora] == ["FCLoRA ball=none", "FCLoRA ball=0.5"]
    assert fclora[1].flags() == ["--model.optimizer.lr=2", "--model.method=FCLoRA", "--model.method.ball=0.5"]


def test_a_method_under_a_name_of_its_own_has_settings_of_its_own():
    methods = ["LoRA", "LoRA+ball=LoRA"]
    lora, *balled = variants(methods, pairs_of(["--LoRA+ball.ball", "0.3,0.5", "--LoRA.alpha", "2"]))
    assert [lora.name, *(v.name for v in balled)] == ["LoRA alpha=2", "LoRA+ball ball=0.3", "LoRA+ball ball=0.5"]
    assert balled[0].flags() == ["--model.method=LoRA", "--model.method.ball=0.3"]
    assert balled[0].reference([lora, *balled]) == lora


def test_a_flag_that_appends_is_given_as_often_as_it_was():
    flags = pairs_of(["--trainer.callbacks+=A", "--trainer.callbacks.x=1", "--trainer.callbacks+=B"])
    (lora,) = variants(["LoRA"], flags)
    assert lora.flags()[:3] == ["--trainer.callbacks+=A", "--trainer.callbacks.x=1", "--trainer.callbacks+=B"]


def test_variants_of_one_method_are_compared_with_the_first():
    found = variants(["FCLoRA"], pairs_of(["--model.method.sigma_bar", "q1,q2"]))
    assert found[1].reference(found) == found[0]


def test_each_is_compared_with_the_first_method_at_the_same_place_of_a_sweep():
    found = variants(["LoRA", "FCLoRA"], pairs_of(["--model.optimizer.lr", "1,2", "--FCLoRA.ball", "3,4"]))
    reference = {variant.name: variant.reference(found).name for variant in found}
    assert reference["FCLoRA lr=2 ball=4"] == "LoRA lr=2"
    assert reference["LoRA lr=1"] == "LoRA lr=1"


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("q1,q2", ["q1", "q2"]),
        ("[a,b]", ["[a,b]"]),
        ("{quantile: .2},1", ["{quantile: .2}", "1"]),
        ("'a,b'", ["'a,b'"]),
    ],
)
def test_commas_inside_brackets_and_quotes_split_nothing(value, parts):
    assert alternatives(value) == parts


@pytest.mark.parametrize(
    ("methods", "flags", "message"),
    [
        (["LoRA", "NoRA"], [], "no method NoRA"),
        (["LoRA", "LoRA"], [], "has LoRA twice"),
        (["LoRA", "FCLoRA=LoRA"], [], "has FCLoRA twice, or gives it to another"),
        (["LoRA", "b=LoRA", "b=FCLoRA"], [], "has b twice"),
        (["LoRA", "model=LoRA"], [], "model is no name"),
        (["LoRA", "a.b=LoRA"], [], "a.b is no name"),
        (["LoRA", "b=NoRA"], [], "no method NoRA"),
        (["LoRA"], ["--model.method.sigma_bar=q1"], "none of LoRA has a setting sigma_bar"),
        (["LoRA"], ["--model.backbone"], "expected --flag value, not --model.backbone"),
        (["LoRA"], ["x"], "expected --flag value, not x"),
        (["LoRA"], ["--model.method", "FCLoRA"], "give --methods"),
        (["LoRA"], ["--LoRA.seed_everything", "1"], "give --seeds"),
        (["LoRA"], ["--seed", "1"], "give --seeds"),
    ],
)
def test_what_can_not_be_compared_is_said(methods, flags, message):
    with pytest.raises(InputError, match=message):
        variants(methods, pairs_of(flags))
