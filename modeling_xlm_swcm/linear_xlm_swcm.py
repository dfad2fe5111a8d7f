"""Products with the weights of a model and what stands between them, fast, and with little left for the way back."""

import torch
from torch import nn
from transformers.activations import GELUActivation


def product_dtype(states: torch.Tensor) -> torch.dtype:
    device = states.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype


def is_plain(linear: nn.Module) -> bool:
    """Whether a projection is a product and nothing else; with adapters, quantisers and hooks it is more."""
    return type(linear) is nn.Linear and is_unhooked(linear)


def is_unhooked(module: nn.Module) -> bool:
    """Whether to call a module is to call the `forward` of its class, and nothing else."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return not any(hooks) and "forward" not in vars(module)


def project(linear: nn.Linear, states: torch.Tensor) -> torch.Tensor:
    """
    `linear(states)`, of shape (..., in_features) -> (..., out_features).

    In float32 inference on a CPU the product is oneDNN's: with the few rows of a decoding step it reads the weights up
    to twice as fast as what `nn.Linear` calls. `torch.backends.mkldnn.flags(enabled=False)` turns it off.
    """
    is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if is_traced or linear.training or torch.is_grad_enabled() or not _suits_onednn(linear, states):
        return linear(states)
    return torch.ops.mkldnn._linear_pointwise(states, linear.weight, linear.bias, "none", [], "")


def _suits_onednn(linear: nn.Linear, states: torch.Tensor) -> bool:
    return (
        is_plain(linear)
        and type(linear.weight) is nn.Parameter  # quantised and sharded weights are of other types
        and linear.weight.device.type == "cpu"
        and linear.weight.dtype == product_dtype(states) == torch.float32
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
    )


def drop(dropout: nn.Dropout, states: torch.Tensor) -> torch.Tensor:
    """`dropout(states)`, the same elements dropped; which they are takes a byte each, on a CPU otherwise a float."""
    is_simple = type(dropout) is nn.Dropout and is_unhooked(dropout) and dropout.training and dropout.p > 0
    if is_simple and states.device.type == "cpu" and not torch.compiler.is_compiling():
        return torch.native_dropout(states, dropout.p, True)[0]
    return dropout(states)


def activate_and_project(activation: nn.Module, linear: nn.Linear, states: torch.Tensor) -> torch.Tensor:
    """
    `linear(activation(states))`, of shape (..., in_features) -> (..., out_features).

    For the way back only `states` are kept, and their GELU, which the product needs, is computed again.
    """
    is_gelu = type(activation) is GELUActivation and is_unhooked(activation)
    is_simple = is_gelu and is_plain(linear) and type(linear.weight) is nn.Parameter
    if torch.is_grad_enabled() and is_simple and not torch.compiler.is_compiling():
        return _GeluProduct.apply(states, linear.weight, linear.bias)
    return project(linear, activation(states))


class _GeluProduct(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(states, weight, bias):
        return nn.functional.linear(nn.functional.gelu(states), weight, bias)

    @staticmethod
    def setup_context(ctx, inputs, output):
        states, weight, _ = inputs
        ctx.save_for_backward(states, weight)

    @staticmethod
    def backward(ctx, d_output):
        states, weight = ctx.saved_tensors
        d_states = d_weight = d_bias = None
        d_rows = d_output.flatten(0, -2)
        if ctx.needs_input_grad[0]:
            d_states = torch.ops.aten.gelu_backward(d_output @ weight.to(d_output.dtype), states)
        if ctx.needs_input_grad[1]:
            d_weight = d_rows.T @ nn.functional.gelu(states).flatten(0, -2).to(d_output.dtype)
        if ctx.needs_input_grad[2]:
            d_bias = d_rows.sum(0)
        return d_states, d_weight, d_bias
