"""Cross-entropy over a large vocabulary, with and without holding the logits."""

from functools import partial

import torch
from torch import nn

from .linear_xlm_swcm import product_dtype


IGNORED = -100
MAX_LOGITS = 2**25  # in one chunk: 128 MiB in float32
ROWS = 2**10  # of the weight's gradient that are added to at once


def cross_entropy(
    logits: torch.Tensor,
    labels: torch.LongTensor,
    vocab_size: int,
    num_items_in_batch: torch.Tensor | int | None = None,
    label_smoothing: float = 0.0,
    **kwargs,
) -> torch.Tensor:
    """The loss of logits that are there: the sum over all labels but -100, divided as in `linear_cross_entropy`."""
    labels = labels.to(logits.device)
    total = nn.functional.cross_entropy(
        logits.float().view(-1, vocab_size),
        labels.flatten(),
        ignore_index=IGNORED,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return total / _divisor(labels, num_items_in_batch)


def linear_cross_entropy(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    labels: torch.LongTensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    label_smoothing: float = 0.0,
    max_logits: int = MAX_LOGITS,
    **kwargs,
) -> torch.Tensor:
    r"""
    `cross_entropy(linear(hidden_states, weight, bias), labels)`, holding `max_logits` logits, or one token's, at once.

    The tokens go through in chunks. While a chunk's logits are there, its share of all gradients is computed too, so
    that no product is done twice; backward has only to hand them on.

    Args:
        hidden_states: of shape (batch, target_len, hidden_size).
        weight, bias: of shape (vocab_size, hidden_size) and (vocab_size,). What needs no gradient costs none.
        labels: of shape (batch, target_len); -100 where no loss is wanted.
        num_items_in_batch: what the sum is divided by; by default the number of labels but -100.
        label_smoothing: share of each label that is spread over the whole vocabulary.

    Raises:
        RuntimeError: a gradient of its gradient is wanted.
    """
    device = hidden_states.device
    labels = labels.to(device)
    scale = 1 / _divisor(labels, num_items_in_batch)
    dtype = product_dtype(hidden_states)
    hidden_states, labels = hidden_states.flatten(0, -2), labels.flatten()
    if not torch.compiler.is_compiling():  # which knows no shapes that depend on values
        kept = labels != IGNORED
        hidden_states, labels = hidden_states[kept], labels[kept]
    if not torch.is_grad_enabled():
        weight, bias = weight.detach(), bias.detach()
    most = max(1, max_logits // len(weight))
    num_chunks = max(1, -(-len(labels) // most))
    with torch.autocast(device.type, enabled=False):
        return _LinearCrossEntropy.apply(
            hidden_states, weight, bias, labels, scale, label_smoothing, num_chunks, dtype
        )


class OneGradient:
    """
    Within this context `embeddings`, which all have `weight`, have but one gradient, in common with the loss.

    Every use of a word embedding matrix has a gradient of the matrix's size, and autograd adds them up. Here the rows'
    gradients are added into that of `self.weight`, which is to be multiplied with afterwards, outside of the context.
    Hooks of the embeddings are called as ever. What is computed in this way can be gone back through once.
    """

    def __init__(self, weight: nn.Parameter, embeddings: list[nn.Embedding]):
        self.weight = weight
        self.embeddings = embeddings

    def __enter__(self) -> "OneGradient":
        for embedding in self.embeddings:
            embedding.forward = partial(self._look_up, embedding.padding_idx)
        return self

    def __exit__(self, *exception):
        for embedding in self.embeddings:
            del embedding.forward

    def _look_up(self, padding_idx: int | None, tokens: torch.LongTensor) -> torch.Tensor:
        self.weight, rows = _LookUp.apply(self.weight, tokens, padding_idx)
        return rows


class _LookUp(torch.autograd.Function):
    """The weight, and rows of it."""

    @staticmethod
    def forward(ctx, weight, tokens, padding_idx):
        ctx.padding_idx = padding_idx
        ctx.save_for_backward(tokens)
        return weight.view_as(weight), nn.functional.embedding(tokens, weight)

    @staticmethod
    def backward(ctx, d_weight, d_rows):
        (tokens,) = ctx.saved_tensors
        if ctx.padding_idx is not None:
            d_rows = d_rows.masked_fill((tokens == ctx.padding_idx)[..., None], 0)
        d_weight.index_add_(0, tokens.flatten(), d_rows.flatten(0, -2))
        return d_weight, None, None


def _divisor(labels: torch.LongTensor, num_items_in_batch: torch.Tensor | int | None) -> torch.Tensor:
    if num_items_in_batch is None:
        return (labels != IGNORED).sum()
    return torch.as_tensor(num_items_in_batch, device=labels.device)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_states, weight, bias, labels, scale, label_smoothing, num_chunks, dtype):
        """`dtype` is that of the products; sums are float32 at least."""
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        sum_dtype = torch.promote_types(dtype, torch.float32)
        loss = torch.zeros((), dtype=sum_dtype, device=weight.device)
        d_hidden = []
        d_weight = torch.zeros_like(weight, dtype=sum_dtype) if needs_weight else None
        d_bias = torch.zeros_like(bias, dtype=sum_dtype) if needs_bias else None
        matrix, offset = weight.to(dtype), bias.to(dtype)
        chunks = hidden_states.to(dtype).chunk(num_chunks)
        # for all chunks the same room: memory that is new to the process costs time
        room = _Room(len(chunks[0]), weight, dtype, sum_dtype)
        for states, targets in zip(chunks, labels.chunk(num_chunks), strict=True):
            targets = targets[:, None]
            kept = targets != IGNORED
            targets = targets.masked_fill(~kept, 0)
            logits = room.logits(states, matrix, offset)
            logits -= logits.amax(-1, keepdim=True)
            aimed_at = (1 - label_smoothing) * logits.gather(1, targets)
            if label_smoothing:
                aimed_at += label_smoothing * logits.mean(-1, keepdim=True)
            exponentials = logits.exp_()
            total = exponentials.sum(-1, keepdim=True)
            loss += (total.log() - aimed_at).masked_fill(~kept, 0).sum()
            if not (needs_hidden or needs_weight or needs_bias):
                continue

            factor = (scale * kept).to(sum_dtype)
            d_logits = exponentials.mul_(factor / total)
            if label_smoothing:
                d_logits -= factor * label_smoothing / len(weight)
            d_logits.scatter_add_(1, targets, factor * (label_smoothing - 1))
            if needs_bias:
                d_bias += d_logits.sum(0)
            d_logits = room.narrow_logits(d_logits)
            if needs_hidden:
                d_hidden.append(d_logits @ matrix)
            if needs_weight:
                room.add_product(d_weight, d_logits, states)
        ctx.save_for_backward(
            torch.cat(d_hidden).to(hidden_states.dtype) if needs_hidden else None,
            d_weight.to(weight.dtype) if needs_weight else None,
            d_bias.to(bias.dtype) if needs_bias else None,
        )
        return loss * scale

    @staticmethod
    def backward(ctx, d_loss):
        try:
            gradients = ctx.saved_tensors
        except RuntimeError as error:  # `OneGradient` has added to them, or they are gone
            raise RuntimeError(
                "The loss in chunks goes back only once: leave out retain_graph, or set logits_in_training."
            ) from error
        if not torch.compiler.is_compiling():
            if torch.is_grad_enabled():
                raise RuntimeError(
                    "The loss in chunks has no second derivative: leave out create_graph, or set logits_in_training."
                )
            if d_loss.device.type == "cpu" and d_loss == 1:  # a copy of the large ones less
                return *gradients, None, None, None, None, None
        scaled = (gradient if gradient is None else gradient * d_loss for gradient in gradients)
        return *scaled, None, None, None, None, None


class _Room:
    """Memory for the logits of a chunk, and for the parts of a product that is added to the gradient of the weight."""

    def __init__(self, tokens: int, weight: torch.Tensor, dtype: torch.dtype, sum_dtype: torch.dtype):
        self.is_wide = dtype == sum_dtype
        kinds = (sum_dtype,) if self.is_wide else (dtype, sum_dtype)
        self.chunk = [torch.empty(tokens, len(weight), dtype=kind, device=weight.device) for kind in kinds]
        self.product = [torch.empty_like(weight[:ROWS], dtype=kind) for kind in kinds] if not self.is_wide else []

    def logits(self, states: torch.Tensor, matrix: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        logits = torch.addmm(offset, states, matrix.T, out=self.chunk[0][: len(states)])
        return logits if self.is_wide else self.chunk[1][: len(states)].copy_(logits)

    def narrow_logits(self, d_logits: torch.Tensor) -> torch.Tensor:
        return d_logits if self.is_wide else self.chunk[0][: len(d_logits)].copy_(d_logits)

    def add_product(self, d_weight: torch.Tensor, d_logits: torch.Tensor, states: torch.Tensor):
        """Add `d_logits.T @ states` to `d_weight`, of shape (vocab_size, hidden_size)."""
        if self.is_wide:
            d_weight.addmm_(d_logits.T, states)
            return
        if d_weight.device.type != "cpu":
            d_weight += d_logits.T @ states
            return
        # so few rows at once that their products stay in the processor's cache
        for rows, columns in zip(d_weight.split(ROWS), d_logits.T.split(ROWS), strict=True):
            narrow, wide = (room[: len(rows)] for room in self.product)
            rows += wide.copy_(torch.mm(columns, states, out=narrow))
