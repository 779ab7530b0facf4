"""Updates on a live model: what it computes then, and that taking them off leaves nothing."""

import pytest
import torch
from exporting import HEADS, LOW_RANK, OTHERS, adapted, assert_equal, logits, update_of
from zoo.models import make

from lit_spectral.adapters import fold, named_changes, unfold
from lit_spectral.errors import InputError
from lit_spectral.updates import Delta, Pair, Update
from lit_spectral.updates.applied import Applied, GivenAdapter
from lit_spectral.updates.sources import of_model

METHODS = LOW_RANK | OTHERS
EVERY = pytest.mark.parametrize(("name", "method"), [(name, method) for name in HEADS for method in METHODS])
SOME = pytest.mark.parametrize(("name", "method"), [("BERT", "HiRALoRA"), ("GPT-2", "HiRA"), ("Llama, tied", "LoRA")])


def given(name, method="LoRA", seed=1):
    """An update, and the logits of the model that it is of."""
    model, whole = adapted(name, METHODS[method], seed)
    return update_of(model, whole, ""), logits(model)


def bare(name):
    return make(name, HEADS[name])


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_state(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@EVERY
def test_the_model_computes_what_the_update_s_own_does(name, method):
    update, expected = given(name, method)
    on = Applied(bare(name))
    on.put(update)
    assert_equal(logits(on.model), expected)
    assert on.update is update


@EVERY
def test_taken_off_the_model_is_as_it_came(name, method):
    model = bare(name)
    before, modules = state(model), dict(model.named_modules())
    on = Applied(model)
    on.put(given(name, method)[0])
    assert not torch.equal(logits(model), logits(bare(name)))
    on.put(None)
    assert same_state(state(model), before)
    assert dict(model.named_modules()) == modules
    assert not any(parameter.requires_grad for parameter in model.parameters())


@EVERY
def test_read_back_from_the_model_it_is_the_update(name, method):
    update, _ = given(name, method)
    on = Applied(bare(name))
    on.put(update)
    found = of_model(on.model)
    assert found.changes.keys() == update.changes.keys()
    for path, delta in update.changes.items():
        assert all(map(torch.equal, found.changes[path].tensors(), delta.tensors())), path
        assert found.changes[path].is_thin == delta.is_thin
    assert same_state(found.whole, update.whole)


@SOME
def test_scaled_it_is_the_scaled_update(name, method):
    update, _ = given(name, method)
    one, other = Applied(bare(name)), Applied(bare(name))
    one.put(update)
    for factor in (0.7, -1.5, 0.0):
        one.scale = factor
        other.put(update.scaled(factor))
        assert_equal(logits(one.model), logits(other.model))


def test_exchanged_each_gives_what_it_gave():
    updates = [given("BERT", method, seed)[0] for seed, method in enumerate(METHODS)]
    model = bare("BERT")
    on = Applied(model)
    first = []
    for update in updates:
        on.put(update)
        first.append(logits(model))
    for update, before in zip(reversed(updates), reversed(first), strict=True):
        on.put(update)
        assert torch.equal(logits(model), before)


@SOME
def test_folded_it_computes_the_same_and_is_undone_to_the_bit(name, method):
    update, expected = given(name, method)
    on = Applied(bare(name))
    on.put(update)
    before, deltas = logits(on.model), {path: c.delta_weight() for path, c in named_changes(on.model).items()}
    fold(on.model)
    assert_equal(logits(on.model), expected)
    for path, change in named_changes(on.model).items():
        assert torch.equal(change.delta_weight(), deltas[path])
    unfold(on.model)
    assert torch.equal(logits(on.model), before)


@pytest.mark.parametrize(
    "switch", [lambda on: on.put(None), lambda on: setattr(on, "scale", 2.0)], ids=["put", "scale"]
)
def test_folded_it_is_not_switched(switch):
    on = Applied(bare("BERT"))
    on.put(given("BERT")[0])
    fold(on.model)
    before = state(on.model)
    with pytest.raises(InputError, match="unfold the model first"):
        switch(on)
    assert same_state(state(on.model), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@SOME
def test_of_a_rounded_model_what_is_left_is_the_rounded_backbone(name, method, dtype):
    update, expected = given(name, method)
    model = bare(name)
    on = Applied(model)
    on.put(update)
    model.to(dtype)
    assert (logits(model).float() - expected).norm() <= 0.05 * expected.norm()
    for path, delta in of_model(model).changes.items():
        assert all(map(torch.equal, delta.tensors(), update.changes[path].tensors()))  # factors are not rounded
    on.put(None)
    assert same_state(state(model), state(bare(name).to(dtype)))


@pytest.mark.parametrize("method", METHODS)
def test_nothing_of_it_is_made_elsewhere_than_the_map_lies(method):
    delta = given("BERT", method)[0].changes[QUERY]
    adapter = GivenAdapter(torch.nn.Linear(32, 32, device="meta"), delta)
    assert adapter(torch.ones(2, 32, device="meta")).is_meta
    assert adapter.delta_weight().is_meta


def changed(update, **other):
    return Update(**{"changes": update.changes, "whole": update.whole, "digest": update.digest, **other})


QUERY, WORDS = "bert.encoder.layer.0.attention.self.query", "bert.embeddings.word_embeddings"
THIN = Delta(Pair(torch.ones(32, 1), torch.ones(1, 32)))
REFUSED = {
    "another digest": ({"digest": "c-d"}, "trained on a backbone with other weights"),
    "a map that isn't there": ({"changes": {"model.layers.0.q_proj": THIN}}, "no such linear map; give an adapter"),
    "no linear map": ({"changes": {WORDS: THIN}}, "is a Embedding here and no linear map"),
    "a map of another shape": (
        {"changes": {QUERY: Delta(Pair(torch.ones(16, 1), torch.ones(1, 32)))}},
        f"{QUERY} is 16 x 32 in the adapter and 32 x 32 in the model",
    ),
    "another head": (
        {"whole": {"qa_outputs.bias": torch.ones(2)}},
        "has qa_outputs.bias, and BertFor.* no such tensor",
    ),
    "a head of another shape": (
        {"whole": {"classifier.weight": torch.ones(3, 32)}},
        "classifier.weight is 3 x 32 in the adapter and 2 x 32 in the model; give one of this backbone and head",
    ),
}


@pytest.mark.parametrize(("other", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_the_model_s_is_refused_and_nothing_changes(other, message):
    update, _ = given("BERT")
    on = Applied(bare("BERT"), "a-b")
    on.put(update)
    before = state(on.model)
    with pytest.raises(InputError, match=message) as caught:
        on.put(changed(update, **other))
    assert "\n" not in str(caught.value)
    assert same_state(state(on.model), before)
    assert on.update is update


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_scale_is_finite(scale):
    with pytest.raises(InputError, match="scale is a finite number"):
        Applied(bare("BERT")).scale = scale


def test_where_memory_runs_out_on_the_way_the_model_is_as_it_came(monkeypatch):
    model = bare("BERT")
    before = state(model)
    on = Applied(model)
    on.put(given("BERT")[0])
    made = GivenAdapter.__init__

    def fails(adapter, base_layer, delta, scale):
        if base_layer is model.bert.encoder.layer[1].attention.self.query:
            raise MemoryError
        made(adapter, base_layer, delta, scale)

    monkeypatch.setattr(GivenAdapter, "__init__", fails)
    with pytest.raises(MemoryError):
        on.put(given("BERT", seed=2)[0])
    assert same_state(state(model), before)
    assert on.update is None


def test_a_model_with_adapters_is_refused():
    with pytest.raises(InputError, match="has adapters on it already"):
        Applied(adapted("BERT", METHODS["LoRA"])[0])


def test_of_the_bare_encoder_it_goes_on_one_with_a_head():
    on = Applied(bare("BERT"))
    on.put(Update({QUERY.removeprefix("bert."): THIN}, {"embeddings.LayerNorm.bias": torch.ones(32)}))
    assert [*named_changes(on.model)] == [QUERY]
    assert on.model.bert.embeddings.LayerNorm.bias.eq(1).all()


EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"


def test_what_is_tied_is_put_back_whichever_name_an_update_gave_it():
    model = bare("Llama, tied")
    before = state(model)
    on = Applied(model)
    for whole in (
        {EMBEDDING: torch.ones(64, 32)},
        {OUTPUT: torch.zeros(64, 32)},
        dict.fromkeys([EMBEDDING, OUTPUT], torch.ones(64, 32)),
    ):
        on.put(Update({}, whole))
        assert all(torch.equal(model.lm_head.weight, value) for value in whole.values())
    on.put(None)
    assert same_state(state(model), before)


def test_two_values_of_what_is_tied_are_refused():
    on = Applied(bare("Llama, tied"))
    with pytest.raises(InputError, match="are one tensor here, and two in the adapter"):
        on.put(Update({}, {EMBEDDING: torch.ones(64, 32), OUTPUT: torch.zeros(64, 32)}))


def test_a_change_of_what_is_tied_acts_there_alone_and_is_not_folded():
    model = bare("Llama, tied")
    on = Applied(model)
    on.put(Update({"lm_head": Delta(Pair(torch.ones(64, 1), torch.ones(1, 32)))}))
    before = logits(model)
    assert (before - logits(bare("Llama, tied"))).amax() > 0
    with pytest.raises(InputError, match="fold: the weight of lm_head is tied"):
        fold(model)
    assert torch.equal(logits(model), before)


def test_gradients_pass_through_to_what_comes_before():
    for method in ("LoRA", "HiRA", "MoRA"):
        on = Applied(bare("BERT"))
        on.put(given("BERT", method)[0])
        embedded = torch.randn(1, 5, 32, requires_grad=True)
        on.model(inputs_embeds=embedded).logits.sum().backward()
        assert embedded.grad.abs().sum() > 0
        assert not any(p.grad is not None for a in named_changes(on.model).values() for p in a.parameters())
