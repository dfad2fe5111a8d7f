"""From an encoder checkpoint to an XLM-SWCM checkpoint."""

from .checkpoint import ConversionError
from .from_encoder import convert, from_encoder
from .options import ConversionOptions
from .released import convert_released
from .report import ConversionReport


__all__ = ["ConversionError", "ConversionOptions", "ConversionReport", "convert", "convert_released", "from_encoder"]
