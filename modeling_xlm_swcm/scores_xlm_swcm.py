"""Score generated texts by the probabilities that the model gives to their tokens."""

from collections.abc import Mapping

import torch
from transformers import PreTrainedModel


# Number of logits in memory at a time: 128 MiB in float32.
MAX_LOGITS = 2**25


@torch.no_grad()
def score_sequences(
    model: PreTrainedModel,
    inputs: Mapping[str, torch.Tensor],
    sequences: torch.LongTensor,
    end_ids: torch.LongTensor | None,
    is_forced: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Return the mean log probability of the generated tokens of each sequence.

    The model reads source and sequence again. So beams, penalties, sampling and terms do not change the probabilities,
    and the logits of all steps and beams are never in memory.

    Args:
        model (`PreTrainedModel`):
            Model that generated the sequences.
        inputs (`Mapping[str, torch.Tensor]`):
            Sources, with `input_ids` of shape `(batch_size, source_length)`.
        sequences (`torch.LongTensor` of shape `(batch_size, num_sequences, target_length)`):
            Generated token ids from the start token on, with padding.
        end_ids (`torch.LongTensor`, *optional*):
            Ids of the end tokens. The first end token of a sequence counts.
        is_forced (`bool`):
            Whether the first token after the start token was forced, for example a language tag. It does not count.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: scores, and the number of tokens that they average, each of shape
        `(batch_size, num_sequences)`. Without tokens, the score is NaN.
    """
    num_sequences, length = sequences.shape[1:]
    rows = sequences.flatten(0, 1)
    counted = mask_generated(rows, end_ids, is_forced, model.config.pad_token_id)
    sums = []
    for part in torch.arange(len(rows)).split(max(1, MAX_LOGITS // (length * model.config.vocab_size))):
        sources = {name: values[part // num_sequences] for name, values in inputs.items()}
        logits = model(**sources, decoder_input_ids=rows[part, :-1], use_cache=False).logits.float()
        chosen = logits.gather(-1, rows[part, 1:, None])[..., 0]
        sums.append(((chosen - logits.logsumexp(-1)) * counted[part]).sum(-1))
    tokens = counted.sum(-1)
    return (torch.cat(sums) / tokens).unflatten(0, (-1, num_sequences)), tokens.unflatten(0, (-1, num_sequences))


def mask_generated(
    rows: torch.Tensor, end_ids: torch.Tensor | None, is_forced: bool, pad_token_id: int
) -> torch.Tensor:
    """Return True for each token after the start token that the model chose, up to the first end token."""
    tokens = rows[:, 1:]
    is_end = torch.zeros_like(tokens, dtype=torch.bool) if end_ids is None else torch.isin(tokens, end_ids)
    # A stop string ends a sequence without an end token.
    counted = (is_end.cumsum(-1) - is_end.int() == 0) & (is_end | tokens.ne(pad_token_id))
    counted[:, : int(is_forced)] = False
    return counted
