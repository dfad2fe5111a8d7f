"""Cross-entropy over a large vocabulary, in chunks of tokens, so that the logits of a batch are never in memory."""

import copy
from functools import partial

import torch
from torch import nn

from .linear_xlm_swcm import compute_dtype


IGNORE_INDEX = -100
# Number of logits in a chunk: 128 MiB in float32 on a CPU. Larger chunks are faster on a GPU, because each chunk adds
# to the gradient of the weight.
MAX_LOGITS, MAX_LOGITS_GPU = 2**25, 2**27
# Number of rows of the weight's gradient in a block of `ChunkBuffer.add_product`.
ROWS_PER_BLOCK = 2**10
# Bound on the sums of a float16 product. The largest float16 number is 65504.
FLOAT16_BOUND = 2.0**15


def cross_entropy(
    logits: torch.Tensor,
    labels: torch.LongTensor,
    vocab_size: int,
    num_items_in_batch: torch.Tensor | int | None = None,
    label_smoothing: float = 0.0,
    **kwargs,
) -> torch.Tensor:
    """
    Return the cross-entropy of logits.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, target_length, vocab_size)`):
            Logits.
        labels (`torch.LongTensor` of shape `(batch_size, target_length)`):
            Token ids. The label -100 is ignored.
        vocab_size (`int`):
            Size of the vocabulary.
        num_items_in_batch (`torch.Tensor` or `int`, *optional*):
            Divisor of the summed loss. By default the number of labels that are not ignored.
        label_smoothing (`float`, *optional*, defaults to 0.0):
            Share of each label that is spread over the whole vocabulary.
        kwargs (*optional*):
            Other keywords of Transformers' loss functions. They are ignored.

    Returns:
        `torch.Tensor`: the loss, a scalar.
    """
    labels = labels.to(logits.device)
    total = nn.functional.cross_entropy(
        logits.float().view(-1, vocab_size),
        labels.flatten(),
        ignore_index=IGNORE_INDEX,
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
    max_logits: int | None = None,
    **kwargs,
) -> torch.Tensor:
    r"""
    Return `cross_entropy(linear(hidden_states, weight, bias), labels)`, computed in chunks of tokens.

    Forward also computes the gradients of each chunk, while the logits of the chunk are in memory. So no matrix
    product is computed twice, and backward only returns the gradients.

    Args:
        hidden_states (`torch.Tensor` of shape `(batch_size, target_length, hidden_size)`):
            Input of the output projection.
        weight (`torch.Tensor` of shape `(vocab_size, hidden_size)`):
            Weight of the output projection.
        bias (`torch.Tensor` of shape `(vocab_size,)`):
            Bias of the output projection.
        labels (`torch.LongTensor` of shape `(batch_size, target_length)`):
            Token ids. The label -100 is ignored.
        num_items_in_batch (`torch.Tensor` or `int`, *optional*):
            Divisor of the summed loss. By default the number of labels that are not ignored.
        label_smoothing (`float`, *optional*, defaults to 0.0):
            Share of each label that is spread over the whole vocabulary.
        max_logits (`int`, *optional*):
            Maximum number of logits in a chunk. A chunk has at least one token. By default 2^25 on a CPU and 2^27 on
            other devices.
        kwargs (*optional*):
            Other keywords of Transformers' loss functions. They are ignored.

    Returns:
        `torch.Tensor`: the loss, a scalar.

    Raises:
        RuntimeError: if backward runs twice, or with `create_graph=True`.
    """
    device = hidden_states.device
    labels = labels.to(device)
    scale = 1 / _divisor(labels, num_items_in_batch)
    dtype = compute_dtype(hidden_states)
    hidden_states, labels = hidden_states.flatten(0, -2), labels.flatten()
    # torch.compile does not support shapes that depend on values.
    if not torch.compiler.is_compiling():
        kept = labels != IGNORE_INDEX
        hidden_states, labels = hidden_states[kept], labels[kept]
    if not torch.is_grad_enabled():
        weight, bias = weight.detach(), bias.detach()
    if max_logits is None:
        max_logits = MAX_LOGITS if device.type == "cpu" else MAX_LOGITS_GPU
    chunk_size = max(1, max_logits // len(weight))
    num_chunks = max(1, -(-len(labels) // chunk_size))
    with torch.autocast(device.type, enabled=False):
        return _LinearCrossEntropy.apply(
            hidden_states, weight, bias, labels, scale, label_smoothing, num_chunks, dtype
        )


class SharedEmbedding:
    """
    Word embeddings that share one gradient with the output projection, to save memory in training.

    By default each use of the word embedding matrix gets a gradient of the size of the matrix, and autograd adds these
    gradients up. Here each lookup returns rows, and also replaces `self.weight` by an alias. The loss uses the last
    alias, so backward starts at the loss and then visits each lookup. Each lookup adds the gradient of its rows to the
    gradient of the loss, in place. Backward can therefore run only once.

    Use a new object for each forward. First look up all embeddings, then compute the loss with `self.weight`:

    ```python
    shared_embedding = SharedEmbedding(lm_head.weight)
    inputs_embeds = shared_embedding.look_up(word_embeddings, input_ids)
    ...
    loss = linear_cross_entropy(hidden_states, shared_embedding.weight, lm_head.bias, labels)
    ```

    Args:
        weight (`nn.Parameter` of shape `(vocab_size, hidden_size)`):
            Weight of the output projection.
    """

    def __init__(self, weight: nn.Parameter):
        self.parameter = weight
        self.weight = weight
        # Set when the loss uses the weight. A lookup that is computed again in backward comes too late to be added.
        self.is_used = False

    def supports(self, embedding: nn.Module) -> bool:
        """Return True if `embedding` is an `nn.Embedding` of the same weight, and its gradient can still be added."""
        return (
            torch.is_grad_enabled()
            and not self.is_used
            and type(embedding) is nn.Embedding
            and "forward" not in vars(embedding)
            and embedding.weight is self.parameter
            and embedding.max_norm is None
            and not embedding.scale_grad_by_freq
            and not embedding.sparse
        )

    def look_up(self, embedding: nn.Embedding, tokens: torch.LongTensor) -> torch.Tensor:
        """Return `embedding(tokens)`, and run its hooks. The gradient is added to the gradient of `self.weight`."""
        # The hooks run on a shallow copy, because other threads may use the module at the same time.
        module = copy.copy(embedding)
        module.forward = partial(self._look_up, padding_idx=embedding.padding_idx)
        return module(tokens)

    def _look_up(self, tokens: torch.LongTensor, padding_idx: int | None) -> torch.Tensor:
        self.weight, rows = _LookUp.apply(self.weight, tokens, padding_idx)
        return rows


class _LookUp(torch.autograd.Function):
    """Return an alias of the weight, and the rows of `tokens`."""

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
        return (labels != IGNORE_INDEX).sum()
    return torch.as_tensor(num_items_in_batch, device=labels.device)


def _float16_factor(hidden_states: torch.Tensor, weight: torch.Tensor, chunk_size: int) -> torch.Tensor:
    """
    Return the power of two by which gradients of logits are multiplied, so that float16 holds their products.

    A gradient of a logit is at most 1. So `chunk_size` times the largest state bounds the gradient of the weight, and
    twice the largest weight bounds the gradient of a state.
    """
    if hidden_states.numel() == 0:
        return torch.ones((), device=weight.device)
    largest_state, largest_weight = (tensor.detach().abs().amax().float() for tensor in (hidden_states, weight))
    bound = torch.maximum(chunk_size * largest_state, 2 * largest_weight).clamp(min=1)
    return torch.exp2(torch.floor(torch.log2(FLOAT16_BOUND / bound)))


def _gradient_dtype(tensor: torch.Tensor, sum_dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the gradient of `tensor` between forward and backward."""
    return sum_dtype if tensor.dtype == torch.float16 else tensor.dtype


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_states, weight, bias, labels, scale, label_smoothing, num_chunks, dtype):
        """
        Compute loss and gradients. Products have the dtype `dtype`, sums at least float32.

        Small numbers are zero in float16. So float16 products are scaled, and float16 gradients stay in float32 until
        backward, which multiplies them by the scale of a gradient scaler.
        """
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        sum_dtype = torch.promote_types(dtype, torch.float32)
        loss = torch.zeros((), dtype=sum_dtype, device=weight.device)
        d_hidden = []
        d_weight = torch.zeros_like(weight, dtype=sum_dtype) if needs_weight else None
        d_bias = torch.zeros_like(bias, dtype=sum_dtype) if needs_bias else None
        compute_weight, compute_bias = weight.to(dtype), bias.to(dtype)
        chunks = hidden_states.to(dtype).chunk(num_chunks)
        buffer = ChunkBuffer(len(chunks[0]), weight, dtype, sum_dtype)
        logits_scale = scale
        if dtype == torch.float16:
            logits_scale = _float16_factor(hidden_states, weight, len(chunks[0]))
        for states, targets in zip(chunks, labels.chunk(num_chunks), strict=True):
            targets = targets[:, None]
            kept = targets != IGNORE_INDEX
            targets = targets.masked_fill(~kept, 0)
            logits = buffer.logits(states, compute_weight, compute_bias)
            logits -= logits.amax(-1, keepdim=True)
            target_logits = (1 - label_smoothing) * logits.gather(1, targets)
            if label_smoothing:
                target_logits += label_smoothing * logits.mean(-1, keepdim=True)
            exponentials = logits.exp_()
            total = exponentials.sum(-1, keepdim=True)
            loss += (total.log() - target_logits).masked_fill(~kept, 0).sum()
            if not (needs_hidden or needs_weight or needs_bias):
                continue

            factor = (logits_scale * kept).to(sum_dtype)
            d_logits = exponentials.mul_(factor / total)
            if label_smoothing:
                d_logits -= factor * label_smoothing / len(weight)
            d_logits.scatter_add_(1, targets, factor * (label_smoothing - 1))
            if needs_bias:
                d_bias += d_logits.sum(0)
            d_logits = buffer.to_compute_dtype(d_logits)
            if needs_hidden:
                d_hidden.append(d_logits @ compute_weight)
            if needs_weight:
                buffer.add_product(d_weight, d_logits, states)
        inputs = hidden_states, weight, bias
        gradients = [
            None if gradient is None else gradient.to(_gradient_dtype(tensor, sum_dtype))
            for gradient, tensor in zip(
                (torch.cat(d_hidden) if d_hidden else None, d_weight, d_bias), inputs, strict=True
            )
        ]
        if dtype == torch.float16:
            for gradient in filter(torch.is_tensor, gradients):
                gradient *= scale / logits_scale
        ctx.dtypes = [tensor.dtype for tensor in inputs]
        ctx.save_for_backward(*gradients)
        return loss * scale

    @staticmethod
    def backward(ctx, d_loss):
        try:
            gradients = ctx.saved_tensors
        except RuntimeError as error:
            # An earlier backward freed the gradients, or `SharedEmbedding` added to them.
            raise RuntimeError(
                "backward can run only once for the loss in chunks. Remove retain_graph, or set "
                "config.logits_in_training=True."
            ) from error
        is_one = False
        if not torch.compiler.is_compiling():
            if torch.is_grad_enabled():
                raise RuntimeError(
                    "The loss in chunks has no second derivative. Remove create_graph, or set "
                    "config.logits_in_training=True."
                )
            # Avoid a copy of the gradients. Other devices would have to synchronize to compare.
            is_one = d_loss.device.type == "cpu" and bool(d_loss == 1)
        scaled = (
            None if gradient is None else (gradient if is_one else gradient * d_loss).to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        )
        return *scaled, None, None, None, None, None


class ChunkBuffer:
    """
    Memory for the logits of one chunk, and for one block of the product of `add_product`.

    Allocating fresh memory is slow (page faults), so all chunks reuse one buffer.

    Args:
        num_tokens (`int`):
            Number of tokens in the largest chunk.
        weight (`torch.Tensor` of shape `(vocab_size, hidden_size)`):
            Weight of the output projection.
        dtype (`torch.dtype`):
            Dtype of matrix products.
        sum_dtype (`torch.dtype`):
            Dtype of the softmax and of sums.
    """

    def __init__(self, num_tokens: int, weight: torch.Tensor, dtype: torch.dtype, sum_dtype: torch.dtype):
        self.has_one_dtype = dtype == sum_dtype
        dtypes = (sum_dtype,) if self.has_one_dtype else (dtype, sum_dtype)
        self.chunk = [torch.empty(num_tokens, len(weight), dtype=kind, device=weight.device) for kind in dtypes]
        self.block = []
        if not self.has_one_dtype:
            self.block = [torch.empty_like(weight[:ROWS_PER_BLOCK], dtype=kind) for kind in dtypes]

    def logits(self, states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Return `linear(states, weight, bias)` in `sum_dtype`."""
        logits = torch.addmm(bias, states, weight.T, out=self.chunk[0][: len(states)])
        return logits if self.has_one_dtype else self.chunk[1][: len(states)].copy_(logits)

    def to_compute_dtype(self, d_logits: torch.Tensor) -> torch.Tensor:
        """Return the gradient of the logits in `dtype`."""
        return d_logits if self.has_one_dtype else self.chunk[0][: len(d_logits)].copy_(d_logits)

    def add_product(self, d_weight: torch.Tensor, d_logits: torch.Tensor, states: torch.Tensor):
        """Add `d_logits.T @ states` to `d_weight`, of shape `(vocab_size, hidden_size)`."""
        if self.has_one_dtype:
            d_weight.addmm_(d_logits.T, states)
            return
        if d_weight.device.type != "cpu":
            d_weight += d_logits.T @ states
            return
        # A block is small enough to stay in the processor's cache.
        for rows, columns in zip(d_weight.split(ROWS_PER_BLOCK), d_logits.T.split(ROWS_PER_BLOCK), strict=True):
            product, summand = (block[: len(rows)] for block in self.block)
            rows += summand.copy_(torch.mm(columns, states, out=product))
