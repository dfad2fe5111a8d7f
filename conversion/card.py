"""The model card: `model_card.md`, filled from what lies in a folder."""

import json
import re
import shutil
from os import PathLike
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import AutoConfig, AutoTokenizer
from yaml import YAMLError

from modeling_xlm_swcm.released_xlm_swcm import ReleasedXLMSWCMConfig

from .checkpoint import ConversionError, find_file, read_json
from .inspection import draw_plan


# the top level of a clone; in an installed package, that of the package
TEMPLATE = Path(__file__).parent.parent / "model_card.md"
REPORT = "conversion_report.json"
GENERATED = "<!-- This model card has been generated automatically"
TASKS = ("translation", "summarization", "question-answering")
# what `metrics.json` may hold, and nothing else
METRICS_FIELDS = {"task": str, "dataset": str, "results": dict, "training": dict, "example": dict}


def write_card(folder: str | PathLike, repo_id: str, *, start: str | None = None, license: str | None = None):
    """
    Write `README.md` into a folder with model, tokenizer, `conversion_report.json` and perhaps `metrics.json`.

    Args:
        folder: where a training, say, has saved its model.
        repo_id: the repository that the usage in the card names.
        start: folder or Hub id of the model that the training began with, whose report is copied if there is none.
        license: of the base model, where the report has none.

    Raises:
        ConversionError: a file is missing or malformed, or nobody has said what the licence is.
    """
    folder = Path(folder)
    report = folder / REPORT
    if start is not None and not report.is_file() and (found := find_file(str(start), REPORT)) is not None:
        shutil.copyfile(found, report)
    (folder / "README.md").write_text(fill_card(folder, repo_id, license), encoding="utf-8")


def card_for(folder: Path, repo_id: str, license: str | None = None) -> str:
    """The card to push: the folder's own where somebody wrote one, checked; else a filled one."""
    path = folder / "README.md"
    if not path.is_file() or GENERATED in (card := path.read_text(encoding="utf-8")):
        return fill_card(folder, repo_id, license)
    check_card(path, card)
    return card


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


def fill_card(folder: Path, repo_id: str, license: str | None = None) -> str:
    """
    The card of a model, from its config, tokenizer, `conversion_report.json` and, where there is one, `metrics.json`:

        {"task": "translation",                     translation, summarization or question-answering
         "dataset": "owner/name",                   a Hub id, or a name
         "results": {"chrf": {"bo": 8.6}},          metric -> value, or a value for each language
         "training": {"learning_rate": 1e-4},       setting -> value
         "example": {"text": "...",                 for question answering "question" and "context"
                     "src_lang": "zh", "tgt_lang": "bo"}}
    """
    report, metrics = read_report(folder), read_metrics(folder)
    license = require_license(license or report["license"], report["source"])
    config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    task, dataset = metrics.get("task", "translation"), metrics.get("dataset", "a set without a name")
    on_hub = report["commit"] is not None
    languages = tokenizer.languages
    name = repo_id.split("/")[-1]
    example = {"src_lang": languages[0], "tgt_lang": languages[-1]} if languages else {}
    example |= {"text": "1, 2, 3", "question": "1?", "context": "1, 2, 3"} | metrics.get("example", {})
    texts = [example[part] for part in (("question", "context") if task == "question-answering" else ("text",))]
    results = eval_results(task, dataset, metrics.get("results", {}))
    metadata = ModelCardData(
        language=list(dict.fromkeys(code.split("-")[0] for code in languages)) or None,
        language_bcp47=[code for code in languages if "-" in code] or None,
        license=license,
        library_name="transformers",
        pipeline_tag=task,
        base_model=report["source"] if on_hub else None,
        base_model_relation="finetune" if on_hub else None,
        datasets=[dataset] if re.fullmatch(r"[\w.-]+/[\w.-]+", dataset) else None,
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        tags=["xlm-swcm", "seq2seq", "low-resource"],
        model_name=name if results else None,
        eval_results=results or None,
    )
    card = ModelCard.from_template(
        metadata,
        template_path=str(TEMPLATE),
        model_name=name,
        repo_id=repo_id,
        languages=languages,
        task=task,
        task_named="task" in metrics,
        released=config.model_type == ReleasedXLMSWCMConfig.model_type,
        source=f"[{report['source']}](https://huggingface.co/{report['source']})"
        if on_hub
        else f"`{report['source']}` (not on the Hub)",
        commit=report["commit"],
        counts=report["counts"],
        options={
            name: value for name, value in report["options"].items() if name != "languages" and value is not None
        },
        plan=draw_plan(config),
        example=example,
        example_inputs=", ".join(quoted(text) for text in texts),
        pipeline_inputs=quoted(texts[0])
        if len(texts) == 1
        else f"question={quoted(texts[0])}, context={quoted(texts[1])}",
        max_length=config.longest_input,
        training=metrics.get("training", {}),
        dataset=dataset,
        results=results,
    )
    return str(card)


def require_license(license: str | None, encoder: str) -> str:
    if license is None:
        raise ConversionError(
            f"The licence of {encoder} is not known, and the model card must name it: give --license, such as "
            "apache-2.0 or mit."
        )
    return license


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def read_report(folder: Path) -> dict:
    """`conversion_report.json` as it may be seen by everybody."""
    path = folder / REPORT
    if not path.is_file():
        raise ConversionError(
            f"{folder} has no {REPORT}, which says what the model was made from; copy it from the folder that "
            "xlm-swcm convert wrote."
        )
    report = read_json(path)
    if missing := [name for name in ("source", "options", "counts") if name not in report]:
        raise ConversionError(f"{path} lacks {missing[0]}; copy it again from the folder that xlm-swcm convert wrote.")
    report.setdefault("commit", None)
    report.setdefault("license", None)
    for fields, name in ((report, "source"), (report["options"], "encoder")):
        # where a folder lies on this machine is nobody's business
        if Path(fields.get(name, "")).is_absolute():
            fields[name] = Path(fields[name]).name
    return report


def read_metrics(folder: Path) -> dict:
    path = folder / "metrics.json"
    metrics = read_json(path) if path.is_file() else {}
    for name, value in metrics.items():
        if name not in METRICS_FIELDS or not isinstance(value, METRICS_FIELDS[name]):
            raise ConversionError(
                f'"{name}" in {path} is not one of {", ".join(METRICS_FIELDS)} as a card wants them.'
            )
    if metrics.get("task", TASKS[0]) not in TASKS:
        raise ConversionError(f'The task in {path} is "{metrics["task"]}", not one of {", ".join(TASKS)}.')
    return metrics


def eval_results(task: str, dataset: str, results: dict) -> list[EvalResult]:
    return [
        EvalResult(
            task_type=task,
            dataset_type=re.sub(r"[^\w./-]+", "-", dataset.lower()),
            dataset_name=dataset,
            dataset_config=language,
            metric_type=metric,
            metric_value=value,
        )
        for metric, values in results.items()
        for language, value in (values if isinstance(values, dict) else {None: values}).items()
    ]
