"""The layers that FSDP shards."""

from accelerate import FullyShardedDataParallelPlugin
from transformers import PreTrainedModel


def shard_layers(plugin: FullyShardedDataParallelPlugin | None, model: PreTrainedModel):
    """
    Make every encoder and decoder layer of a model a unit of FSDP, for each kind of decoder.

    Accelerate refuses the class of a layer that the model does not have, so no list of classes fits all decoders. The
    embeddings stay outside of the units, because several modules share them.

    Args:
        plugin ([`~accelerate.FullyShardedDataParallelPlugin`], *optional*):
            Settings of FSDP. `None` without FSDP.
        model ([`~transformers.PreTrainedModel`]):
            Model to shard.
    """
    if plugin is None:
        return
    base = model.base_model
    layers = [*base.encoder.get_layers(), *base.decoder.layers]
    plugin.transformer_cls_names_to_wrap = sorted({type(layer).__name__ for layer in layers})
