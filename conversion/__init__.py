"""Convert an encoder to an XLM-SWCM model."""

import warnings
from importlib import import_module

from modeling_xlm_swcm.checkpoints.errors import ConversionError

from .from_encoder import convert, from_encoder
from .options import ConversionOptions
from .released import convert_released
from .report import ConversionReport


__all__ = [
    "ConversionError",
    "ConversionOptions",
    "ConversionReport",
    "convert",
    "convert_released",
    "from_encoder",
]

# Names that users of 0.1.0 import from here. Remove them in 0.3.0.
MOVED = {"export": "export", "inspect": "checkpoints", "push": "hub"}


def __getattr__(name: str):
    if name not in MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = f"modeling_xlm_swcm.{MOVED[name]}"
    message = f"Importing {name} from {__name__} stops working in 0.3.0. Import it from {module}."
    warnings.warn(message, FutureWarning, stacklevel=2)
    return getattr(import_module(module), name)
