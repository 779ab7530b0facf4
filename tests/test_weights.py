"""A backbone's weights as its files have them, by their names in the model."""

import pytest
import torch
from exporting import HEADS, base  # noqa: F401 (fixtures)
from zoo.models import make

from lit_spectral.updates.weights import Weights

pytestmark = pytest.mark.filterwarnings("ignore")


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
