"""Check the types of arguments. A wrong type then gives a sentence, and not the error of a later step."""

import os
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

from .errors import ConversionError


MAX_SEED = 2**32 - 1


def check_path(name: str, value: object):
    """Refuse an argument that is not a path or a Hub id, for example a model."""
    if not isinstance(value, str | os.PathLike):
        raise ConversionError(
            f"`{name}` must be a path or a Hub id (got {type(value).__name__}). Pass a text or a Path."
        )


def as_list(name: str, values: Any) -> list[str]:
    """Return a text or path, or several of them, as a list of texts."""
    values = [values] if isinstance(values, str | os.PathLike) else values
    items = list(values) if isinstance(values, Iterable) else [values]
    if wrong := [item for item in items if not isinstance(item, str | os.PathLike)]:
        raise ConversionError(f"`{name}` must be a list of texts (got {type(wrong[0]).__name__}). Pass a list.")
    return [os.fspath(item) for item in items]


def check_number(name: str, value: object, is_whole: bool = True):
    """Refuse an argument that is not a number."""
    if not isinstance(value, Integral if is_whole else Real):
        kind = "whole number" if is_whole else "number"
        raise ConversionError(f"`{name}` must be a {kind} (got {value!r}). Pass a {kind}.")


def check_seed(seed: Any):
    """Refuse a random seed that is not a whole number from 0 to `MAX_SEED`."""
    check_number("seed", seed)
    if not 0 <= seed <= MAX_SEED:
        raise ConversionError(f"`seed` must be from 0 to {MAX_SEED} (got {seed}). Use another seed.")
