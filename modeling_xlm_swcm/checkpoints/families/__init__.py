"""The encoder families that can be converted. Each module of this folder describes one family as `FAMILY`."""

from importlib import import_module
from pkgutil import iter_modules

from modeling_xlm_swcm.checkpoints.family import EncoderFamily


FAMILIES: tuple[EncoderFamily, ...] = tuple(
    import_module(f"{__name__}.{module.name}").FAMILY for module in iter_modules(__path__)
)

MODEL_TYPES = {model_type: family for family in FAMILIES for model_type in family.model_types}
