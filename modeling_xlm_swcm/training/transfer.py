"""Cross-lingual transfer from a language with many examples to others with few (Su et al., ACL 2025, section 4)."""

import copy
import glob
import random
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from transformers.utils import logging

from modeling_xlm_swcm import XLMSWCMTokenizer
from modeling_xlm_swcm.checkpoints.plots import make_figure, save_figure
from modeling_xlm_swcm.checkpoints.reading import read_json

from .arguments import ModelArguments, TrainingArguments
from .checkpoints import TrainingError, describe_settings
from .examples import Pair
from .files import write_json, write_whole
from .finetuning import Scores, finetune_on_pairs, load_tokenizer
from .finetuning_data import SCORES, FinetuneDataArguments, PairEncoder, group_of, read_pairs
from .option_help import HUB_OPTIONS
from .rows import BadRows, DataError


logger = logging.get_logger(__name__)

# File in the folder of a finished run, with its settings and scores.
FINISHED = "transfer_run.json"

# number of samples -> language -> score
TransferScores = dict[int, dict[str, float]]


@dataclass
class TransferArguments:
    """Options of a transfer experiment."""

    unsupported: ClassVar[dict[str, str]] = dict.fromkeys(
        HUB_OPTIONS,
        "A transfer experiment does not upload, because it trains several models. Remove the options of the upload. "
        "Push one of the models with xlm-swcm push.",
    ) | dict.fromkeys(("do_train", "do_predict", "predict_with_generate"), "")

    high_resource: str = field(
        metadata={
            "help": "Language that uses all its examples. For translation, a pair of languages (example: zh-bo)."
        }
    )
    samples: list[int] = field(
        default_factory=lambda: [0, 100, 500],
        metadata={"help": "Numbers of examples of each other language. Each number starts one run."},
    )
    metric: str | None = field(
        default=None, metadata={"help": "Metric of table and heat map. Default: the main metric of the task."}
    )


def transfer(
    model_args: ModelArguments,
    data_args: FinetuneDataArguments,
    transfer_args: TransferArguments,
    args: TrainingArguments,
) -> tuple[TransferScores, str]:
    """
    Fine-tune and score a model once for each number of samples.

    Each model goes to a separate folder inside the output folder. Runs that have finished there are not repeated, and
    their scores are returned too.

    Args:
        model_args ([`ModelArguments`]):
            Model to start from.
        data_args ([`FinetuneDataArguments`]):
            Task, files, columns and languages.
        transfer_args ([`TransferArguments`]):
            High-resource language, numbers of samples and metric.
        args ([`TrainingArguments`]):
            Training arguments of each run.

    Returns:
        `tuple[dict[int, dict[str, float]], str]`: the score of each language for each number of samples, and the
        name of the metric.

    Raises:
        DataError: if an option or the data cannot be used.
        TrainingError: if the output folder has runs with other settings, or a training cannot start or continue.
    """
    metric = transfer_args.metric or SCORES[data_args.task][0]
    if metric not in SCORES[data_args.task]:
        raise DataError(f"--metric must be one of {', '.join(SCORES[data_args.task])} (got {metric}).")
    if min(transfer_args.samples) < 0:
        raise DataError(f"--samples must not be negative (got {min(transfer_args.samples)}). Use 0 or larger numbers.")
    if args.push_to_hub:
        raise DataError(transfer_args.unsupported["push_to_hub"])
    args = copy.copy(args)
    args.do_train = args.do_predict = args.predict_with_generate = True
    splits = ["train", "validation", "test"] if args.do_eval else ["train", "test"]
    tokenizer = load_tokenizer(model_args, data_args)
    pairs = read_pairs(data_args, splits)
    # All samples are chosen before the first run, so that a later run cannot fail for lack of data.
    task, high_resource = data_args.task, transfer_args.high_resource
    usable = find_usable(pairs["train"], data_args, tokenizer)
    chosen = {
        samples: choose_pairs(usable, task, high_resource, samples, args.seed)
        for samples in sorted(set(transfer_args.samples))
    }
    settings = describe_settings(args, vars(model_args) | vars(data_args))
    results = read_finished(Path(args.output_dir), high_resource, settings)
    for samples, train in chosen.items():
        if samples in results:
            continue
        run_args = copy.deepcopy(args)
        run_args.output_dir = str(Path(args.output_dir) / f"{high_resource}+{samples}")
        results[samples] = finetune_on_pairs(model_args, data_args, run_args, tokenizer, pairs | {"train": train})
        if args.process_index == 0:
            write_json(Path(run_args.output_dir, FINISHED), {"settings": settings, "results": results[samples]})
    scores = {
        samples: {group: score for group, score in results[samples][metric].items() if group != "all"}
        for samples in sorted(results)
    }
    return scores, metric


