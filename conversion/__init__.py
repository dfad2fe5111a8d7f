"""From an encoder checkpoint to an XLM-SWCM checkpoint."""

from .checkpoint import ConversionError
from .export import export
from .from_encoder import convert, from_encoder
from .inspection import inspect
from .options import ConversionOptions
from .push import push
from .released import convert_released
from .report import ConversionReport


__all__ = [
    "ConversionError",
    "ConversionOptions",
    "ConversionReport",
    "convert",
    "convert_released",
    "export",
    "from_encoder",
    "inspect",
    "push",
]
