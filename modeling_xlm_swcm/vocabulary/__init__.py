"""Change the vocabulary of an encoder or an XLM-SWCM checkpoint."""

from .extend import extend
from .trim import trim


__all__ = ["extend", "trim"]