def find_usable(pairs: list[Pair], args: FinetuneDataArguments, tokenizer: XLMSWCMTokenizer) -> list[Pair]:
    """
    Return the pairs that a run can train on, so that the sizes of the samples are right.

    Raises:
        DataError: if a pair cannot be used and must not be skipped.
    """
    encoder = PairEncoder(tokenizer, args, BadRows(args.skip_bad_rows))
    usable = [pair for pair in pairs if list(encoder([pair], args.max_target_length))]
    encoder.bad_rows.report()
    return usable


def read_finished(folder: Path, high_resource: str, settings: dict[str, str]) -> dict[int, Scores]:
    """
    Read the scores of the finished runs in an output folder.

    Args:
        folder (`Path`):
            Output folder of the experiment.
        high_resource (`str`):
            Language with all its examples.
        settings (`dict[str, str]`):
            Settings of the experiment.

    Returns:
        `dict[int, dict]`: the scores of each number of samples.

    Raises:
        TrainingError: if a run had other settings.
    """
    results = {}
    for path in folder.glob(f"{glob.escape(high_resource)}+*/{FINISHED}"):
        run = read_json(path)
        if other := [name for name, value in settings.items() if run["settings"].get(name) != value]:
            raise TrainingError(
                f"{path.parent} holds a run with another --{other[0]} ({run['settings'].get(other[0])}). Choose "
                "another --output_dir."
            )
        results[int(path.parent.name.rpartition("+")[2])] = run["results"]
        logger.warning(f"The run in {path.parent} has finished. It is not repeated.")
    return results


def choose_pairs(pairs: list[Pair], task: str, high_resource: str, samples: int, seed: int) -> list[Pair]:
    """
    Choose all pairs of the high-resource language and `samples` of each other language.

    Smaller samples are part of larger ones.

    Args:
        pairs (`list[Pair]`):
            Pairs of the training data.
        task (`str`):
            Task, which defines the languages of a pair.
        high_resource (`str`):
            Language with all its examples.
        samples (`int`):
            Number of examples of each other language.
        seed (`int`):
            Random seed of the sample.

    Returns:
        `list[Pair]`: the chosen pairs.

    Raises:
        DataError: if the high-resource language is missing, or another language has too few examples.
    """
    groups = defaultdict(list)
    for pair in pairs:
        groups[group_of(pair, task)].append(pair)
    if high_resource not in groups:
        raise DataError(
            f"The training data has no examples in {high_resource}. Set --high_resource to one of: "
            f"{', '.join(sorted(groups))}."
        )
    chosen = groups.pop(high_resource)
    for language, others in sorted(groups.items()):
        if len(others) < samples:
            raise DataError(
                f"The training data has {len(others)} examples in {language}, fewer than --samples {samples}. "
                "Use a smaller number."
            )
        random.Random(seed).shuffle(others)
        chosen = chosen + others[:samples]
    return chosen


def write_transfer(scores: TransferScores, metric: str, high_resource: str, seed: int, folder: Path) -> str:
    """
    Write `transfer.md`, `transfer.json` and `transfer.png`.

    Returns:
        `str`: the Markdown table.
    """
    table = make_table(scores, metric, high_resource)
    write_whole(folder / "transfer.md", table)
    results = {"metric": metric, "high_resource": high_resource, "seed": seed, "scores": scores}
    write_json(folder / "transfer.json", results)
    plot_heat_map(scores, metric, high_resource, folder / "transfer.png")
    return table


def make_table(scores: TransferScores, metric: str, high_resource: str) -> str:
    """Return a Markdown table with a row for each run and a column for each language."""
    languages = list(next(iter(scores.values())))
    lines = [f"| {metric} | {' | '.join(languages)} |", f"|---|{'---|' * len(languages)}"]
    for samples, row in scores.items():
        cells = " | ".join(f"{row[language]:.2f}" for language in languages)
        lines.append(f"| {high_resource} + {samples} | {cells} |")
    return "\n".join(lines) + "\n"


def plot_heat_map(scores: TransferScores, metric: str, high_resource: str, path: Path):
    """Plot a heat map with a row for each run and a column for each language."""
    languages = list(next(iter(scores.values())))
    values = [[row[language] for language in languages] for row in scores.values()]
    figure, axes = make_figure(size=(2.5 + 0.9 * len(languages), 1.5 + 0.6 * len(scores)))
    axis = axes[0, 0]
    image = axis.imshow(values, vmin=0, vmax=max(map(max, values)) or 1, cmap="viridis", aspect="auto")
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            color = "black" if value > 0.6 * image.get_clim()[1] else "white"
            axis.text(x, y, f"{value:.1f}", ha="center", va="center", color=color)
    axis.set_xticks(range(len(languages)), languages)
    axis.set_yticks(range(len(scores)), [f"{high_resource} + {samples}" for samples in scores])
    axis.set(xlabel="evaluated on", ylabel="trained on")
    figure.colorbar(image, label=metric)
    save_figure(figure, path)
