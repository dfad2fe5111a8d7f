"""The plain loss, and inputs and gradients to compare with it."""

import torch
from torch import nn

from modeling_xlm_swcm.loss_xlm_swcm import cross_entropy


Tensors = list[torch.Tensor]


def plain_loss(hidden_states, weight, bias, labels, **options) -> torch.Tensor:
    logits = nn.functional.linear(hidden_states, weight, bias)
    options.pop("max_logits", None)
    return cross_entropy(logits, labels, vocab_size=len(weight), **options)


def random_inputs(batch=3, length=5, size=8, vocab=37, ignored=0.3, dtype=torch.float32, seed=0) -> Tensors:
    """Return hidden states, weight, bias and labels. A share of the labels is -100, but not the first label."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (batch, length, size), (vocab, size), (vocab,)
    inputs = [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]
    labels = torch.randint(vocab, (batch, length), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = -100
    labels[0, 0] = vocab - 1
    return [*inputs, labels]


def loss_and_gradients(function, inputs: Tensors, factor: float = 1.0, **options) -> Tensors:
    loss = function(*inputs, **options)
    needed = [tensor for tensor in inputs if tensor.requires_grad]
    return [loss.detach(), *torch.autograd.grad(loss * factor, needed)]


def assert_same(actual: Tensors, expected: Tensors, **tolerance):
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, **({"atol": 1e-5, "rtol": 1e-5} | tolerance))
