"""Attention, feed-forward network, decoder layers and head of XLM-SWCM.

Source: "Multilingual Encoder Knows more than You Realize: Shared Weights Pretraining for Extremely Low-Resource
Languages" (Su et al., ACL 2025, arXiv 2502.10852).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.cache_utils import EncoderDecoderCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaLayer
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .compat_xlm_swcm import checked_forward
from .configuration_xlm_swcm import XLMSWCMConfig
from .linear_xlm_swcm import activation_linear, byte_mask_dropout, fast_linear
from .positions_xlm_swcm import cached_length


# Maps each module of a custom decoder layer to the module of the encoder layer that it copies. The weight map of the
# converter and the tied keys of `weight_sharing="tied"` are made from this table.
CUSTOM_LAYER_SOURCES = {
    f"{attention}.{module}": source
    for attention in ("self_attn", "cross_attn")
    for module, source in {
        "q_proj": "attention.self.query",
        "k_proj": "attention.self.key",
        "v_proj": "attention.self.value",
        "out_proj": "attention.output.dense",
        "layer_norm": "attention.output.LayerNorm",
    }.items()
} | {
    f"{ffn}.{module}": source
    for ffn in ("ffn1", "ffn2")
    for module, source in {
        "fc1": "intermediate.dense",
        "fc2": "output.dense",
        "layer_norm": "output.LayerNorm",
    }.items()
}
# The same table for a prefix decoder layer, which has one attention and one FFN.
PREFIX_LAYER_SOURCES = {
    target.replace("ffn1.", "ffn."): source
    for target, source in CUSTOM_LAYER_SOURCES.items()
    if target.startswith(("self_attn.", "ffn1."))
}

# The attention of a decoder layer to the target or the source, as a function of the hidden states.
Attend = Callable[[torch.Tensor], torch.Tensor]


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute attention with plain PyTorch, and return the attention weights too."""
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling  # (batch, heads, query_len, key_len)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class XLMSWCMAttention(nn.Module):
    """Self-attention, or cross-attention if `key_value_states` are given, with residual and LayerNorm."""

    def __init__(self, config: XLMSWCMConfig, layer_idx: int, is_causal: bool, has_weights: bool = True):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = is_causal
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        if not has_weights:
            return
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        key_value_states: torch.Tensor | None = None,
        cache: EncoderDecoderCache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the output of shape `(batch, target_len, hidden_size)`, and the attention weights or `None`."""
        query = self._split_heads(fast_linear(self.q_proj, hidden_states))
        key, value = self._keys_and_values(hidden_states, key_value_states, cache, self)
        is_cross_attention = key_value_states is not None
        attended, weights = self._attend(query, key, value, attention_mask, is_cross_attention, **kwargs)
        return self._add_and_norm(hidden_states, fast_linear(self.out_proj, attended)), weights

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        is_cross_attention: bool,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the attended values of shape `(batch, target_len, hidden_size)`, and the weights or `None`."""
        implementation = self.config._attn_implementation
        is_padding_mask = isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2
        if is_cross_attention and is_padding_mask:
            # Flash attention would apply the padding mask of the source to the target.
            implementation, attention_mask = "sdpa", attention_mask[:, None, None, :].bool()
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        attended, weights = attention_interface(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return attended.flatten(2), weights

    def _add_and_norm(self, hidden_states: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        return self.layer_norm(hidden_states + byte_mask_dropout(self.dropout, attended))

    def _split_heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (batch, heads, len, head_dim)

    def _keys_and_values(
        self,
        hidden_states: torch.Tensor,
        key_value_states: torch.Tensor | None,
        cache: EncoderDecoderCache | None,
        modules: "XLMSWCMAttention | AttentionModules",
    ) -> tuple[torch.Tensor, torch.Tensor]:
        is_cross_attention = key_value_states is not None
        if is_cross_attention and (cached := self._cached_source(cache)) is not None:
            return cached
        states = key_value_states if is_cross_attention else hidden_states
        key, value = (self._split_heads(fast_linear(linear, states)) for linear in (modules.k_proj, modules.v_proj))
        return self._cache_source(key, value, cache) if is_cross_attention else self._cache_target(key, value, cache)

    def _cached_source(self, cache: EncoderDecoderCache | None) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return the cached keys and values of the source, which stay the same in all decoding steps."""
        if cache is None or not cache.is_updated.get(self.layer_idx):
            return None
        cached = cache.cross_attention_cache.layers[self.layer_idx]
        return cached.keys, cached.values

    def _cache_source(
        self, key: torch.Tensor, value: torch.Tensor, cache: EncoderDecoderCache | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store keys and values of the source, and return them."""
        if cache is None:
            return key, value
        cache.is_updated[self.layer_idx] = True
        return cache.cross_attention_cache.update(key, value, self.layer_idx)

    def _cache_target(
        self, key: torch.Tensor, value: torch.Tensor, cache: EncoderDecoderCache | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values of the target, and return the keys and values of all tokens so far."""
        return (key, value) if cache is None else cache.self_attention_cache.update(key, value, self.layer_idx)


# Accelerate moves modules and tuples of modules that a module gets as arguments to its device. It does not know
# dataclasses.
@dataclass(frozen=True)
class AttentionModules:
    """Modules of the self-attention of an encoder layer, by the names of [`XLMSWCMAttention`]."""

    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    out_proj: nn.Module
    dropout: nn.Module
    layer_norm: nn.Module


@dataclass(frozen=True)
class FeedForwardModules:
    """Modules of the feed-forward network of an encoder layer, by the names of [`XLMSWCMFeedForward`]."""

    fc1: nn.Module
    activation: nn.Module
    fc2: nn.Module
    dropout: nn.Module
    layer_norm: nn.Module


def modules_of(layer: XLMRobertaLayer) -> tuple[AttentionModules, FeedForwardModules]:
    """Return the modules of an encoder layer, for a prefix decoder layer that is tied to it."""
    attention, dense = layer.attention.self, layer.attention.output
    inner, output = layer.intermediate, layer.output
    return (
        AttentionModules(attention.query, attention.key, attention.value, dense.dense, dense.dropout, dense.LayerNorm),
        FeedForwardModules(inner.dense, inner.intermediate_act_fn, output.dense, output.dropout, output.LayerNorm),
    )


class XLMSWCMPrefixAttention(XLMSWCMAttention):
    """
    Attention of the target to the source and to the target so far, under one softmax.

    The keys and values of the source come from the input of the encoder layer that the decoder layer belongs to.
    """

    def __init__(self, config: XLMSWCMConfig, layer_idx: int):
        super().__init__(config, layer_idx, is_causal=False, has_weights=config.weight_sharing == "init")

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        source_states: torch.Tensor,
        cache: EncoderDecoderCache | None,
        tied_modules: AttentionModules | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Return the output, and the attention weights of target and source or `None`."""
        modules = self if tied_modules is None else tied_modules
        query = self._split_heads(fast_linear(modules.q_proj, hidden_states))
        # A tied layer computes on the device of its encoder layer.
        hidden_states, attention_mask, source_states = (
            part.to(query.device) for part in (hidden_states, attention_mask, source_states)
        )
        source = self._keys_and_values(hidden_states, source_states, cache, modules)
        target = self._keys_and_values(hidden_states, None, cache, modules)
        attended, target_weights, source_weights = attend_to_prefix(
            self, query, source, target, attention_mask, **kwargs
        )
        attended = byte_mask_dropout(modules.dropout, fast_linear(modules.out_proj, attended.flatten(2)))
        return modules.layer_norm(hidden_states + attended), target_weights, source_weights


def attend_to_prefix(
    attention: XLMSWCMAttention,
    query: torch.Tensor,
    source: tuple[torch.Tensor, torch.Tensor],
    target: tuple[torch.Tensor, torch.Tensor],
    attention_mask: torch.Tensor,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """
    Attend to the keys and values of source and target under one softmax.

    Return the attended values of shape `(batch, target_len, heads, head_dim)`, and the weights of target and source,
    or `None` if the attention is not eager.
    """
    dropout = attention.attention_dropout if attention.training else 0.0
    (source_key, source_value), (key, value) = source, target
    is_eager = attention.config._attn_implementation == "eager"
    if is_eager or query.shape[2] == 1:
        # A decoding step does not copy the cached keys and values.
        attended, source_weights, target_weights = joint_attention(
            query, (source_key, key), (source_value, value), attention_mask, attention.scaling, dropout
        )
        return (attended, target_weights, source_weights) if is_eager else (attended, None, None)
    # Other attention functions cannot express the mask.
    attended, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](
        attention,
        query,
        torch.cat([source_key, key], dim=2),
        torch.cat([source_value, value], dim=2),
        attention_mask,
        dropout=dropout,
        scaling=attention.scaling,
        **kwargs,
    )
    return attended, None, None


def joint_attention(
    query: torch.Tensor,
    keys: tuple[torch.Tensor, torch.Tensor],
    values: tuple[torch.Tensor, torch.Tensor],
    attention_mask: torch.Tensor,
    scaling: float,
    dropout: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attend to source and target under one softmax, and return the weights of both too."""
    scores = torch.cat([torch.matmul(query, key.transpose(2, 3)) for key in keys], dim=-1) * scaling
    scores = torch.where(attention_mask, scores, torch.finfo(scores.dtype).min)
    weights = nn.functional.dropout(nn.functional.softmax(scores, dim=-1), p=dropout, training=dropout > 0)
    source_weights, target_weights = weights.split([key.shape[2] for key in keys], dim=-1)
    attended = torch.matmul(source_weights, values[0]) + torch.matmul(target_weights, values[1])
    return attended.transpose(1, 2).contiguous(), source_weights, target_weights


def feed_forward(modules: "XLMSWCMFeedForward | FeedForwardModules", hidden_states: torch.Tensor) -> torch.Tensor:
    """Apply a feed-forward network with residual and LayerNorm."""
    inner = fast_linear(modules.fc1, hidden_states)  # (batch, target_len, intermediate_size)
    output = activation_linear(modules.activation, modules.fc2, inner)
    return modules.layer_norm(hidden_states + byte_mask_dropout(modules.dropout, output))


class XLMSWCMFeedForward(nn.Module):
    """Feed-forward network with residual and LayerNorm."""

    def __init__(self, config: XLMSWCMConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the output, of the shape of `hidden_states`."""
        return feed_forward(self, hidden_states)


class XLMSWCMDecoderLayer(GradientCheckpointingLayer):
    """Base of the decoder layers: self-attention and cross-attention. The subclass orders them and adds FFNs."""

    attention_class = XLMSWCMAttention
    ffn_class: type[nn.Module] = XLMSWCMFeedForward

    def __init__(self, config: XLMSWCMConfig, layer_idx: int):
        super().__init__()
        self.self_attn = self.attention_class(config, layer_idx, is_causal=True)
        self.cross_attn = self.attention_class(config, layer_idx, is_causal=False)

    @checked_forward
    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None = None,
        cache: EncoderDecoderCache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Return the output, of the shape of `hidden_states`."""

        def attend_to_target(states: torch.Tensor) -> torch.Tensor:
            return self.self_attn(states, attention_mask, None, cache, **kwargs)[0]

        def attend_to_source(states: torch.Tensor) -> torch.Tensor:
            return self.cross_attn(states, encoder_attention_mask, encoder_hidden_states, cache, **kwargs)[0]

        return self.apply_sublayers(hidden_states, attend_to_target, attend_to_source)


class XLMSWCMCustomDecoderLayer(XLMSWCMDecoderLayer):
    """Self-attention, FFN, cross-attention, FFN. Both attentions and both FFNs can copy one encoder layer."""

    def __init__(self, config: XLMSWCMConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.ffn1 = self.ffn_class(config)
        self.ffn2 = self.ffn_class(config)

    def apply_sublayers(
        self, hidden_states: torch.Tensor, attend_to_target: Attend, attend_to_source: Attend
    ) -> torch.Tensor:
        """Apply an FFN after each attention."""
        return self.ffn2(attend_to_source(self.ffn1(attend_to_target(hidden_states))))


class XLMSWCMNormalDecoderLayer(XLMSWCMDecoderLayer):
    """Self-attention, cross-attention, FFN: a standard decoder layer with new weights."""

    def __init__(self, config: XLMSWCMConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.ffn = self.ffn_class(config)

    def apply_sublayers(
        self, hidden_states: torch.Tensor, attend_to_target: Attend, attend_to_source: Attend
    ) -> torch.Tensor:
        """Apply an FFN after both attentions."""
        return self.ffn(attend_to_source(attend_to_target(hidden_states)))


def check_padding_masks(*masks: torch.Tensor | None):
    """Raise a `ValueError` if a mask does not have two dimensions."""
    for mask in masks:
        if mask is not None and mask.ndim != 2:
            raise ValueError(
                f"A prefix decoder needs masks of shape (batch_size, length) (got {tuple(mask.shape)}). Pass a mask "
                "that is 1 for tokens and 0 for padding."
            )


def make_prefix_mask(
    source_mask: torch.Tensor | None,
    target_mask: torch.Tensor | None,
    source_states: torch.Tensor,
    hidden_states: torch.Tensor,
    cache: EncoderDecoderCache | None,
    window: int | None = None,
) -> torch.Tensor:
    """
    Return a mask of shape `(batch, 1, target_len, source_len + key_len)`, which is causal in the target.

    With a `window`, a token reads only this many tokens of the target before it.
    """
    check_padding_masks(source_mask, target_mask)
    length, device = hidden_states.shape[1], hidden_states.device
    past_length = cache.get_seq_length() if cache is not None else 0
    num_keys = cached_length(cache, past_length + length)
    if target_mask is not None:
        target_mask = nn.functional.pad(target_mask, (0, num_keys - target_mask.shape[1]))
    if source_mask is None:
        source_mask = torch.ones(source_states.shape[:2], device=device)
    queries = past_length + torch.arange(length, device=device)
    return join_masks(source_mask, target_mask, queries, torch.arange(num_keys, device=device), window)


def join_masks(
    source_mask: torch.Tensor,
    target_mask: torch.Tensor | None,
    queries: torch.Tensor,
    keys: torch.Tensor,
    window: int | None,
) -> torch.Tensor:
    """Return the mask of a prefix decoder for queries and keys at these places of the target."""
    distance = queries[:, None] - keys  # (target_len, key_len)
    target = distance >= 0
    if window is not None:
        target = target & (distance <= window)
    if target_mask is not None:
        target = target & target_mask.bool()[:, None, None]
    source = source_mask.bool()[:, None, None]
    shape = (source_mask.shape[0], 1, len(queries), -1)
    return torch.cat([part.expand(shape) for part in (source, target)], dim=-1)


class XLMSWCMPrefixDecoderLayer(XLMSWCMDecoderLayer):
    """
    An encoder layer that reads the source and the target so far: one attention, one FFN.

    With `weight_sharing="tied"` the layer has no weights, and calls the modules of its encoder layer.
    """

    def __init__(self, config: XLMSWCMConfig, layer_idx: int):
        # The base class would add cross-attention.
        GradientCheckpointingLayer.__init__(self)
        self.self_attn = XLMSWCMPrefixAttention(config, layer_idx)
        self.ffn = XLMSWCMFeedForward(config) if config.weight_sharing == "init" else None

    @checked_forward
    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None = None,
        cache: EncoderDecoderCache | None = None,
        tied_modules: tuple[AttentionModules, FeedForwardModules] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Return the output, of the shape of `hidden_states`."""
        attention, ffn = (None, self.ffn) if tied_modules is None else tied_modules
        hidden_states, *_ = self.self_attn(
            hidden_states, attention_mask, encoder_hidden_states, cache, attention, **kwargs
        )
        return feed_forward(ffn, hidden_states)

    def weights(
        self, encoder_layer: XLMRobertaLayer
    ) -> "tuple[XLMSWCMAttention | AttentionModules, XLMSWCMFeedForward | FeedForwardModules]":
        """Return the modules of attention and FFN. A tied layer uses the modules of `encoder_layer`."""
        return modules_of(encoder_layer) if self.ffn is None else (self.self_attn, self.ffn)


class XLMSWCMHeadTransform(nn.Module):
    """Dense layer, GELU and LayerNorm of XLM-R's masked-LM head. XLM-R uses GELU here for every `hidden_act`."""

    def __init__(self, config: XLMSWCMConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the input of the output projection."""
        return self.layer_norm(nn.functional.gelu(fast_linear(self.dense, hidden_states)))
