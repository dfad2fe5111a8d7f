"""The layers of the paper's decoder for ModernBERT: a norm before each sublayer, rotary positions in self-attention.

Source: "Multilingual Encoder Knows more than You Realize: Shared Weights Pretraining for Extremely Low-Resource
Languages" (Su et al., ACL 2025, arXiv 2502.10852).
"""

import torch
from torch import nn
from transformers.cache_utils import EncoderDecoderCache
from transformers.models.modernbert.modeling_modernbert import ModernBertMLP, rotate_half
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .layers_xlm_swcm import XLMSWCMAttention, XLMSWCMCustomDecoderLayer, XLMSWCMNormalDecoderLayer
from .linear_xlm_swcm import fast_linear, is_unhooked
from .long_attention_xlm_swcm import PaddingMasks, attend_in_parts
from .modern_configuration_xlm_swcm import XLMSWCMModernConfig


# Maps each module of a custom decoder layer to the module of the encoder layer that it copies.
MODERN_CUSTOM_LAYER_SOURCES = {
    f"{attention}.{module}": source
    for attention in ("self_attn", "cross_attn")
    for module, source in {"layer_norm": "attn_norm", "Wqkv": "attn.Wqkv", "Wo": "attn.Wo"}.items()
} | {
    f"{ffn}.{module}": source
    for ffn in ("ffn1", "ffn2")
    for module, source in {"layer_norm": "mlp_norm", "Wi": "mlp.Wi", "Wo": "mlp.Wo"}.items()
}

# Cosines and sines of positions, each of shape (batch or 1, length, head_dim).
Rotation = tuple[torch.Tensor, torch.Tensor]
# Mask and rotation of the target.
TargetContext = tuple[torch.Tensor | PaddingMasks | None, Rotation]


def rotate(states: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Rotate queries or keys of shape `(batch, heads, length, head_dim)` by their positions, as in ModernBERT."""
    cos, sin = (part.unsqueeze(1) for part in rotation)
    return ((states.float() * cos) + (rotate_half(states.float()) * sin)).to(states.dtype)


def make_norm(config: XLMSWCMModernConfig) -> nn.LayerNorm:
    """Return a LayerNorm with the fields of ModernBERT."""
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)


def partial_linear(linear: nn.Linear, states: torch.Tensor, rows: slice) -> torch.Tensor:
    """Return `linear(states)[..., rows]`, without the cost of the other rows if the layer is a plain one."""
    # Dynamo of PyTorch 2.8 cannot trace `is_unhooked`.
    is_plain = type(linear) is nn.Linear and (torch.compiler.is_compiling() or is_unhooked(linear))
    if not is_plain or type(linear.weight) is not nn.Parameter:
        return linear(states)[..., rows]
    return nn.functional.linear(states, linear.weight[rows], None if linear.bias is None else linear.bias[rows])


class XLMSWCMModernAttention(XLMSWCMAttention):
    """Self-attention with rotary positions, or cross-attention without positions, after a norm and with residual."""

    def __init__(self, config: XLMSWCMModernConfig, layer_idx: int, is_causal: bool):
        super().__init__(config, layer_idx, is_causal, has_weights=False)
        self.attention_type = config.decoder_layer_types[layer_idx]
        # Flash attention reads this instead of a mask.
        is_local = is_causal and self.attention_type == "sliding_attention"
        self.window = {"sliding_window": config.sliding_window + 1} if is_local else {}
        # As in ModernBERT, the norm of the embeddings is the norm of the first self-attention.
        is_first = is_causal and layer_idx == 0 and config.decoder_blocks[0] == "custom"
        self.layer_norm = nn.Identity() if is_first else make_norm(config)
        self.Wqkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.attention_bias)
        self.Wo = nn.Linear(config.hidden_size, config.hidden_size, bias=config.attention_bias)
        self.dropout = nn.Dropout(config.attention_dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: dict[str, TargetContext] | torch.Tensor | None = None,
        key_value_states: torch.Tensor | None = None,
        cache: EncoderDecoderCache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the output of shape `(batch, target_len, hidden_size)`, and the attention weights or `None`."""
        normed = self.layer_norm(hidden_states)
        if key_value_states is None:
            attention_mask, rotation = attention_mask[self.attention_type]
            query, key, value = map(self._split_heads, fast_linear(self.Wqkv, normed).chunk(3, dim=-1))
            query = rotate(query, rotation)
            key, value = self._cache_target(rotate(key, rotation), value, cache)
        else:
            hidden_size = self.config.hidden_size
            query = self._split_heads(partial_linear(self.Wqkv, normed, slice(hidden_size)))
            if (cached := self._cached_source(cache)) is None:
                projected = partial_linear(self.Wqkv, key_value_states, slice(hidden_size, None))
                key, value = map(self._split_heads, projected.chunk(2, dim=-1))
                cached = self._cache_source(key, value, cache)
            key, value = cached
        if isinstance(attention_mask, tuple):
            no_source, window = (key[:, :, :0], value[:, :, :0]), self.config.sliding_window
            attended = attend_in_parts(self, query, no_source, (key, value), attention_mask, window, **kwargs)
            attended, weights = attended.flatten(2), None
        else:
            is_cross_attention = key_value_states is not None
            attended, weights = self._attend(
                query, key, value, attention_mask, is_cross_attention, **self.window, **kwargs
            )
        return hidden_states + self.dropout(fast_linear(self.Wo, attended)), weights


class XLMSWCMModernFeedForward(ModernBertMLP):
    """Feed-forward network of ModernBERT, after a norm and with residual."""

    def __init__(self, config: XLMSWCMModernConfig):
        super().__init__(config)
        self.layer_norm = make_norm(config)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the output, of the shape of `hidden_states`."""
        inner, gate = fast_linear(self.Wi, self.layer_norm(hidden_states)).chunk(2, dim=-1)
        return hidden_states + fast_linear(self.Wo, self.drop(self.act(inner) * gate))


class XLMSWCMModernCustomDecoderLayer(XLMSWCMCustomDecoderLayer):
    """Self-attention, FFN, cross-attention, FFN. Both attentions and both FFNs can copy one ModernBERT layer."""

    attention_class = XLMSWCMModernAttention
    ffn_class = XLMSWCMModernFeedForward


class XLMSWCMModernNormalDecoderLayer(XLMSWCMNormalDecoderLayer):
    """Self-attention, cross-attention, FFN: a standard decoder layer with new weights."""

    attention_class = XLMSWCMModernAttention
    ffn_class = XLMSWCMModernFeedForward
