"""Train with float32 weights, and save them in another dtype."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from modeling_xlm_swcm.checkpoints.inspection import read_model_config

from .arguments import ModelArguments


HALF_DTYPES = (torch.float16, torch.bfloat16)


def choose_saved_dtype(args: ModelArguments) -> torch.dtype:
    """Return the dtype of the option `save_dtype`, or else of the model to start from."""
    dtype = args.save_dtype or read_model_config(args.model_name_or_path).dtype or torch.float32
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype, for example `float16`."""
    return str(dtype).removeprefix("torch.")


def use_float32_weights(model: nn.Module):
    """
    Convert float16 and bfloat16 parameters to float32, in place.

    Most updates of a training are too small for float16 and bfloat16 weights. The frozen parameters of a quantized
    model keep their dtype.
    """
    is_quantized = getattr(model, "is_quantized", False)
    for parameter in model.parameters():
        if parameter.dtype in HALF_DTYPES and (parameter.requires_grad or not is_quantized):
            parameter.grad = None
            parameter.data = parameter.data.float()


@contextmanager
def keep_weights(model: nn.Module) -> Iterator[None]:
    """Restore all parameters and buffers at the end. Use it around code that converts the model in place."""
    weights = [(parameter, parameter.data) for parameter in model.parameters()]
    # PyTorch converts the data of a parameter, but replaces a buffer.
    buffers = [(module, *named) for module in model.modules() for named in module.named_buffers(recurse=False)]
    try:
        yield
    finally:
        for parameter, data in weights:
            parameter.data = data
        for module, name, buffer in buffers:
            setattr(module, name, buffer)


def convert_tensors(tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return tensors in another floating-point dtype. Tensors that share memory still share memory."""
    converted: dict[tuple, torch.Tensor] = {}
    for tensor in tensors.values():
        key = tensor.data_ptr(), tensor.shape
        if key not in converted:
            converted[key] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return {name: converted[tensor.data_ptr(), tensor.shape] for name, tensor in tensors.items()}


def find_not_finite(tensors: dict[str, torch.Tensor]) -> str | None:
    """Return the name of the first tensor with a value that is infinite or NaN, if any."""
    # Quantized weights of one byte cannot be infinite or NaN.
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.itemsize > 1}
    return next((name for name, tensor in floats.items() if not tensor.detach().isfinite().all()), None)


def round_weights(model: nn.Module, dtype: torch.dtype):
    """Round the weights to another dtype, in place, so that an evaluation scores the model that was saved."""
    for parameter in model.parameters():
        parameter.data.copy_(parameter.data.to(dtype))
