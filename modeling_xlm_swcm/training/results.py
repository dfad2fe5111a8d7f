"""Write the files of a finished training run: metrics.json, plot and model card."""

from pathlib import Path

from .adapter_card import write_adapter_card
from .arguments import ModelArguments
from .files import write_json
from .plots import plot_history
from .trainer import XLMSWCMTrainer


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
    Write `metrics.json`, `training.png` and `README.md` to the folder of the model or adapters from [`save_trained`].

    Args:
        trainer ([`XLMSWCMTrainer`]):
            Trainer after the training.
        model_args ([`ModelArguments`]):
            Options of the model, for the card.
        task (`str`, *optional*):
            "translation", "summarization" or "question-answering". `None` for pretraining.
        dataset (`str`):
            Hub id or name of the evaluation data.
        results (`dict`):
            Value of each metric, or its value for each language, for example `{"chrf": {"bo": 8.6}}`.
        data (`dict`):
            Facts about the training data for the card, by name.
        example (`dict`, *optional*):
            Languages of the card's usage example, as `src_lang` and `tgt_lang`. Defaults to the first and last tag.
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
    write_json(folder / "metrics.json", metrics)
    plot_history(trainer.state.log_history, folder / "training.png")
    if model_args.lora_merge:
        trainer.create_model_card(license=model_args.license)
        return
    report = trainer.accelerator.unwrap_model(trainer.model).conversion_report or {}
    license = model_args.license or report.get("license")
    write_adapter_card(folder, model_args.model_name_or_path, metrics, license)
