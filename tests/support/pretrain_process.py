"""Pretraining in a process that kills itself, or that records its examples.

As a script, it records the epoch and clean text of each training example: one file a process, with the prefix RECORD.
"""

import json
import os
import signal
import sys

from transformers import TrainerCallback

from modeling_xlm_swcm.training.arguments import ModelArguments, TrainingArguments, parse_arguments
from modeling_xlm_swcm.training.denoising import DataCollatorForDenoising
from modeling_xlm_swcm.training.pretraining import PretrainDataArguments, pretrain
from modeling_xlm_swcm.training.trainer import XLMSWCMTrainer


def record(path: str):
    collate = DataCollatorForDenoising.__call__

    def recording(self, examples):
        batch = collate(self, examples)
        # Examples of the evaluation have no epoch.
        if "epoch" in examples[0]:
            with open(f"{path}.{os.environ.get('RANK', 0)}", "a") as file:
                for example, labels in zip(examples, batch["labels"].tolist(), strict=True):
                    file.write(json.dumps([example["epoch"], labels]) + "\n")
        return batch

    DataCollatorForDenoising.__call__ = recording


def kill(moment: str, number: str):
    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    class Death(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if moment == "step" and state.global_step + 1 == int(number):
                die()

    initialise, save = XLMSWCMTrainer.__init__, XLMSWCMTrainer._save_rng_state

    def initialise_mortal(self, *args, **kwargs):
        initialise(self, *args, callbacks=[Death()], **kwargs)

    def save_and_die(self, folder):
        if moment == "save" and self.state.global_step == int(number):
            die()
        save(self, folder)

    XLMSWCMTrainer.__init__, XLMSWCMTrainer._save_rng_state = initialise_mortal, save_and_die


def pretrain_until(moment: str, words: list[str]):
    """Pretrain, and kill this process: "step N" before step N, "save N" while it writes checkpoint N."""
    kill(*moment.split())
    pretrain(*parse_arguments(ModelArguments, PretrainDataArguments, TrainingArguments, argv=words))


def pretrain_and_record(path: str, words: list[str]):
    """Pretrain, and record the examples of each process in a file with the prefix `path`."""
    record(path)
    pretrain(*parse_arguments(ModelArguments, PretrainDataArguments, TrainingArguments, argv=words))


if __name__ == "__main__":
    pretrain_and_record(os.environ["RECORD"], sys.argv[1:])
