"""What a training leaves behind: model, metrics.json, a plot of its losses and metrics, and the model card."""

import json
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from transformers import PreTrainedModel

from modeling_xlm_swcm.checkpoints.writing import whole_file

from .arguments import ModelArguments
from .trainer import XLMSWCMTrainer


matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402 - after the choice of backend


def write_results(
    trainer: XLMSWCMTrainer,
    model_args: ModelArguments,
    task: str | None,
    dataset: str,
    results: dict,
    data: dict,
    example: dict | None = None,
):
    """
    Write `metrics.json`, `training.png` and `README.md` beside the model that [`save_merged`] has left.

    Args:
        task: "translation", "summarization" or "question-answering"; none for pretraining.
        dataset: a Hub id or a name, of what was evaluated on.
        results: metric -> value, or metric -> language -> value, such as `{"chrf": {"bo": 8.6}}`.
        data: what the card is to say of the training data and how it was used, name -> value.
        example: languages for the card's examples, `src_lang` and `tgt_lang`; by default the first and the last tag.
    """
    if not trainer.is_world_process_zero():
        return
    folder = Path(trainer.args.output_dir)
    metrics = {"task": task} if task else {}
    metrics |= {"example": example} if example else {}
    metrics |= {
        "dataset": dataset,
        "results": results,
        "training": data
        | trainer.describe()
        | ({"lora_rank": model_args.lora_rank} if model_args.lora else {})
        | ({"frozen_encoder": True} if model_args.freeze_encoder else {}),
    }
    write_whole(folder / "metrics.json", json.dumps(metrics, indent=1, ensure_ascii=False) + "\n")
    plot_history(trainer.state.log_history, folder / "training.png")
    trainer.create_model_card(license=model_args.license)


def save_merged(trainer: XLMSWCMTrainer):
    """
    Write model (LoRA adapters merged into it) and tokenizer to the output folder, before an evaluation can fail or
    change the model's precision.
    """
    if model_is_adapted := not isinstance(trainer.accelerator.unwrap_model(trainer.model), PreTrainedModel):
        trainer.model = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
    trainer.save_model()
    if model_is_adapted and trainer.is_world_process_zero():
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            Path(trainer.args.output_dir, name).unlink(missing_ok=True)


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
