"""Fill the template of the model card, `model_card.md`."""

import json
import re
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import AutoConfig
from transformers.utils import logging

from modeling_xlm_swcm.checkpoints.inspection import draw_layers
from modeling_xlm_swcm.hub_xlm_swcm import without_paths
from modeling_xlm_swcm.released_xlm_swcm import ReleasedXLMSWCMConfig


# A child of Transformers' logger, so that Transformers' verbosity applies.
logger = logging.get_logger(f"transformers.{__name__}")

# The template is in the package, or at the top level of a clone.
TEMPLATE = next(path for place in Path(__file__).parents[1:3] if (path := place / "model_card.md").is_file())


def fill_card(
    folder: Path, repo_id: str, report: dict, metrics: dict | None = None, license: str | None = None
) -> str:
    """
    Fill the model card of a model.

    Args:
        folder (`Path`):
            Folder with the config of the model and, if there is one, its tokenizer.
        repo_id (`str`):
            Repository that the example code in the card loads.
        report (`dict`):
            Content of `conversion_report.json`.
        metrics (`dict`, *optional*):
            Content of `metrics.json`. Every field is optional: `task` (a task of the pipeline), `dataset` (a Hub id
            or a name), `results` (metric -> value, or metric -> language -> value), `training` (setting -> value),
            `evaluation` (setting -> value) and `example` (`text`, or `question` and `context`, with `src_lang` and
            `tgt_lang`).
        license (`str`, *optional*):
            Licence of the encoder. Default: the licence in `report`. Without one, the card says that it is not known.

    Returns:
        `str`: the model card.
    """
    report, metrics = without_paths(report), without_paths(metrics or {})
    license, commit = license or report.get("license"), report.get("commit")
    if license is None:
        logger.warning(
            f"The licence of the encoder {report['source']} is not known. The model card names no licence. "
            "Pass the licence with xlm-swcm push FOLDER REPO --license, or write it into the card."
        )
    config, languages = AutoConfig.from_pretrained(folder), find_languages(folder, report)
    task, dataset = metrics.get("task", "translation"), metrics.get("dataset", "an unnamed dataset")
    name = repo_id.split("/")[-1]
    results = make_eval_results(task, dataset, metrics.get("results", {}))
    card = ModelCard.from_template(
        make_metadata(report, license, languages, task, dataset, results, name),
        template_path=str(TEMPLATE),
        model_name=name,
        repo_id=repo_id,
        languages=languages,
        task=task,
        trained_for=metrics.get("task"),
        released=config.model_type == ReleasedXLMSWCMConfig.model_type,
        source=link_source(report["source"], commit),
        commit=commit,
        counts=report["counts"],
        options={
            name: value for name, value in report["options"].items() if name != "languages" and value is not None
        },
        layers=draw_layers(config),
        has_prefix_decoder=config.has_prefix_decoder,
        has_new_layers=len(set(config.decoder_blocks)) == 2,
        max_length=config.longest_input,
        training=metrics.get("training", {}),
        dataset=dataset,
        results=results,
        evaluation=metrics.get("evaluation", {}),
        **make_example(task, languages, metrics.get("example", {})),
    )
    return str(card)


def make_metadata(
    report: dict,
    license: str | None,
    languages: list[str],
    task: str,
    dataset: str,
    results: list[EvalResult],
    model_name: str,
) -> ModelCardData:
    """Return the metadata of the card. The base model is named only if it is on the Hub."""
    on_hub = report.get("commit") is not None
    return ModelCardData(
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
        model_name=model_name if results else None,
        eval_results=results or None,
    )


def make_example(task: str, languages: list[str], example: dict) -> dict:
    """Return the languages of the example code, and its inputs for `generate` and for a pipeline."""
    defaults = {"src_lang": languages[0], "tgt_lang": languages[-1]} if languages else {}
    example = defaults | {"text": "1, 2, 3", "question": "1?", "context": "1, 2, 3"} | example
    if task == "question-answering":
        question, context = quote(example["question"]), quote(example["context"])
        inputs, pipeline_inputs = f"{question}, {context}", f"question={question}, context={context}"
    else:
        inputs = pipeline_inputs = quote(example["text"])
    return {"example": example, "example_inputs": inputs, "pipeline_inputs": pipeline_inputs}


def link_source(source: str, commit: str | None) -> str:
    """Return the source of the conversion in Markdown, as a link if it is on the Hub."""
    return f"`{source}` (not on the Hub)" if commit is None else f"[{source}](https://huggingface.co/{source})"


def find_languages(folder: Path, report: dict) -> list[str]:
    """Return the languages with a tag in the folder's tokenizer, or in the report if there is no tokenizer."""
    config = folder / "tokenizer_config.json"
    if config.is_file():
        return json.loads(config.read_text(encoding="utf-8")).get("languages") or []
    return list(report.get("language_ids", {}))


def quote(text: str) -> str:
    """Return `text` as a Python literal in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def make_eval_results(task: str, dataset: str, results: dict) -> list[EvalResult]:
    """Return one result for each metric and language."""
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
