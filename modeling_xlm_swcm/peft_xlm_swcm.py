"""Adapters of PEFT on weights that several modules share."""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import EncoderDecoderCache

from .linear_xlm_swcm import fast_linear


LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
# A tied prefix decoder calls the layers of the encoder.
TIED_PREFIX_TARGETS = r".*\.encoder\.layer\.\d+\..*\.?(query|key|value|dense)"

NO_PREFIX_TUNING = "Prefix tuning of PEFT is not supported. Use LoRA instead."


def check_adapters(model: PreTrainedModel):
    """
    Check that no adapter changes only some of the modules that share one weight.

    Such an adapter trains, but no merged weight can compute the same logits.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Model with or without adapters of PEFT.

    Raises:
        ValueError: if there is such an adapter.
    """
    # PEFT sets this attribute.
    if not hasattr(model, "peft_config") or torch.compiler.is_compiling():
        return
    for name, source in model.all_tied_weights_keys.items():
        adapters = [find_adapter(model, key.rpartition(".")[0]) for key in (name, source)]
        if _is_consistent(model, *adapters):
            continue
        adapted, other = (name, source) if adapters[0] is not None else (source, name)
        advice = "Leave this module out of target_modules and modules_to_save."
        if source.endswith(("word_embeddings.weight", "tok_embeddings.weight")):
            advice += " To train single tokens, pass a list as trainable_token_indices (peft>=0.19, tied output)."
        raise ValueError(f"A PEFT adapter changes {adapted}, but not {other}. Both are the same weight. {advice}")


def _is_consistent(model: PreTrainedModel, adapter: nn.Module | None, source: nn.Module | None) -> bool:
    if adapter is None or source is None:
        # A trained copy of the output projection is saved as a separate projection.
        is_own_copy = hasattr(adapter, "modules_to_save") and adapter is model.get_output_embeddings()
        return adapter is source or (source is None and is_own_copy)
    tokens, source_tokens = find_token_adapter(adapter), find_token_adapter(source)
    return tokens is not None and tokens.tied_adapter is source_tokens


def find_adapter(model: nn.Module, name: str) -> nn.Module | None:
    """Return the adapter of PEFT that wraps the module `name` or a module around it, or None."""
    module = model
    for part in name.split("."):
        module = getattr(module, part)
        # All classes of PEFT have this attribute. A lookup in a module itself is slow.
        if hasattr(type(module), "adapter_layer_names"):
            return module
    return None


def find_token_adapter(module: nn.Module | None) -> nn.Module | None:
    """Return the layer of PEFT that trains single tokens of an embedding or output projection, or None."""
    layer = getattr(module, "token_adapter", module)
    is_plain = hasattr(layer, "get_merged_weights") and not hasattr(layer.get_base_layer(), "adapter_layer_names")
    return layer if is_plain else None


def output_projection(lm_head: nn.Module, states: torch.Tensor) -> torch.Tensor:
    """
    Return `lm_head(states)`. With trained tokens, add the output bias, which PEFT omits.

    Args:
        lm_head (`nn.Linear`):
            Output projection, also with an adapter.
        states (`torch.Tensor` of shape `(..., hidden_size)`):
            Input of the projection.

    Returns:
        `torch.Tensor` of shape `(..., vocab_size)`: the logits.

    Raises:
        ValueError: if hooks change the input of trained tokens.
    """
    layer = find_token_adapter(lm_head)
    if layer is None or layer.merged or layer.disable_adapters or not layer.active_adapters:
        return fast_linear(lm_head, states)
    if lm_head._forward_pre_hooks:
        # PEFT passes `adapter_names` through such hooks.
        raise ValueError(
            "trainable_token_indices does not work with adapter_names or with forward hooks on the output projection. "
            "Use one adapter at a time and remove the hooks."
        )
    weight = layer.get_merged_weights(layer.active_adapters)
    return nn.functional.linear(states, weight, layer.get_base_layer().bias)


class XLMSWCMPeftMixin:
    """
    Name the layers for LoRA. Refuse to resize embeddings with trained tokens, because PEFT cannot resize them.

    Attributes:
        lora_targets (`dict[str, list[str] | str]`):
            Kind of weight sharing -> `target_modules` with the projections of the decoder.
    """

    lora_targets: dict[str, list[str] | str] = {"init": LORA_TARGETS, "tied": TIED_PREFIX_TARGETS}

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Embedding:
        """
        Resize the embeddings as in Transformers.

        Raises:
            ValueError: if an adapter trains single tokens.
        """
        if find_token_adapter(self.get_input_embeddings()) is not None:
            raise ValueError(
                "The embeddings cannot be resized while an adapter trains single tokens. Resize them before you add "
                "the adapter, or after merge_and_unload."
            )
        return super().resize_token_embeddings(*args, **kwargs)


def check_cache_layers(cache: EncoderDecoderCache | None, num_layers: int):
    """Check that a cache has layers of source and target, with one of each for each decoder layer."""
    if cache is None:
        return
    if not isinstance(cache, EncoderDecoderCache):
        raise ValueError(
            f"The cache must be an EncoderDecoderCache (got {type(cache).__name__}). Pass "
            f"EncoderDecoderCache(DynamicCache(), DynamicCache()). {NO_PREFIX_TUNING}"
        )
    if 0 < (found := len(cache.self_attention_cache.layers)) < num_layers:
        raise ValueError(f"The cache has {found} layers, but the decoder has {num_layers}. {NO_PREFIX_TUNING}")
    # The length of a static cache is a tensor, which cannot be compared without synchronization.
    if not cache.is_compileable and cache.get_seq_length() and not any(cache.is_updated.values()):
        raise ValueError(f"The cache has keys of the target, but no keys of the source. {NO_PREFIX_TUNING}")
