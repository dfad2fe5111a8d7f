"""Read weights and configs, write folders whole or not at all, and inspect checkpoints."""

from .code import replace_code
from .errors import ConversionError
from .inspection import inspect


__all__ = ["ConversionError", "inspect", "replace_code"]
