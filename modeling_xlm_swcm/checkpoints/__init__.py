"""Read, write and inspect checkpoints."""

from .code import replace_code
from .errors import ConversionError
from .inspection import inspect


__all__ = ["ConversionError", "inspect", "replace_code"]
