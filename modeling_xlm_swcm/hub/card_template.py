"""The model card: `model_card.md`, filled."""

import json
import re
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import AutoConfig
from transformers.utils import logging

from modeling_xlm_swcm.checkpoints.inspection import draw_plan
from modeling_xlm_swcm.released_xlm_swcm import ReleasedXLMSWCMConfig


# one of Transformers' loggers, so that its verbosity holds
logger = logging.get_logger(f"transformers.{__name__}")

# in the package, or at the top level of a clone
TEMPLATE = next(path for place in Path(__file__).parents[1:3] if (path := place / "model_card.md").is_file())


def fill_card(
    folder: Path, repo_id: str, report: dict, metrics: dict | None = None, license: str | None = None
) -> str:
    """
    The card of the model in a folder.

    Args:
        folder: with the model's config and perhaps its tokenizer.
        repo_id: the repository that the usage names.
        report: of the conversion.
        metrics: what is known of a training, nothing of which must be there:

        {"task": "translation",                     translation, summarization or question-answering
         "dataset": "owner/name",                   a Hub id, or a name
         "results": {"chrf": {"bo": 8.6}},          metric -> value, or a value for each language
         "training": {"learning_rate": 1e-4},       setting -> value
         "example": {"text": "...",                 for question answering "question" and "context"
                     "src_lang": "zh", "tgt_lang": "bo"}}

        license: of the base model, where the report has none; without one the card says that it is not known.
    """
    metrics, license, commit = metrics or {}, license or report.get("license"), report.get("commit")
    if license is None:
        logger.warning(
            f"The licence of {report['source']} is not known, and the model card says so: give it with "
            "xlm-swcm push FOLDER REPO --license, or write it into the card."
        )
    config, languages = AutoConfig.from_pretrained(folder), find_languages(folder, report)
    task, dataset = metrics.get("task", "translation"), metrics.get("dataset", "a set without a name")
    on_hub = commit is not None
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
        trained_for=metrics.get("task"),
        released=config.model_type == ReleasedXLMSWCMConfig.model_type,
        source=f"[{report['source']}](https://huggingface.co/{report['source']})"
        if on_hub
        else f"`{report['source']}` (not on the Hub)",
        commit=commit,
        counts=report["counts"],
        options={
            name: value for name, value in report["options"].items() if name != "languages" and value is not None
        },
        plan=draw_plan(config),
        is_interleaved=len(set(config.decoder_blocks)) == 2,
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


def find_languages(folder: Path, report: dict) -> list[str]:
    """Those with a tag in the folder's tokenizer, or else at the conversion."""
    config = folder / "tokenizer_config.json"
    if config.is_file():
        return json.loads(config.read_text(encoding="utf-8")).get("languages") or []
    return list(report.get("language_ids", {}))


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


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
