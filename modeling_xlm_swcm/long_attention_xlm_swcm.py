"""Attention to long texts in parts, so that memory grows linearly with the length."""

import torch
from torch.utils.checkpoint import checkpoint
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.modernbert.modeling_modernbert import ModernBertAttention, apply_rotary_pos_emb
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .layers_xlm_swcm import XLMSWCMAttention, attend_to_prefix, join_masks


# Number of queries in a part of a local layer of the encoder, and in a part of a decoder layer.
ENCODER_PART = 256
DECODER_PART = 1024

# Queries, the keys near them, and a mask of shape (batch or 1, 1, queries, keys).
Part = tuple[slice, slice, torch.Tensor]
# Masks of shape (batch, length) of the source, and of the target or `None`.
PaddingMasks = tuple[torch.Tensor, torch.Tensor | None]


def split_near(attention_mask: torch.Tensor | None, hidden_states: torch.Tensor, window: int) -> list[Part]:
    """Split the queries of a text into parts, with the keys that are at most `window` tokens away."""
    length = hidden_states.shape[1]
    places = torch.arange(length, device=hidden_states.device)
    parts = []
    for start in range(0, length, ENCODER_PART):
        rows, near = slice(start, start + ENCODER_PART), slice(max(0, start - window), start + ENCODER_PART + window)
        mask = ((places[rows, None] - places[near]).abs() <= window)[None, None]
        if attention_mask is not None:
            mask = mask & attention_mask[:, None, None, near].bool()
        parts.append((rows, near, mask))
    return parts


class XLMSWCMModernLocalAttention(ModernBertAttention):
    """Attention of ModernBERT to near tokens. If the mask is a list of parts, it skips distant tokens."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | list[Part] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the output of shape `(batch, length, hidden_size)`, and the attention weights or `None`."""
        if not isinstance(attention_mask, list):
            return super().forward(hidden_states, position_embeddings, attention_mask, **kwargs)
        # (3, batch, heads, length, head_dim)
        query, key, value = self.Wqkv(hidden_states).unflatten(-1, (3, -1, self.head_dim)).permute(2, 0, 3, 1, 4)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        kwargs |= {"dropout": self.attention_dropout if self.training else 0.0, "scaling": self.head_dim**-0.5}
        attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
        attended = [
            attend(self, query[:, :, rows], key[:, :, near], value[:, :, near], mask, **kwargs)[0]
            for rows, near, mask in attention_mask
        ]
        return self.out_drop(self.Wo(torch.cat(attended, dim=1).flatten(2))), None


def attend_in_parts(
    attention: XLMSWCMAttention,
    query: torch.Tensor,
    source: tuple[torch.Tensor, torch.Tensor],
    target: tuple[torch.Tensor, torch.Tensor],
    masks: PaddingMasks,
    window: int | None,
    **kwargs: Unpack[TransformersKwargs],
) -> torch.Tensor:
    """
    Attend to source and target as [`attend_to_prefix`] does, but do not return the weights.

    The backward pass computes each part again, so no mask is kept.
    """
    (key, value), (source_mask, target_mask) = target, masks
    past_length, places = key.shape[2] - query.shape[2], torch.arange(key.shape[2], device=key.device)

    def attend(query: torch.Tensor, rows: slice, near: slice) -> torch.Tensor:
        near_mask = None if target_mask is None else target_mask[:, near]
        mask = join_masks(source_mask, near_mask, places[rows], places[near], window)
        return attend_to_prefix(attention, query, source, (key[:, :, near], value[:, :, near]), mask, **kwargs)[0]

    attended = []
    for start in range(0, query.shape[2], DECODER_PART):
        part = query[:, :, start : start + DECODER_PART]
        rows = slice(past_length + start, past_length + start + part.shape[2])
        near = slice(0 if window is None else max(0, rows.start - window), rows.stop)
        attended.append(checkpoint(attend, part, rows, near, use_reentrant=False))
    return torch.cat(attended, dim=1)
