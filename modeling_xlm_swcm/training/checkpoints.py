"""Checkpoints that are written completely or not at all, and runs that resume from them exactly."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import (
    IntervalStrategy,
    SchedulerType,
    get_last_checkpoint,
    has_length,
    rotate_checkpoints,
)
from transformers.training_args import OptimizerNames
from transformers.utils import logging

from modeling_xlm_swcm.checkpoints.errors import ConversionError, first_line, is_out_of_memory
from modeling_xlm_swcm.checkpoints.writing import unfinished

from .evaluation import TokenLossTrainer
from .files import read_run
from .precision import convert_tensors, dtype_name, find_not_finite, keep_weights, use_float32_weights
from .sampling import LengthBucketSampler


logger = logging.get_logger(__name__)

# Uploads to the Hub skip names that start with an underscore.
UNFINISHED = "_unfinished"
RUN = "run.json"
# training arguments that change the weights
RUN_SETTINGS = [
    "max_steps",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "optim",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "max_grad_norm",
    "label_smoothing_factor",
    "scheduled_sampling",
    "seed",
    "data_seed",
    "bf16",
    "fp16",
    "adam_epsilon",
    "optim_args",
    "lr_scheduler_kwargs",
    "train_sampling_strategy",
    "dataloader_drop_last",
    "dataloader_num_workers",
    "neftune_noise_alpha",
]
# schedules that follow the metric of an evaluation
METRIC_SCHEDULERS = (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)
# settings that choose the state of optimizer or scheduler -> values with a state that no other value can use
STATES = {
    "optim": [name.value for name in OptimizerNames if name.value not in ("adamw_torch", "adamw_torch_fused")],
    "lr_scheduler_type": [kind.value for kind in METRIC_SCHEDULERS],
}
# metrics of every evaluation of Transformers, without the loss
SPEED_METRICS = ["runtime", "samples_per_second", "steps_per_second"]
# settings of the optimizer that a checkpoint also stores
OPTIMIZER_SETTINGS = ["initial_lr", "weight_decay", "betas", "eps"]


def describe_settings(args: TrainingArguments, more: dict) -> dict[str, str]:
    """Return the training arguments that change the weights, and more settings, as texts."""
    settings = {name: getattr(args, name, None) for name in RUN_SETTINGS} | more
    return {name: str(getattr(value, "value", value)) for name, value in settings.items()}


class TrainingError(RuntimeError):
    """Training that cannot start or continue. The message says what to do."""


class ResumableTrainer(TokenLossTrainer):
    r"""
    A [`~transformers.Trainer`] that can be stopped at any time and resumed exactly.

    - Each checkpoint is written to `_unfinished/` and then renamed, so an incomplete checkpoint is never loaded.
    - Each checkpoint stores the settings of its run. A run that resumes with other settings logs them and uses them.
      A run that has ended does not train further.
    - Weights train in float32. `save_model` writes the dtype that the model had before the training, and checkpoints
      hold float32.
    - A loss or gradient that is not finite stops the training before the weights change. Weights that are not finite
      are never saved.
    - A run with fewer steps than `logging_steps` still logs its losses, so that there is a plot at its end.
    - The evaluation loss is the mean over all labels ([`TokenLossTrainer`]).

    Attributes:
        settings (`dict`): settings of the training script, stored beside the training arguments.
        saved_dtype (`torch.dtype`, *optional*): dtype in which `save_model` writes the weights of a whole model.
    """

    settings: dict = {}
    saved_dtype: torch.dtype | None = None
    _is_saving = False
    _is_starting = False
    _skipped_steps = 0

    def __init__(self, *args, **kwargs):
        with explain_start():
            super().__init__(*args, **kwargs)
        # Accelerate would train in float32 without a warning.
        if self.accelerator.mixed_precision == "fp16" and self.args.device.type == "cpu":
            raise TrainingError("--fp16 needs a GPU. Pass --bf16 instead, or remove --fp16 to train in float32.")

    def set_initial_training_values(self, args, dataloader):
        """Return the lengths of the run, and reduce `logging_steps` if the run is shorter."""
        if has_length(dataloader) and len(dataloader) == 0:
            raise TrainingError(
                "The training data has fewer rows than a batch, and --dataloader_drop_last drops them. Use smaller "
                "batches, or leave out --dataloader_drop_last."
            )
        values = super().set_initial_training_values(args, dataloader)
        max_steps = values[-1]
        if (warmup := args.get_warmup_steps(max_steps)) > max_steps:
            raise TrainingError(
                f"--warmup_steps {warmup} is longer than the training of {max_steps} steps. Use fewer warmup steps."
            )
        if args.logging_steps > max_steps:
            args.logging_steps = max(max_steps // 20, 1)
        return values

    def _get_train_sampler(self, train_dataset=None):
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            # Each process gets a batch of a step. These batches must have similar lengths too.
            sampler.batch_size *= self.args.world_size
            return LengthBucketSampler(sampler, seed)
        return sampler

    def call_model_init(self, trial=None):
        """Return a new model with float32 weights."""
        model = super().call_model_init(trial)
        self._prepare_weights(model)
        return model

    def _prepare_weights(self, model: nn.Module):
        if self.saved_dtype is None:
            self.saved_dtype = getattr(model, "dtype", None)
        use_float32_weights(model)

    def train(self, resume_from_checkpoint=None, **kwargs):
        """
        Train as in Transformers, and log settings that a resumed run changes.

        Raises:
            TrainingError: if there is no checkpoint to resume from, or the training cannot continue.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = get_last_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise TrainingError(
                    f"{self.args.output_dir} has no checkpoint to resume from. Start a new run instead."
                )
        if resume_from_checkpoint and self.is_world_process_zero():
            self._log_changed_settings(Path(resume_from_checkpoint, RUN))
        check_best_metric(self)
        self._prepare_weights(self.model)
        self._skipped_steps, self._is_starting = 0, True
        with explain_start(lambda: self._is_starting):
            return super().train(resume_from_checkpoint, **kwargs)

    def training_step(self, *args, **kwargs):
        """Run one step as in Transformers."""
        self._is_starting = False
        return super().training_step(*args, **kwargs)

    def _finalize_training(self, *args, **kwargs):
        if not (self.args.load_best_model_at_end and self.state.best_model_checkpoint):
            self._check_weights()
        steps = self.state.global_step - self._initial_global_step
        if self._skipped_steps and self._skipped_steps >= steps:
            self._stop(f"The gradients of all {steps} steps overflow in float16, so no weight has changed", steps)
        return super()._finalize_training(*args, **kwargs)

    def _determine_best_metric(self, metrics, trial):
        try:
            return super()._determine_best_metric(metrics, trial)
        except KeyError as error:
            raise TrainingError(
                f"The evaluation has no metric {self.args.metric_for_best_model}. Set metric_for_best_model to one of "
                f"{', '.join(name.removeprefix('eval_') for name in metrics)}."
            ) from error

    def _maybe_log_save_evaluate(self, *args, **kwargs):
        if self.control.should_evaluate:
            self._check_weights()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def evaluation_loop(self, *args, **kwargs):
        """Evaluate as in Transformers, and keep the float32 weights."""
        # A whole evaluation in float16 or bfloat16 converts the model in place.
        converts = not self.is_in_train and (self.args.fp16_full_eval or self.args.bf16_full_eval)
        with keep_weights(self.model) if converts else nullcontext():
            return super().evaluation_loop(*args, **kwargs)

    def _describe_run(self) -> dict[str, str]:
        return describe_settings(self.args, self.settings | {"num_processes": self.args.world_size})

    def _log_changed_settings(self, path: Path):
        before = read_run(path)
        for name, value in self._describe_run().items():
            if before.get(name, value) != value:
                logger.warning(f"Resuming with --{name} {value}. The checkpoint used {before[name]}.")

    def _run_epoch(self, **kwargs):
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(**kwargs)
        else:  # Transformers would train one more step each time an ended run is resumed.
            self.control.should_training_stop = True
            logger.warning(
                f"The run has ended: the checkpoint has {self.state.global_step} of {self.state.max_steps} steps. To "
                "train further, pass a larger --max_steps or --num_train_epochs."
            )

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        with self._explaining_errors(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint):
        if checkpoint is None:
            return
        self._check_optimizer(checkpoint)
        groups = self.optimizer.param_groups
        asked = [{name: group[name] for name in OPTIMIZER_SETTINGS if name in group} for group in groups]
        with self._explaining_errors(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
        groups = self.optimizer.param_groups
        for group, settings in zip(groups, asked, strict=True):
            group |= settings
        if hasattr(self.lr_scheduler, "base_lrs"):
            self.lr_scheduler.base_lrs = [settings["initial_lr"] for settings in asked]
        if isinstance(self.lr_scheduler, LambdaLR):
            # The checkpoint has the rate of the old schedule.
            shares = [share(self.lr_scheduler.last_epoch) for share in self.lr_scheduler.lr_lambdas]
            rates = [group["initial_lr"] * share for group, share in zip(groups, shares, strict=True)]
        else:
            # ReduceLROnPlateau has reduced the rate of the old run.
            rate = self.args.learning_rate
            before = float(read_run(Path(checkpoint, RUN)).get("learning_rate", rate))
            rates = [group["lr"] * rate / before if before else rate for group in groups]
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
        self.lr_scheduler._last_lr = rates

    def _check_optimizer(self, checkpoint: str):
        """Raise a [`TrainingError`] if the states in a checkpoint are of another optimizer or scheduler."""
        before, now = read_run(Path(checkpoint, RUN)), self._describe_run()
        for name, unique in STATES.items():
            if before.get(name, now[name]) != now[name] and {before[name], now[name]} & {*unique}:
                raise TrainingError(
                    f"--{name} {now[name]} cannot use the state in {checkpoint}, which is of {before[name]}. Pass "
                    f"--{name} {before[name]}, or start a new run with --model_name_or_path {checkpoint}."
                )

    def _load_rng_state(self, checkpoint):
        with self._explaining_errors(checkpoint):
            super()._load_rng_state(checkpoint)

    @contextmanager
    def _explaining_errors(self, checkpoint: str):
        """Raise errors of damaged files and of other models as a [`TrainingError`]."""
        try:
            yield
        except TrainingError:
            raise
        except (RuntimeError, ValueError, KeyError, EOFError, UnpicklingError, SafetensorError) as error:
            detail = (str(error).strip() or type(error).__name__).splitlines()[-1].strip().rstrip(".")
            raise TrainingError(
                f"{checkpoint} does not fit this model or is damaged: {detail}. Use the model that the run started "
                "with, an earlier checkpoint, or another --output_dir."
            ) from error

    def _issue_warnings_after_load(self, load_result):
        # A file stores tied tensors once. Transformers lists the others as missing.
        lost = set(load_result.missing_keys) - self.model.all_tied_weights_keys.keys()
        if wrong := sorted(lost | set(load_result.unexpected_keys)):
            raise TrainingError(
                f"The checkpoint belongs to another model: only one of the two models has {wrong[0]}. Use the model "
                "that the run started with."
            )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """
        Compute the loss as in Transformers.

        Raises:
            TrainingError: if the loss is infinite or NaN.
        """
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training and not loss.isfinite():
            self._stop(f"The loss is {loss.item()}")
        return (loss, outputs) if return_outputs else loss

    def _get_grad_norm(self, model, grad_norm=None):
        grad_norm = super()._get_grad_norm(model, grad_norm)
        if not torch.as_tensor(grad_norm).isfinite():
            scaler = self.accelerator.scaler
            # A gradient scaler for float16 skips such steps and halves its scale.
            if scaler is None and not self.args.fp16:
                self._stop(f"The norm of the gradients is {float(grad_norm)}")
            if scaler is not None and scaler.get_scale() < 1:
                self._stop(
                    f"The norm of the gradients is {float(grad_norm)} with a loss scale of {scaler.get_scale()}"
                )
            self._skipped_steps += 1
        return grad_norm

    def _check_weights(self):
        """Raise a [`TrainingError`] if a weight is infinite or NaN."""
        if name := find_not_finite(dict(self.model.named_parameters())):
            self._stop(f"The weight {name} is not finite", self.state.global_step)

    def _stop(self, what: str, step: int | None = None):
        """Raise a [`TrainingError`] that names the last good checkpoint."""
        folder = Path(self.args.output_dir)
        checkpoint = get_last_checkpoint(self.args.output_dir) if folder.is_dir() else None
        kept = "There is no checkpoint yet." if checkpoint is None else f"The last good checkpoint is {checkpoint}."
        step = self.state.global_step + 1 if step is None else step
        raise TrainingError(
            f"{what} at step {step}. {kept} Try a lower learning rate, a longer warmup or float32. Check the data of "
            "this step."
        )

    def save_model(self, output_dir=None, _internal_call=False):
        """
        Save the model in `saved_dtype`.

        Raises:
            TrainingError: if a weight is infinite or NaN.
        """
        if not self._is_saving:
            self._check_weights()
        super().save_model(output_dir, _internal_call)

    def _save(self, output_dir=None, state_dict=None):
        if self._is_saving or not self.args.should_save:
            return super()._save(output_dir, state_dict)
        folder = Path(output_dir or self.args.output_dir)
        with self._unfinished_folder(folder, folder) as partial:
            self._save_converted(partial, state_dict)
            for path in partial.iterdir():
                if path.is_dir():
                    shutil.rmtree(folder / path.name, ignore_errors=True)
                path.replace(folder / path.name)

    def _save_converted(self, folder: Path, state_dict: dict | None):
        """Save the model in `saved_dtype`. Adapters keep their dtype."""
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        is_whole = isinstance(model, PreTrainedModel) and not getattr(model, "_hf_peft_config_loaded", False)
        if not is_whole or self.saved_dtype in (None, model.dtype):
            super()._save(str(folder), state_dict)
            return
        state_dict = convert_tensors(model.state_dict() if state_dict is None else state_dict, self.saved_dtype)
        if name := find_not_finite(state_dict):
            raise TrainingError(
                f"The weight {name} has a value that is too large for {dtype_name(self.saved_dtype)}. Save "
                "the model in float32, for example with --save_dtype float32."
            )
        super()._save(str(folder), state_dict)
        trained_dtype, model.config.dtype = model.config.dtype, dtype_name(self.saved_dtype)
        model.config.save_pretrained(folder)
        model.config.dtype = trained_dtype

    @contextmanager
    def _unfinished_folder(self, folder: Path, output: Path) -> Iterator[Path]:
        """Yield a folder for files that are not complete yet, and remove it at the end and at Ctrl-C."""
        partial = folder / UNFINISHED
        if not self.args.should_save:
            yield partial
            return
        unfinished.add(partial)
        try:
            shutil.rmtree(partial, ignore_errors=True)
            yield partial
        except (OSError, RuntimeError, SafetensorError) as error:
            if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
                raise
            raise TrainingError(
                f"Cannot write {output}: {first_line(error).rstrip('.')}. Free some space or choose another "
                "--output_dir. Then resume from the last checkpoint, if there is one."
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            unfinished.discard(partial)

    def _get_output_dir(self, trial):
        folder = super()._get_output_dir(trial)
        return str(Path(folder, UNFINISHED)) if self._is_saving else folder

    def _save_checkpoint(self, model: nn.Module, trial):
        self._check_weights()
        run = Path(self._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        with self._unfinished_folder(run, run / name) as partial:
            self.accelerator.wait_for_everyone()
            self._is_saving = True
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._is_saving = False
            self.accelerator.wait_for_everyone()
            best = run / f"checkpoint-{self.state.best_global_step}"
            # Transformers looks for the best checkpoint in the folder that it writes to.
            if self.state.best_global_step == self.state.global_step or best.is_dir():
                self.state.best_model_checkpoint = str(best)
            if self.args.should_save:
                self.state.save_to_json(partial / name / TRAINER_STATE_NAME)
                (partial / name / RUN).write_text(json.dumps(self._describe_run(), indent=1), encoding="utf-8")
                shutil.rmtree(run / name, ignore_errors=True)
                (partial / name).rename(run / name)
        if self.args.should_save:
            if self.args.push_to_hub:
                self._push_from_checkpoint(str(run / name))
            rotate_checkpoints(
                output_dir=run,
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
            )
        self.accelerator.wait_for_everyone()


@contextmanager
def explain_start(is_starting: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Raise errors of libraries before the first step as a [`TrainingError`]. Most come from an option."""
    try:
        yield
    except Exception as error:
        is_ours = isinstance(error, TrainingError | ConversionError)
        if is_ours or not is_starting() or is_out_of_memory(error):
            raise
        raise TrainingError(
            f"The training cannot start: {first_line(error).rstrip('.')}. Check the options of the training."
        ) from error


def check_best_metric(trainer: Trainer):
    """
    Check that an evaluation during the training computes the metric that selects the best model.

    Raises:
        TrainingError: if the evaluation does not compute this metric.
    """
    name, metrics = trainer.args.metric_for_best_model, trainer.compute_metrics
    names = getattr(metrics, "metric_names", None) if metrics else []
    is_used = name is not None and trainer.args.eval_strategy != IntervalStrategy.NO
    if not is_used or names is None or isinstance(trainer.eval_dataset, dict):
        return
    known = ["loss", *names]
    if name.removeprefix("eval_") not in [*known, *SPEED_METRICS]:
        raise TrainingError(f"--metric_for_best_model must be one of {', '.join(known)} (got {name}).")
