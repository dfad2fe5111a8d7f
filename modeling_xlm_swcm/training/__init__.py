"""Training of XLM-SWCM models (the extra `train`): data, trainer, metrics, pretraining and fine-tuning."""

from importlib import import_module
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .arguments import TrainingArguments
    from .denoising import DataCollatorForDenoising
    from .finetuning import finetune
    from .metrics import GenerationMetrics
    from .pretraining import pretrain
    from .trainer import XLMSWCMTrainer

__all__ = [
    "DataCollatorForDenoising",
    "GenerationMetrics",
    "TrainingArguments",
    "XLMSWCMTrainer",
    "finetune",
    "pretrain",
]

_MODULES = {
    "DataCollatorForDenoising": "denoising",
    "GenerationMetrics": "metrics",
    "TrainingArguments": "arguments",
    "XLMSWCMTrainer": "trainer",
    "finetune": "finetuning",
    "pretrain": "pretraining",
}


def __getattr__(name: str):
    """Import a public name at its first use, because some names need optional packages."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
