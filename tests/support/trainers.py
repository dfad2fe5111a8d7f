"""Small trainers for tests."""

from pathlib import Path

import torch
from support.models import tiny_model

from modeling_xlm_swcm import XLMSWCMForConditionalGeneration, XLMSWCMTokenizer
from modeling_xlm_swcm.training.arguments import TrainingArguments
from modeling_xlm_swcm.training.denoising import DataCollatorForDenoising
from modeling_xlm_swcm.training.trainer import XLMSWCMTrainer


def new_model(tokenizer: XLMSWCMTokenizer, **options) -> XLMSWCMForConditionalGeneration:
    """Return a small model without dropout."""
    dropout = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return tiny_model(vocab_size=len(tokenizer), **dropout | options)


def new_rows(tokenizer: XLMSWCMTokenizer) -> list[dict]:
    """Return translation pairs of unequal length, into two languages."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number in range(16):
        source, target = (
            torch.randint(8, 140, (length,), generator=generator).tolist() for length in (5, 2 + number % 6)
        )
        tag = tokenizer.get_lang_id(tokenizer.languages[number % 2])
        rows.append({"input_ids": [0, tag, *source, 2], "labels": [tag, *target, 2]})
    return rows


class TrainerFactory:
    """Make trainers that write to `folder`, with quick settings."""

    def __init__(self, tokenizer: XLMSWCMTokenizer, folder: Path):
        self.tokenizer, self.rows, self.folder = tokenizer, new_rows(tokenizer), folder

    def __call__(self, model=None, trainer_class=XLMSWCMTrainer, callbacks=None, **options) -> XLMSWCMTrainer:
        settings = dict(
            per_device_train_batch_size=4, max_steps=4, save_steps=2, use_cpu=True, report_to=[], disable_tqdm=True
        )
        settings |= {"learning_rate": 1e-3, "save_strategy": "steps"} | options
        return trainer_class(
            model or new_model(self.tokenizer),
            TrainingArguments(str(self.folder), **settings),
            train_dataset=self.rows,
            eval_dataset=self.rows,
            data_collator=DataCollatorForDenoising(self.tokenizer),
            processing_class=self.tokenizer,
            callbacks=callbacks,
        )
