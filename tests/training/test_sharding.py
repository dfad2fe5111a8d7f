"""The units of FSDP are the layers that the model has."""

import pytest
from accelerate import FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from support.trainers import new_model

from modeling_xlm_swcm.decoder_xlm_swcm import XLMSWCMDecoder


@pytest.mark.parametrize(
    ("decoder", "blocks"),
    [
        ({"decoder_blocks": 4 * ["prefix"]}, ["prefix"]),
        ({}, ["custom", "normal"]),
        ({"normal_layer_interval": None}, ["custom"]),
    ],
)
def test_accelerate_finds_every_layer_of_the_trained_model(make_trainer, tokenizer, monkeypatch, decoder, blocks):
    # Accelerate reads the plugin from the environment only on accelerators.
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=1, auto_wrap_policy="transformer_based_wrap", use_orig_params=True
    )
    monkeypatch.setattr(AcceleratorState, "fsdp_plugin", plugin, raising=False)
    trainer = make_trainer(new_model(tokenizer, **decoder))
    plugin.set_auto_wrap_policy(trainer.model)
    names = {layer.__name__ for layer in plugin.auto_wrap_policy.keywords["transformer_layer_cls"]}
    assert names == {"XLMRobertaLayer", *(XLMSWCMDecoder.layer_classes[block].__name__ for block in blocks)}
