"""Trainer of XLM-SWCM: scheduled sampling, generation with language tags, and the model card."""

import shutil
from datetime import date
from pathlib import Path

import torch
import transformers
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import DataCollatorForSeq2Seq, PreTrainedModel, Seq2SeqTrainer
from transformers.trainer_utils import HubStrategy, has_length
from transformers.utils import CONFIG_NAME

from modeling_xlm_swcm import __version__
from modeling_xlm_swcm.hub.card import is_own_card, read_metrics
from modeling_xlm_swcm.hub.card_template import fill_card
from modeling_xlm_swcm.hub_xlm_swcm import REPORT
from modeling_xlm_swcm.pipeline_xlm_swcm import TASKS

from .arguments import TrainingArguments
from .checkpoints import ResumableTrainer, TrainingError
from .files import write_whole
from .lora import check_trained_tokens
from .precision import dtype_name
from .pushing import PublicTrainer
from .sharding import shard_layers


# Accelerate's names for the dtype of matrix products.
PRECISIONS = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}


class XLMSWCMTrainer(ResumableTrainer, PublicTrainer, Seq2SeqTrainer):
    r"""
    A [`~transformers.Seq2SeqTrainer`] for XLM-SWCM that can be resumed exactly ([`ResumableTrainer`]).

    It takes [`TrainingArguments`] or [`~transformers.Seq2SeqTrainingArguments`]. It differs from the trainer of
    Transformers in three points:

    - `scheduled_sampling` replaces a share of the decoder inputs by predictions of the model. A first pass over the
      clean inputs computes the predictions (Mihaylova and Martins, 2019).
    - `predict_with_generate` starts each generated text with the language tag of its labels.
    - `push_to_hub` uploads only the files of the model ([`PublicTrainer`]), with the model card of xlm-swcm. The card
      shows `metrics.json` if a training script wrote one, and otherwise the settings of the training.
    """

    args: TrainingArguments

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._check_tokenizers()
        self._check_checkpointing()
        shard_layers(getattr(self.accelerator.state, "fsdp_plugin", None), self.model)

    def _check_tokenizers(self):
        """Check that labels are padded on the right, and that generation knows if labels start with a tag."""
        collator = self.data_collator
        if isinstance(collator, DataCollatorForSeq2Seq) and collator.tokenizer.padding_side != "right":
            raise TrainingError(
                "The data collator pads labels on the left, so the decoder would read padding as text. Set "
                'padding_side of its tokenizer to "right".'
            )
        # A tokenizer that was loaded with its own code has another class.
        if self.args.predict_with_generate and not hasattr(self.processing_class, "languages"):
            raise TrainingError(
                "predict_with_generate needs the tokenizer of the model, which knows the language tags. Pass it as "
                "processing_class."
            )

    def _check_checkpointing(self):
        """Check that gradients of tied weights add up over several processes."""
        kwargs = self.args.gradient_checkpointing_kwargs or {}
        is_reentrant = self.args.gradient_checkpointing and kwargs.get("use_reentrant")
        if is_reentrant and self.args.world_size > 1 and self.model.config.weight_sharing == "tied":
            raise TrainingError(
                "Reentrant gradient checkpointing cannot train a tied decoder in several processes. Set use_reentrant "
                "to false in gradient_checkpointing_kwargs."
            )

    @property
    def _final_sampling(self) -> float:
        # Transformers' own arguments do not have this option.
        return getattr(self.args, "scheduled_sampling", 0.0)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        check_trained_tokens(self.model if model is None else model, resume_from_checkpoint)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Return the next batches and their number of labels, without the rows that accelerate repeats."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches and self.accelerator.gradient_state.end_of_dataloader and self._count_left():
            # At the end of an epoch, accelerate fills the batches of the processes with rows from its beginning.
            if filled := self._count_filled():
                batches[-1]["labels"][-filled:] = -100
            # This counts over all processes, so a process without such rows must call it too.
            num_items = self._get_num_items_in_batch(batches, device)
        return batches, num_items

    def _count_left(self) -> int:
        """Return the number of rows for the last batches of all processes, or 0 if these batches are full."""
        args = self.args
        if args.world_size == 1 or args.dataloader_drop_last or not has_length(self.train_dataset):
            return 0
        return len(self.train_dataset) % (self._rows_of_process() * args.world_size)

    def _rows_of_process(self) -> int:
        """Return the size of a batch of one process."""
        args = self.args
        return args.train_batch_size // (args.world_size if args.accelerator_config.split_batches else 1)

    def _count_filled(self) -> int:
        """Return how many rows accelerate added to the last batch of this process, also after a resume."""
        own = self._rows_of_process()
        return own - min(max(self._count_left() - self.args.process_index * own, 0), own)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Compute the loss, with scheduled sampling and label smoothing if they are set."""
        inputs = dict(inputs)
        if "labels" in inputs and "decoder_input_ids" not in inputs:
            unwrapped = self.accelerator.unwrap_model(model)
            # With label smoothing the Trainer does not pass the labels to the model.
            inputs["decoder_input_ids"] = unwrapped.prepare_decoder_input_ids_from_labels(inputs["labels"])
            share = self._final_sampling * self.state.global_step / max(self.state.max_steps, 1)
            if model.training and share > 0:
                inputs["decoder_input_ids"] = self._sample_inputs(model, inputs, share)
        smoother = self.label_smoother
        if model.training and smoother is not None:
            # Transformers' smoother needs logits, which the model does not keep in training.
            inputs["label_smoothing"], self.label_smoother = smoother.epsilon, None
        try:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        finally:
            self.label_smoother = smoother

    @torch.no_grad()
    def _sample_inputs(self, model: nn.Module, inputs: dict, share: float) -> torch.Tensor:
        """Return decoder inputs of shape (batch, target_len) with a `share` of them replaced by predictions."""
        clean = inputs["decoder_input_ids"]
        predicted = model(**{name: value for name, value in inputs.items() if name != "labels"}).logits.argmax(-1)
        # The prediction at one position is the input of the next.
        predicted = torch.cat([clean[:, :1], predicted[:, :-1]], dim=1)
        replaced = torch.rand(clean.shape, device=clean.device) < share
        # Positions count the tokens that are not padding.
        padding = self.accelerator.unwrap_model(model).config.pad_token_id
        replaced &= (clean != padding) & (predicted != padding)
        # Start token and language tag stay.
        replaced[:, :2] = False
        return torch.where(replaced, predicted, clean)

    def _get_eval_sampler(self, eval_dataset):
        # Generated texts must stay in the order of their rows, also if training batches are grouped by length.
        return SequentialSampler(eval_dataset)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None, **gen_kwargs):
        """Evaluate one batch. Each generated text starts with the language tag of its labels."""
        if self.args.predict_with_generate and not prediction_loss_only and self.processing_class.languages:
            tags = inputs["labels"][:, :1]
            start = torch.full_like(tags, self.model.config.decoder_start_token_id)
            prompts = torch.cat([start, tags], dim=1).to(self.args.device)
            gen_kwargs = getattr(self, "_gen_kwargs", {}) | gen_kwargs | {"decoder_input_ids": prompts}
        settings = vars(self.model.generation_config)
        own = settings.copy()
        try:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys, **gen_kwargs)
        finally:
            # Transformers fills in its defaults, which would be saved with the model.
            settings |= own

    def describe(self) -> dict:
        """
        Return the settings that a reader of the model card needs to repeat the training.

        Returns:
            `dict`: value of each setting, without settings that are empty or zero.
        """
        args, state = self.args, self.state
        runtime = [entry["train_runtime"] for entry in state.log_history if "train_runtime" in entry]
        start = Path(self.accelerator.unwrap_model(self.model).config.name_or_path)
        settings = {
            # The path of a local folder stays private.
            "start": start.name if start.is_dir() else str(start),
            "steps": state.global_step,
            "epochs": round(state.epoch, 2) if has_length(self.train_dataset) else None,
            "batch_size": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            "optimizer": args.optim.value,
            "learning_rate": args.learning_rate,
            "scheduler": args.lr_scheduler_type.value,
            "warmup_steps": args.get_warmup_steps(state.max_steps),
            "weight_decay": args.weight_decay,
            "max_grad_norm": args.max_grad_norm,
            "label_smoothing": args.label_smoothing_factor,
            "scheduled_sampling": self._final_sampling,
            "precision": PRECISIONS.get(self.accelerator.mixed_precision, self.accelerator.mixed_precision),
            "saved_dtype": dtype_name(self.saved_dtype) if self.saved_dtype else None,
            "seed": str(args.seed),
            "processes": args.world_size,
            "device": torch.cuda.get_device_name() if args.device.type == "cuda" else args.device.type,
            # The time before a resume is unknown.
            "seconds": round(runtime[-1], 1) if runtime and not self._initial_global_step else None,
            "date": str(date.today()),
            "versions": f"xlm-swcm {__version__}, transformers {transformers.__version__}, torch {torch.__version__}",
        }
        return {name: value for name, value in settings.items() if value}

    def create_model_card(
        self,
        license: str | None = None,
        tasks: str | None = None,
        dataset: str | None = None,
        **kwargs,
    ):
        """
        Write the model card of xlm-swcm, unless somebody wrote a card by hand.

        Adapters, and models that were not converted from an encoder, get the card of Transformers.

        Args:
            license (`str`, *optional*):
                Licence of the base model. Default: the licence in the conversion report.
            tasks (`str`, *optional*):
                "translation", "summarization" or "question-answering". Ignored if there is a `metrics.json`.
            dataset (`str`, *optional*):
                Hub id or name of the dataset. Ignored if there is a `metrics.json`.
            kwargs (*optional*):
                Further arguments for the card of Transformers.

        Raises:
            TrainingError: if the task is unknown.
        """
        if tasks is not None and tasks not in TASKS:
            raise TrainingError(f'Unknown task "{tasks}". Use one of: {", ".join(TASKS)}.')
        folder = Path(self.args.output_dir)
        known = {name: value for name, value in {"task": tasks, "dataset": dataset}.items() if value is not None}
        metrics = read_metrics(folder) or {"training": self.describe()} | known
        if not self._write_card(folder, metrics, license):
            super().create_model_card(license=license, tasks=tasks, dataset=dataset, **kwargs)

    def _write_card(self, folder: Path, metrics: dict, license: str | None = None) -> bool:
        """Write the card of the model in `folder` to the output folder. Return False if there is no card for it."""
        model, card = self.accelerator.unwrap_model(self.model), Path(self.args.output_dir) / "README.md"
        # Adapters of PEFT or Transformers are saved without a config.
        is_whole = isinstance(model, PreTrainedModel) and (folder / CONFIG_NAME).is_file()
        if not is_whole or model.conversion_report is None:
            return False
        if self.is_world_process_zero() and not is_own_card(card):
            repo_id = self.hub_model_id or card.resolve().parent.name
            text = fill_card(folder, repo_id, model.conversion_report, metrics, license)
            write_whole(card, text)
        return True

    def _push_from_checkpoint(self, checkpoint_folder: str):
        # During `_save_checkpoint` the folder still has its temporary name.
        if self._is_saving or self.args.hub_strategy == HubStrategy.END or not self.is_world_process_zero():
            return
        # Transformers copies weights, configs and tokenizer only.
        for pattern in (REPORT, "*_xlm_swcm.py"):
            for path in Path(checkpoint_folder).glob(pattern):
                shutil.copy(path, self.args.output_dir)
        self._write_card(Path(checkpoint_folder), {"training": self.describe()})
        super()._push_from_checkpoint(checkpoint_folder)
