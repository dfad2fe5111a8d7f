"""examples/pretrain.py in a process that notes what it trains on and that dies when it is told to.

RECORD: a file per process, with the clean text of each example that it trains on.
KILL: "step N" or "save N", where the process kills itself: before step N, or in the middle of checkpoint N.
"""

import json
import os
import signal
import sys
from pathlib import Path

from transformers import TrainerCallback


sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import pretrain  # noqa: E402 - examples/ is no package

from modeling_xlm_swcm.training.denoising import DataCollatorForDenoising  # noqa: E402
from modeling_xlm_swcm.training.trainer import XLMSWCMTrainer  # noqa: E402


def record(path: str):
    collate = DataCollatorForDenoising.__call__

    def recording(self, examples):
        batch = collate(self, examples)
        if "epoch" in examples[0]:  # not of the evaluation
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


if __name__ == "__main__":
    if path := os.environ.get("RECORD"):
        record(path)
    if plan := os.environ.get("KILL"):
        kill(*plan.split())
    pretrain.main()
