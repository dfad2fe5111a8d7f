"""Score models on a test set, side by side, and count the faults of their outputs (needs the extra `train`)."""

from importlib import import_module
from typing import TYPE_CHECKING

from modeling_xlm_swcm.checkpoints.errors import ConversionError


if TYPE_CHECKING:
    from .report import Evaluation
    from .run import evaluate

__all__ = ["Evaluation", "evaluate"]

_MODULES = {"Evaluation": "report", "evaluate": "run"}


def __getattr__(name: str):
    """Import a public name at its first use, because it needs optional packages."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    except ModuleNotFoundError as error:
        raise ConversionError(
            f"The evaluation needs the package {error.name}. Install xlm-swcm with the extra train, for example with "
            "pip install '.[train]' in a clone."
        ) from error
