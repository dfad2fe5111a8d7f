"""Positions of XLM-R: the first token has the position `pad_token_id + 1`, and padding has `pad_token_id`."""

import torch
from transformers.cache_utils import EncoderDecoderCache

from .configuration_xlm_swcm import XLMSWCMConfig


def check_length(name: str, length: int, config: XLMSWCMConfig):
    """Raise a `ValueError` if a source or target has more tokens than the model has positions."""
    if length > config.longest_input:
        raise ValueError(
            f"The {name} has {length} tokens, but the model has only {config.longest_input} positions. "
            f"Truncate the {name}."
        )


def check_mask(name: str, mask: torch.Tensor | None, length: int):
    """Raise a `ValueError` if a 2D mask does not have one column per token. Transformers would hide some tokens."""
    if mask is not None and mask.ndim == 2 and mask.shape[1] != length:
        raise ValueError(
            f"The attention mask of the {name} has {mask.shape[1]} columns, but the {name} has {length} tokens. Pass "
            "one column for each token, including cached tokens."
        )


def position_ids_from_mask(attention_mask: torch.Tensor, padding_idx: int) -> torch.LongTensor:
    """Return the positions for a mask of shape `(batch_size, length)` that is 1 for tokens and 0 for padding."""
    is_token = attention_mask.ne(0).long()
    return is_token.cumsum(-1) * is_token + padding_idx


def select_positions(position_ids: torch.LongTensor, past_length: int | torch.Tensor, length: int) -> torch.LongTensor:
    """Return the positions of the new tokens. The mask of a static cache can also have columns for later tokens."""
    return position_ids.index_select(1, past_length + torch.arange(length, device=position_ids.device))


def cached_length(cache: EncoderDecoderCache | None, length: int) -> int:
    """Return the number of target positions that the cache returns after `length` tokens."""
    if cache is not None and cache.is_compileable:
        return cache.self_attention_cache.layers[0].max_cache_len
    return length
