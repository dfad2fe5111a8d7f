"""Training of XLM-SWCM models (the extra `train`): data, trainer, metrics, pretraining and fine-tuning."""

from importlib import import_module
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .arguments import TrainingArguments
    from .denoising import DataCollatorForDenoising
    from .finetuning import finetune
    from .finetuning_data import FinetuneDataArguments
    from .metrics import GenerationMetrics, score
    from .mixture import CorpusConfig
    from .pretraining import PretrainDataArguments, pretrain
    from .trainer import XLMSWCMTrainer

__all__ = [
    "CorpusConfig",
    "DataCollatorForDenoising",
    "FinetuneDataArguments",
    "GenerationMetrics",
    "PretrainDataArguments",
    "TrainingArguments",
    "XLMSWCMTrainer",
    "finetune",
    "pretrain",
    "score",
]

_MODULES = {
    "CorpusConfig": "mixture",
    "DataCollatorForDenoising": "denoising",
    "FinetuneDataArguments": "finetuning_data",
    "GenerationMetrics": "metrics",
    "PretrainDataArguments": "pretraining",
    "TrainingArguments": "arguments",
    "XLMSWCMTrainer": "trainer",
    "finetune": "finetuning",
    "pretrain": "pretraining",
    "score": "metrics",
}


def __getattr__(name: str):
    """Import a public name at its first use, because some names need optional packages."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
