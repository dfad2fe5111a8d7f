"""Attention, feed-forward network, decoder layers and head of XLM-SWCM.

Source: "Multilingual Encoder Knows more than You Realize: Shared Weights Pretraining for Extremely Low-Resource
Languages" (Su et al., ACL 2025, arXiv 2502.10852).
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.cache_utils import EncoderDecoderCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .compat_xlm_swcm import checked_forward
from .configuration_xlm_swcm import XLMSWCMConfig
from .linear_xlm_swcm import activation_linear, byte_mask_dropout, fast_linear


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

    def __init__(self, config: XLMSWCMConfig, layer_idx: int, is_causal: bool):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = is_causal
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
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
        query = self._split_heads(fast_linear(self.q_proj, hidden_states))
        key, value = self._keys_and_values(hidden_states, key_value_states, cache)

        implementation = self.config._attn_implementation
        is_padding_mask = isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2
        if key_value_states is not None and is_padding_mask:
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
        attended = fast_linear(self.out_proj, attended.flatten(2))  # (batch, target_len, hidden_size)
        return self._add_and_norm(hidden_states, attended), weights

    def _add_and_norm(self, hidden_states: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        return self.layer_norm(hidden_states + byte_mask_dropout(self.dropout, attended))

    def _split_heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (batch, heads, len, head_dim)

    def _keys_and_values(
        self,
        hidden_states: torch.Tensor,
        key_value_states: torch.Tensor | None,
        cache: EncoderDecoderCache | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        is_cross_attention = key_value_states is not None
        if is_cross_attention and cache is not None and cache.is_updated.get(self.layer_idx):
            # The source stays the same in all decoding steps.
            cached = cache.cross_attention_cache.layers[self.layer_idx]
            return cached.keys, cached.values

        states = key_value_states if is_cross_attention else hidden_states
        key, value = (self._split_heads(fast_linear(linear, states)) for linear in (self.k_proj, self.v_proj))
        if cache is None:
            return key, value
        if not is_cross_attention:
            return cache.self_attention_cache.update(key, value, self.layer_idx)
        cache.is_updated[self.layer_idx] = True
        return cache.cross_attention_cache.update(key, value, self.layer_idx)


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
        inner = fast_linear(self.fc1, hidden_states)  # (batch, target_len, intermediate_size)
        output = activation_linear(self.activation, self.fc2, inner)
        return self.layer_norm(hidden_states + byte_mask_dropout(self.dropout, output))


class XLMSWCMDecoderLayer(GradientCheckpointingLayer):
    """Base of the decoder layers: self-attention, cross-attention, and FFNs where the subclass puts them."""

    attention_class = XLMSWCMAttention

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
        hidden_states, _ = self.self_attn(hidden_states, attention_mask, None, cache, **kwargs)
        hidden_states = self.feed_forward_between(hidden_states)
        hidden_states, _ = self.cross_attn(
            hidden_states, encoder_attention_mask, encoder_hidden_states, cache, **kwargs
        )
        return self.feed_forward_after(hidden_states)


class XLMSWCMCustomDecoderLayer(XLMSWCMDecoderLayer):
    """Self-attention, FFN, cross-attention, FFN. Both attentions and both FFNs can copy one encoder layer."""

    def __init__(self, config: XLMSWCMConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.ffn1 = XLMSWCMFeedForward(config)
        self.ffn2 = XLMSWCMFeedForward(config)

    def feed_forward_between(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.ffn1(hidden_states)

    def feed_forward_after(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.ffn2(hidden_states)


class XLMSWCMNormalDecoderLayer(XLMSWCMDecoderLayer):
    """Self-attention, cross-attention, FFN: a standard decoder layer with new weights."""

    def __init__(self, config: XLMSWCMConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.ffn = XLMSWCMFeedForward(config)

    def feed_forward_between(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states

    def feed_forward_after(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.ffn(hidden_states)


class XLMSWCMHeadTransform(nn.Module):
    """Dense layer, GELU and LayerNorm of XLM-R's masked-LM head. XLM-R uses GELU here for every `hidden_act`."""

    def __init__(self, config: XLMSWCMConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.layer_norm(nn.functional.gelu(fast_linear(self.dense, hidden_states)))
