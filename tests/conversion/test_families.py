"""The families of encoders: each gives the checkpoints that it gave before, whatever its description looks like."""

import hashlib

import pytest
import torch
from transformers import (
    CamembertForMaskedLM,
    PreTrainedModel,
    RobertaForMaskedLM,
    XLMRobertaForMaskedLM,
)

from modeling_xlm_swcm.conversion import from_encoder


SIZES = dict(vocab_size=99, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=37)
PAPER = {"decoder": "paper", "normal_layers": "none"}
# Conversions without random weights: options, and hashes of the models that they gave before families were described.
# RoBERTa registers the tensors of its head in another order, so its exact encoder has other weights.
CHECKPOINTS = {
    "prefix": ({}, "218e0951133e2d85", "d236ee13e2a2cfff"),
    "tied prefix": ({"weight_sharing": "tied"}, "41f58055053bf0e9", "c692a735b6ae6628"),
    "silent": (PAPER, "8af7ae0ce9b22626", "52c1ec28a30e2e0e"),
    "shared": (PAPER | {"decoder_init": "shared"}, "08afcb8c145e66f3", "2a0e7f2ca3946416"),
    "tied": (PAPER | {"weight_sharing": "tied"}, "08afcb8c145e66f3", "2a0e7f2ca3946416"),
    "interleaved": (PAPER | {"layer_map": "interleaved"}, "8aefa31bb7ce88e9", "904f4c7016d70b30"),
    "copied normal layers": (
        {"normal_layers": "copy", "normal_layer_interval": 2},
        "bb7c1039bf2add2a",
        "9e631b54c5f8dc2c",
    ),
}


def exact_encoder(model_class: type, **options) -> PreTrainedModel:
    """Return an encoder whose weights are fractions of 256, which are the same on every machine."""
    sizes = SIZES | {"max_position_embeddings": 40, "layer_norm_eps": 1e-5}
    model = model_class(model_class.config_class(**(sizes | options))).eval()
    for number, (_, parameter) in enumerate(sorted(model.named_parameters())):
        values = (torch.arange(parameter.numel()) * 37 + number * 101) % 509 - 254
        parameter.data.copy_((values / 256).view_as(parameter))
    return model


def hash_of(model: PreTrainedModel) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@pytest.mark.parametrize("model_class", [XLMRobertaForMaskedLM, RobertaForMaskedLM, CamembertForMaskedLM])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_family_gives_the_checkpoints_that_it_gave_before(model_class, name):
    options, common, roberta = CHECKPOINTS[name]
    encoder = exact_encoder(model_class, pad_token_id=1, bos_token_id=0, eos_token_id=2)
    expected = roberta if model_class is RobertaForMaskedLM else common
    assert hash_of(from_encoder(encoder, **options)[0]) == expected
