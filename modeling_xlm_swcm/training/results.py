"""What a training leaves behind: model, metrics.json, a plot of its losses and metrics, and the model card."""

import json
from datetime import date
from pathlib import Path

import matplotlib
import torch
import transformers
from matplotlib.figure import Figure
from transformers import PreTrainedModel
from transformers.trainer_utils import has_length
from transformers.utils import logging

from modeling_xlm_swcm import __version__
from modeling_xlm_swcm.conversion.card import write_card
from modeling_xlm_swcm.conversion.checkpoint import ConversionError, whole_file

from .arguments import ModelArguments
from .trainer import XLMSWCMTrainer


matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402 - after the choice of backend


logger = logging.get_logger(__name__)


def write_results(
    trainer: XLMSWCMTrainer,
    model_args: ModelArguments,
    task: str | None,
    dataset: str,
    results: dict,
    data: dict,
):
    """
    Write model (LoRA adapters merged into it), tokenizer, `metrics.json`, `training.png` and `README.md` to the output
    folder.

    Args:
        task: "translation", "summarization" or "question-answering"; none for pretraining.
        dataset: a Hub id or a name, of what was evaluated on.
        results: metric -> value, or metric -> language -> value, such as `{"chrf": {"bo": 8.6}}`.
        data: what the card is to say of the training data and how it was used, name -> value.
    """
    save_merged(trainer)
    if not trainer.is_world_process_zero():
        return
    folder = Path(trainer.args.output_dir)
    metrics = {"task": task} if task else {}
    metrics |= {
        "dataset": dataset,
        "results": results,
        "training": data | describe_training(trainer, model_args),
    }
    write_whole(folder / "metrics.json", json.dumps(metrics, indent=1, ensure_ascii=False) + "\n")
    plot_history(trainer.state.log_history, folder / "training.png")
    try:
        repo_id = trainer.args.hub_model_id or folder.resolve().name
        write_card(folder, repo_id, start=model_args.model_name_or_path, license=model_args.license)
    except ConversionError as error:
        logger.warning(f"No model card was written. {error}")


def save_merged(trainer: XLMSWCMTrainer):
    if model_is_adapted := not isinstance(trainer.accelerator.unwrap_model(trainer.model), PreTrainedModel):
        trainer.model = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
    trainer.save_model()
    if model_is_adapted and trainer.is_world_process_zero():
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            Path(trainer.args.output_dir, name).unlink(missing_ok=True)


def describe_training(trainer: XLMSWCMTrainer, model_args: ModelArguments) -> dict:
    """The settings that a reader needs to repeat the training."""
    args, state = trainer.args, trainer.state
    runtime = [entry["train_runtime"] for entry in state.log_history if "train_runtime" in entry]
    start = Path(model_args.model_name_or_path)
    settings = {
        # what a folder's path says of this machine is nobody's business
        "start": start.name if start.is_dir() else str(start),
        "steps": state.global_step,
        "epochs": round(state.epoch, 2) if has_length(trainer.train_dataset) else None,
        "batch_size": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "optimizer": args.optim.value,
        "learning_rate": args.learning_rate,
        "scheduler": args.lr_scheduler_type.value,
        "warmup_steps": args.get_warmup_steps(state.max_steps),
        "weight_decay": args.weight_decay,
        "max_grad_norm": args.max_grad_norm,
        "label_smoothing": args.label_smoothing_factor,
        "scheduled_sampling": args.scheduled_sampling,
        "lora_rank": model_args.lora_rank if model_args.lora else None,
        "frozen_encoder": model_args.freeze_encoder,
        "precision": "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32",
        "seed": str(args.seed),
        "processes": args.world_size,
        "device": torch.cuda.get_device_name() if args.device.type == "cuda" else args.device.type,
        "seconds": round(runtime[-1], 1) if runtime else None,
        "date": str(date.today()),
        "versions": f"xlm-swcm {__version__}, transformers {transformers.__version__}, torch {torch.__version__}",
    }
    return {name: value for name, value in settings.items() if value}


def plot_history(history: list[dict], path: Path):
    """Losses over steps and, where there are any, the metrics of the evaluations beside them."""
    noise = ("runtime", "per_second", "epoch", "flos", "model_preparation_time", "gen_len")
    metrics = sorted(
        {name for entry in history for name in entry if name.startswith("eval_") and not name.endswith(noise)}
    )
    metrics = [name for name in metrics if name != "eval_loss"]
    figure, axes = plt.subplots(
        1, 2 if metrics else 1, figsize=(10 if metrics else 6, 4), layout="constrained", squeeze=False
    )
    for axis, names in zip(axes[0], (["loss", "eval_loss"], metrics), strict=False):
        for name in names:
            points = [(entry["step"], entry[name]) for entry in history if name in entry]
            if points:
                label = {"loss": "training", "eval_loss": "held out"}.get(name, name.removeprefix("eval_"))
                axis.plot(*zip(*points, strict=True), ".-", label=label)
        axis.set(xlabel="step", ylabel="loss" if names[0] == "loss" else "metric")
        axis.set_xlim(left=0)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path):
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
    plt.close(figure)


def write_whole(path: Path, text: str):
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
