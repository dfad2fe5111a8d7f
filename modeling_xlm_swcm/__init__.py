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

AutoConfig.register(XLMSWCMConfig.model_type, XLMSWCMConfig, exist_ok=True)
AutoModel.register(XLMSWCMConfig, XLMSWCMModel, exist_ok=True)
AutoModelForSeq2SeqLM.register(XLMSWCMConfig, XLMSWCMForConditionalGeneration, exist_ok=True)
AutoTokenizer.register(XLMSWCMConfig, tokenizer_class=XLMSWCMTokenizer, exist_ok=True)

# A saved checkpoint contains the code of these classes, so that it loads without this package.
XLMSWCMConfig.register_for_auto_class()
XLMSWCMModel.register_for_auto_class("AutoModel")
XLMSWCMForConditionalGeneration.register_for_auto_class("AutoModelForSeq2SeqLM")
XLMSWCMTokenizer.register_for_auto_class("AutoTokenizer")


def _fill_card(*args, **kwargs) -> str:
    from .hub.card_template import fill_card

    return fill_card(*args, **kwargs)


# Only the package can fill the model card, so remote code pushes Transformers' own card.
XLMSWCMPreTrainedModel.fill_card = staticmethod(_fill_card)

# Register the classes with the layers of ModernBERT.
AutoConfig.register(XLMSWCMModernConfig.model_type, XLMSWCMModernConfig, exist_ok=True)
AutoModel.register(XLMSWCMModernConfig, XLMSWCMModernModel, exist_ok=True)
AutoModelForSeq2SeqLM.register(XLMSWCMModernConfig, XLMSWCMModernForConditionalGeneration, exist_ok=True)
AutoTokenizer.register(XLMSWCMModernConfig, tokenizer_class=XLMSWCMTokenizer, exist_ok=True)
XLMSWCMModernConfig.register_for_auto_class()
XLMSWCMModernModel.register_for_auto_class("AutoModel")
XLMSWCMModernForConditionalGeneration.register_for_auto_class("AutoModelForSeq2SeqLM")

# Register the classes for checkpoints that are converted from the authors' release.
AutoConfig.register(ReleasedXLMSWCMConfig.model_type, ReleasedXLMSWCMConfig, exist_ok=True)
AutoModel.register(ReleasedXLMSWCMConfig, ReleasedXLMSWCMModel, exist_ok=True)
AutoModelForSeq2SeqLM.register(ReleasedXLMSWCMConfig, ReleasedXLMSWCMForConditionalGeneration, exist_ok=True)
AutoTokenizer.register(ReleasedXLMSWCMConfig, tokenizer_class=XLMSWCMTokenizer, exist_ok=True)
ReleasedXLMSWCMConfig.register_for_auto_class()
ReleasedXLMSWCMModel.register_for_auto_class("AutoModel")
ReleasedXLMSWCMForConditionalGeneration.register_for_auto_class("AutoModelForSeq2SeqLM")
