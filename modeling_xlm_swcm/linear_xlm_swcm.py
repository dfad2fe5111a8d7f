"""Faster linear layers, activations and dropout. Results equal the results of PyTorch's modules up to rounding."""

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from transformers.activations import GELUActivation


# Hooks on all modules, for example of `torch.utils.flop_counter`. PyTorch changes these objects in place.
GLOBAL_HOOKS = (
    torch_module._global_forward_hooks,
    torch_module._global_forward_pre_hooks,
    torch_module._global_backward_hooks,
    torch_module._global_backward_pre_hooks,
)


def compute_dtype(states: torch.Tensor) -> torch.dtype:
    """Return the dtype in which a linear layer computes: the dtype of autocast if enabled, or else of `states`."""
    device = states.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype


def is_plain_linear(module: nn.Module) -> bool:
    """Return True if `module` is an `nn.Linear` without adapters, quantization, hooks or a patched method."""
    return type(module) is nn.Linear and is_unhooked(module)


def is_unhooked(module: nn.Module) -> bool:
    """Return True if calling `module` runs only its class's `forward`: no hooks, no patched method."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return not any(hooks + GLOBAL_HOOKS) and "forward" not in vars(module)


def fast_linear(linear: nn.Linear, states: torch.Tensor) -> torch.Tensor:
    """
    Return `linear(states)`, with oneDNN for float32 inference on a CPU.

    For the few rows of a decoding step oneDNN reads the weights up to twice as fast as `nn.Linear`. Turn it off with
    `torch.backends.mkldnn.flags(enabled=False)`.

    Args:
        linear (`nn.Linear`):
            Layer. A layer with hooks, an adapter or quantized weights is called as usual.
        states (`torch.Tensor` of shape `(..., in_features)`):
            Input of the layer.

    Returns:
        `torch.Tensor` of shape `(..., out_features)`: output of the layer.
    """
    is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if is_traced or linear.training or torch.is_grad_enabled() or not _supports_onednn(linear, states):
        return linear(states)
    return torch.ops.mkldnn._linear_pointwise(states, linear.weight, linear.bias, "none", [], "")


def _supports_onednn(linear: nn.Linear, states: torch.Tensor) -> bool:
    return (
        is_plain_linear(linear)
        # Quantized and sharded weights have other types.
        and type(linear.weight) is nn.Parameter
        and linear.weight.device.type == "cpu"
        and linear.weight.dtype == compute_dtype(states) == torch.float32
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
    )


def byte_mask_dropout(dropout: nn.Dropout, states: torch.Tensor) -> torch.Tensor:
    """
    Return `dropout(states)`, with a mask of one byte per element in training on a CPU.

    PyTorch's mask takes the dtype of `states`, so four bytes in float32. Both masks drop the same elements.
    """
    # Dynamo of PyTorch 2.8 cannot trace `is_unhooked`.
    is_eager_cpu = states.device.type == "cpu" and not torch.compiler.is_compiling()
    if is_eager_cpu and type(dropout) is nn.Dropout and dropout.training and dropout.p > 0 and is_unhooked(dropout):
        return torch.native_dropout(states, dropout.p, True)[0]
    return dropout(states)


def activation_linear(activation: nn.Module, linear: nn.Linear, states: torch.Tensor) -> torch.Tensor:
    """
    Return `linear(activation(states))`. For GELU, backward recomputes the activation instead of keeping it in memory.

    Args:
        activation (`nn.Module`):
            Activation function. Functions other than GELU are called as usual.
        linear (`nn.Linear`):
            Layer after the activation.
        states (`torch.Tensor` of shape `(..., in_features)`):
            Input of the activation.

    Returns:
        `torch.Tensor` of shape `(..., out_features)`: output of the layer.
    """
    # Dynamo of PyTorch 2.8 cannot trace `is_unhooked`.
    is_eager_gelu = (
        not torch.compiler.is_compiling() and type(activation) is GELUActivation and is_unhooked(activation)
    )
    is_plain = is_eager_gelu and is_plain_linear(linear) and type(linear.weight) is nn.Parameter
    if torch.is_grad_enabled() and is_plain:
        return _GeluLinear.apply(states, linear.weight, linear.bias)
    return fast_linear(linear, activation(states))


class _GeluLinear(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(states, weight, bias):
        dtype = compute_dtype(states)
        # Autocast of PyTorch 2.8 would keep casts that are made here, and casts made here have no gradient.
        with torch.autocast(states.device.type, enabled=False):
            bias = None if bias is None else bias.to(dtype)
            return nn.functional.linear(nn.functional.gelu(states).to(dtype), weight.to(dtype), bias)

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
