"""Evaluate rows of unequal length, alone or in several processes, and print the loss."""

import os
import sys
from pathlib import Path

from support.corpus_files import new_tokenizer
from support.trainers import TrainerFactory, new_model


def main(folder: str, rows: int):
    tokenizer = new_tokenizer()
    make_trainer = TrainerFactory(tokenizer, Path(folder))
    make_trainer.rows = make_trainer.rows[:rows]
    loss = make_trainer(new_model(tokenizer), per_device_eval_batch_size=3).evaluate()["eval_loss"]
    if os.environ.get("RANK", "0") == "0":
        print(f"loss={loss}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
