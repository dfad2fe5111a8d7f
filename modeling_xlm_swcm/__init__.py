"""XLM-SWCM for Transformers. Importing this package registers its classes with the Auto classes."""

# This import handles Ctrl-C during the other imports, which take seconds.
from . import interruption  # noqa: F401


# isort: split
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer

from .compat_xlm_swcm import VERSION
from .configuration_xlm_swcm import XLMSWCMConfig
from .modeling_xlm_swcm import XLMSWCMForConditionalGeneration, XLMSWCMModel, XLMSWCMPreTrainedModel
from .modern_configuration_xlm_swcm import XLMSWCMModernConfig
from .modern_xlm_swcm import XLMSWCMModernForConditionalGeneration, XLMSWCMModernModel
from .pipeline_xlm_swcm import XLMSWCMPipeline
from .released_xlm_swcm import (
    ReleasedXLMSWCMConfig,
    ReleasedXLMSWCMForConditionalGeneration,
    ReleasedXLMSWCMModel,
)
from .tokenization_xlm_swcm import XLMSWCMTokenizer


__version__ = VERSION
__all__ = [
    "XLMSWCMConfig",
    "XLMSWCMForConditionalGeneration",
    "XLMSWCMModel",
    "XLMSWCMModernConfig",
    "XLMSWCMModernForConditionalGeneration",
    "XLMSWCMModernModel",
    "XLMSWCMPipeline",
    "XLMSWCMPreTrainedModel",
    "XLMSWCMTokenizer",
]

# A saved checkpoint contains the code of the registered classes, so that it loads without this package.
for _config, _model, _generator in (
    (XLMSWCMConfig, XLMSWCMModel, XLMSWCMForConditionalGeneration),
    (XLMSWCMModernConfig, XLMSWCMModernModel, XLMSWCMModernForConditionalGeneration),
    # Checkpoints that are converted from the authors' release.
    (ReleasedXLMSWCMConfig, ReleasedXLMSWCMModel, ReleasedXLMSWCMForConditionalGeneration),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)
    AutoModelForSeq2SeqLM.register(_config, _generator, exist_ok=True)
    AutoTokenizer.register(_config, tokenizer_class=XLMSWCMTokenizer, exist_ok=True)
    _config.register_for_auto_class()
    _model.register_for_auto_class("AutoModel")
    _generator.register_for_auto_class("AutoModelForSeq2SeqLM")
XLMSWCMTokenizer.register_for_auto_class("AutoTokenizer")


def _fill_card(*args, **kwargs) -> str:
    from .hub.card_template import fill_card

    return fill_card(*args, **kwargs)


# Only the package can fill the model card, so remote code pushes Transformers' own card.
XLMSWCMPreTrainedModel.fill_card = staticmethod(_fill_card)
