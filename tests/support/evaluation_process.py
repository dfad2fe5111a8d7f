"""Evaluate rows of unequal length, alone or in several processes, and print the loss for each number of rows."""

import os
import sys
from pathlib import Path

from support.corpus_files import new_tokenizer
from support.trainers import TrainerFactory, new_model


def main(folder: str, *numbers: str):
    tokenizer = new_tokenizer()
    trainer = TrainerFactory(tokenizer, Path(folder))(new_model(tokenizer), per_device_eval_batch_size=3)
    for number in map(int, numbers):
        loss = trainer.evaluate(trainer.eval_dataset[:number])["eval_loss"]
        if os.environ.get("RANK", "0") == "0":
            print(f"loss={loss}")


if __name__ == "__main__":
    main(*sys.argv[1:])
