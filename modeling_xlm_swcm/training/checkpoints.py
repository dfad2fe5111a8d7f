"""Checkpoints that are whole or not there, and runs that go on from them as if they had not been stopped."""

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import Trainer, TrainerState, TrainingArguments
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints
from transformers.utils import logging


logger = logging.get_logger(__name__)

UNFINISHED = "_unfinished"  # pushes leave out what begins with _
RUN = "run.json"
# of the training arguments those that the weights depend on
DECISIVE = ["max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "optim"]
DECISIVE += ["learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2"]
DECISIVE += ["max_grad_norm", "label_smoothing_factor", "scheduled_sampling", "seed", "data_seed", "bf16", "fp16"]
DECISIVE += ["adam_epsilon", "optim_args", "lr_scheduler_kwargs", "train_sampling_strategy", "dataloader_drop_last"]
DECISIVE += ["dataloader_num_workers"]
# of the optimizer, which a checkpoint has as well
OPTIMIZER_SETTINGS = ["initial_lr", "weight_decay", "betas", "eps"]


class TrainingError(RuntimeError):
    """Training cannot go on, or not begin; the message is one sentence that says what to do."""


class ResumableTrainer(Trainer):
    r"""
    A [`~transformers.Trainer`] that can be stopped at any time.

    - A checkpoint is written to `_unfinished/` and renamed, so that no half of one can be taken for a whole one.
    - A checkpoint keeps the settings of its run, `settings` and what matters of the training arguments, and a run that
      goes on with others says so, and does. One that has come to its end trains no further.
    - A loss or gradient that is not finite stops the training before it reaches the weights.
    - A training of fewer steps than `logging_steps` logs its losses, too: there is a plot to draw at its end.
    """

    # beside the training arguments, for the scripts to fill
    settings: dict = {}
    _is_saving = False

    def set_initial_training_values(self, args, dataloader):
        values = super().set_initial_training_values(args, dataloader)
        max_steps = values[-1]
        if args.logging_steps > max_steps:
            args.logging_steps = max(max_steps // 20, 1)
        return values

    def _get_train_sampler(self, train_dataset=None):
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            # upstream's order of an epoch hangs on a state that no checkpoint has
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            sampler.generator = torch.Generator()
            sampler.set_epoch = lambda epoch: sampler.generator.manual_seed(seed + epoch)
        return sampler

    def train(self, resume_from_checkpoint=None, **kwargs):
        if resume_from_checkpoint is True:
            resume_from_checkpoint = get_last_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise TrainingError(f"{self.args.output_dir} has no checkpoint to go on from.")
        if resume_from_checkpoint and self.is_world_process_zero():
            self._say_what_differs(Path(resume_from_checkpoint, RUN))
        return super().train(resume_from_checkpoint, **kwargs)

    def _describe_run(self) -> dict[str, str]:
        settings = {name: getattr(self.args, name, None) for name in DECISIVE} | self.settings
        settings["num_processes"] = self.args.world_size
        return {name: str(value) for name, value in settings.items()}

    def _say_what_differs(self, path: Path):
        before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        for name, value in self._describe_run().items():
            if before.get(name, value) != value:
                logger.warning(f"The run goes on with --{name} {value}; its checkpoint had {before[name]}.")

    def _run_epoch(self, **kwargs):
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(**kwargs)
        else:  # upstream would do a step more for every time that an ended run is resumed
            self.control.should_training_stop = True

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        with self._refusing(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint):
        if checkpoint is None:
            return
        groups = self.optimizer.param_groups
        asked = [{name: group[name] for name in OPTIMIZER_SETTINGS if name in group} for group in groups]
        with self._refusing(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
        for group, settings in zip(self.optimizer.param_groups, asked, strict=True):
            if before := group.get("initial_lr"):
                group["lr"] *= settings["initial_lr"] / before
            group |= settings
        if hasattr(self.lr_scheduler, "base_lrs"):
            self.lr_scheduler.base_lrs = [settings["initial_lr"] for settings in asked]
            self.lr_scheduler._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def _load_rng_state(self, checkpoint):
        with self._refusing(checkpoint):
            super()._load_rng_state(checkpoint)

    @contextmanager
    def _refusing(self, checkpoint: str):
        """What damaged and foreign files raise, as one sentence."""
        try:
            yield
        except TrainingError:
            raise
        except (RuntimeError, ValueError, EOFError, UnpicklingError, SafetensorError) as error:
            detail = (str(error).strip() or type(error).__name__).splitlines()[-1].strip().rstrip(".")
            raise TrainingError(
                f"{checkpoint} does not fit this model, or is damaged: {detail}. Go on with the model that the run "
                "began with, or from the checkpoint before, or give another --output_dir."
            ) from error

    def _issue_warnings_after_load(self, load_result):
        # a file has tied tensors once, and upstream warns of the others
        lost = set(load_result.missing_keys) - self.model.all_tied_weights_keys.keys()
        if wrong := sorted(lost | set(load_result.unexpected_keys)):
            raise TrainingError(f"The checkpoint is not of this model: {wrong[0]} is in one of the two alone.")

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training and not loss.isfinite():
            self._stop(f"The loss is {loss.item()}")
        return (loss, outputs) if return_outputs else loss

    def _get_grad_norm(self, model, grad_norm=None):
        grad_norm = super()._get_grad_norm(model, grad_norm)
        # float16 has such steps at times, and its scaler leaves them out
        if not self.args.fp16 and not torch.as_tensor(grad_norm).isfinite():
            self._stop(f"The norm of the gradients is {float(grad_norm)}")
        return grad_norm

    def _stop(self, what: str):
        checkpoint = get_last_checkpoint(self.args.output_dir)
        kept = "there is no checkpoint yet" if checkpoint is None else f"the last good checkpoint is {checkpoint}"
        raise TrainingError(
            f"{what} at step {self.state.global_step + 1}; {kept}. Try a lower learning rate, a longer warm-up or "
            "float32, and look at the data of this step."
        )

    def _get_output_dir(self, trial):
        folder = super()._get_output_dir(trial)
        return str(Path(folder, UNFINISHED)) if self._is_saving else folder

    def _save_checkpoint(self, model: nn.Module, trial):
        run = Path(self._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(run / UNFINISHED, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._is_saving = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._is_saving = False
        self.accelerator.wait_for_everyone()
        best = run / f"checkpoint-{self.state.best_global_step}"
        # upstream looks for it in the folder that it writes to
        if self.state.best_global_step == self.state.global_step or best.is_dir():
            self.state.best_model_checkpoint = str(best)
        if self.args.should_save:
            self.state.save_to_json(run / UNFINISHED / name / TRAINER_STATE_NAME)
            (run / UNFINISHED / name / RUN).write_text(json.dumps(self._describe_run(), indent=1), encoding="utf-8")
            shutil.rmtree(run / name, ignore_errors=True)
            (run / UNFINISHED / name).rename(run / name)
            (run / UNFINISHED).rmdir()
            if self.args.push_to_hub:
                self._push_from_checkpoint(str(run / name))
            rotate_checkpoints(
                output_dir=run,
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
            )
        self.accelerator.wait_for_everyone()


def check_output_dir(args: TrainingArguments):
    """
    Raises:
        TrainingError: the output folder is a file, or cannot be made or written.
    """
    folder = Path(args.output_dir).absolute()
    if folder.is_file():
        raise TrainingError(f"--output_dir {args.output_dir} is a file; give a folder.")
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise TrainingError(f"--output_dir {args.output_dir} cannot be made or written to; give another.")


def find_checkpoint(args: TrainingArguments, start: str | None = None) -> str | None:
    """The checkpoint to resume from: `resume_from_checkpoint`, where `last` stands for the last one, if any.

    Args:
        start: the model that a new run begins with; no run writes over it.

    Raises:
        TrainingError: there are checkpoints, and nothing is said about them, or not the one that is asked for, or it
            is damaged; the output folder is that of the model.
    """
    check_output_dir(args)
    last = get_last_checkpoint(args.output_dir) if Path(args.output_dir).is_dir() else None
    asked = args.resume_from_checkpoint
    if asked is None and last is not None:
        raise TrainingError(
            f"{args.output_dir} has checkpoints: give --resume_from_checkpoint last to go on from {Path(last).name}, "
            "or another --output_dir."
        )
    if (checkpoint := last if asked == "last" else asked) is None:
        if start is not None and Path(start).resolve() == Path(args.output_dir).resolve():
            raise TrainingError(f"--output_dir {args.output_dir} is the model to start from; give another.")
        return None
    if not (state := Path(checkpoint, TRAINER_STATE_NAME)).is_file():
        raise TrainingError(f"--resume_from_checkpoint {checkpoint} is no checkpoint; give its folder, or last.")
    try:
        TrainerState.load_from_json(str(state))
    except (ValueError, TypeError) as error:
        raise TrainingError(f"{state} is damaged: remove the checkpoint, and go on from the one before.") from error
    if args.deepspeed is None and not Path(checkpoint, SCHEDULER_NAME).is_file():
        raise TrainingError(
            f"{checkpoint} has a model and no optimizer (--save_only_model), so nothing can go on from it as it was: "
            f"begin anew with --model_name_or_path {checkpoint} and another --output_dir."
        )
    return checkpoint
