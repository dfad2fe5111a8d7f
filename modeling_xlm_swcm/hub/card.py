"""The model card of a folder: filled from what lies there, or checked where somebody wrote one."""

from pathlib import Path

from huggingface_hub import ModelCard
from transformers import AutoTokenizer
from yaml import YAMLError

from modeling_xlm_swcm.checkpoints.encoders import require_license
from modeling_xlm_swcm.checkpoints.errors import ConversionError
from modeling_xlm_swcm.checkpoints.inspection import read_conversion_report
from modeling_xlm_swcm.checkpoints.reading import read_json
from modeling_xlm_swcm.hub_xlm_swcm import REPORT, without_paths
from modeling_xlm_swcm.pipeline_xlm_swcm import TASKS

from .card_template import fill_card


GENERATED = "<!-- This model card has been generated automatically"

# what `metrics.json` may hold, and nothing else
METRICS_FIELDS = {"task": str, "dataset": str, "results": dict, "training": dict, "example": dict}


def card_of_folder(folder: Path, repo_id: str, license: str | None = None) -> str:
    """
    Args:
        folder: with model, tokenizer, `conversion_report.json` and perhaps `metrics.json`.
        repo_id: the repository that the usage in the card names.
        license: of the base model, where the report has none.

    Raises:
        ConversionError: a file is missing or malformed, or nobody has said what the licence is.
    """
    report, metrics = read_report(folder), read_metrics(folder)
    license = require_license(license or report["license"], report["source"])
    return fill_card(folder, repo_id, report, metrics, license)


def card_for(folder: Path, repo_id: str, license: str | None = None) -> str:
    """The card to push: the folder's own where somebody wrote one, checked; else a filled one."""
    path = folder / "README.md"
    if not is_own_card(path):
        return card_of_folder(folder, repo_id, license)
    card = path.read_text(encoding="utf-8")
    check_card(path, card)
    return card


def is_own_card(path: Path) -> bool:
    """Whether somebody wrote this card."""
    return path.is_file() and GENERATED not in path.read_text(encoding="utf-8")


def check_card(path: Path, card: str):
    try:
        data = ModelCard(card, ignore_metadata_errors=False).data
    except (ValueError, YAMLError) as error:
        raise ConversionError(f"The metadata of {path} is not valid YAML; mend it, or remove the file.") from error
    required = ["license", "library_name", "pipeline_tag"]
    if AutoTokenizer.from_pretrained(path.parent).languages:
        required.append("language")
    if read_report(path.parent)["commit"] is not None:
        required.append("base_model")
    if missing := [name for name in required if not data.get(name)]:
        raise ConversionError(
            f"The metadata of {path} lacks {', '.join(missing)}; add it, or remove the file to have a card filled."
        )


def read_report(folder: Path) -> dict:
    """`conversion_report.json` as it may be seen by everybody."""
    report = read_conversion_report(str(folder))
    if report is None:
        raise ConversionError(
            f"{folder} has no {REPORT}, which says what the model was made from; copy it from the folder that "
            "xlm-swcm convert wrote."
        )
    report.setdefault("commit", None)
    report.setdefault("license", None)
    return without_paths(report)


def read_metrics(folder: Path) -> dict:
    path = folder / "metrics.json"
    metrics = read_json(path) if path.is_file() else {}
    for name, value in metrics.items():
        if name not in METRICS_FIELDS or not isinstance(value, METRICS_FIELDS[name]):
            raise ConversionError(
                f'"{name}" in {path} is not one of {", ".join(METRICS_FIELDS)} as a card wants them.'
            )
    if metrics.get("task", "translation") not in TASKS:
        raise ConversionError(f'The task in {path} is "{metrics["task"]}", not one of {", ".join(TASKS)}.')
    return metrics
