"""Evaluate rows of unequal length in one of several processes."""

import json
from pathlib import Path

import torch
from support.corpus_files import new_tokenizer
from support.trainers import TrainerFactory, new_model


def evaluate(folder: Path, numbers: tuple[int, ...]):
    """Write the loss of the first rows to `losses.json`, for each number of rows."""
    tokenizer = new_tokenizer()
    trainer = TrainerFactory(tokenizer, folder)(new_model(tokenizer), per_device_eval_batch_size=3)
    losses = [trainer.evaluate(trainer.eval_dataset[:number])["eval_loss"] for number in numbers]
    assert trainer.args.world_size == 2
    if torch.distributed.get_rank() == 0:
        (folder / "losses.json").write_text(json.dumps(losses))
