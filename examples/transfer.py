"""Cross-lingual transfer: one language has many examples, the others a few or none (Su et al., ACL 2025, section 4).

    python examples/transfer.py --task summarization --model_name_or_path outputs/model --lang_column lang \
        --high_resource zh --samples 0 100 500 --train_file train.jsonl --test_file test.jsonl --output_dir outputs/zh

For each number of samples the model is fine-tuned anew, on everything in the high-resource language and so many
examples of each other language, and evaluated on all languages of the test file. Smaller samples are part of larger
ones. Writes `transfer.md`, `transfer.json` and `transfer.png`, and each model to a folder of its own.
The other options are those of finetune.py.
"""

import copy
import json
import random
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
from finetune import SCORES, DataArguments, group_of, load_tokenizer, read_pairs, run
from rich.console import Console
from rich.markdown import Markdown

from modeling_xlm_swcm.checkpoints.errors import ConversionError
from modeling_xlm_swcm.training.arguments import ModelArguments, TrainingArguments, parse_arguments
from modeling_xlm_swcm.training.checkpoints import TrainingError
from modeling_xlm_swcm.training.examples import Pair
from modeling_xlm_swcm.training.results import save_figure, write_whole
from modeling_xlm_swcm.training.rows import DataError


matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402 - after the choice of backend


# number of samples -> language -> score
Scores = dict[int, dict[str, float]]


@dataclass
class TransferArguments:
    high_resource: str = field(metadata={"help": "the language with all its examples, for translation such as zh-bo"})
    samples: list[int] = field(
        default_factory=lambda: [0, 100, 500], metadata={"help": "examples of each other language, a run for each"}
    )
    metric: str | None = field(default=None, metadata={"help": "of table and heat map; by default the task's first"})


def choose(pairs: list[Pair], task: str, high_resource: str, samples: int, seed: int) -> list[Pair]:
    """All pairs in the high-resource language and `samples` of each other language.

    Raises:
        DataError: a language has too few.
    """
    groups = defaultdict(list)
    for pair in pairs:
        groups[group_of(pair, task)].append(pair)
    if high_resource not in groups:
        raise DataError(f"The training data has nothing in {high_resource}; it has: {', '.join(sorted(groups))}.")
    chosen = groups.pop(high_resource)
    for language, others in sorted(groups.items()):
        if len(others) < samples:
            raise DataError(
                f"The training data has {len(others)} examples in {language}, not the {samples} asked for."
            )
        random.Random(seed).shuffle(others)
        chosen = chosen + others[:samples]
    return chosen


def table(scores: Scores, metric: str, high_resource: str) -> str:
    languages = list(next(iter(scores.values())))
    lines = [f"| {metric} | {' | '.join(languages)} |", f"|---|{'---|' * len(languages)}"]
    for samples, row in scores.items():
        cells = " | ".join(f"{row[language]:.2f}" for language in languages)
        lines.append(f"| {high_resource} + {samples} | {cells} |")
    return "\n".join(lines) + "\n"


def plot(scores: Scores, metric: str, high_resource: str, path: Path):
    """A heat map, a row for each run and a column for each language."""
    languages = list(next(iter(scores.values())))
    values = [[row[language] for language in languages] for row in scores.values()]
    size = (2.5 + 0.9 * len(languages), 1.5 + 0.6 * len(scores))
    figure, axis = plt.subplots(figsize=size, layout="constrained")
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


def transfer(
    model_args: ModelArguments, data_args: DataArguments, transfer_args: TransferArguments, args: TrainingArguments
) -> tuple[Scores, str]:
    """Every run; the scores and the name of the metric."""
    metric = transfer_args.metric or SCORES[data_args.task][0]
    if metric not in SCORES[data_args.task]:
        raise DataError(f"--metric {metric} is not one of {', '.join(SCORES[data_args.task])}.")
    if min(transfer_args.samples) < 0:
        raise DataError(f"--samples cannot be below 0; got {min(transfer_args.samples)}.")
    if args.push_to_hub:
        raise DataError("A transfer trains several models: push the one you want with xlm-swcm push.")
    args.do_train = args.do_predict = args.predict_with_generate = True
    splits = ["train", "validation", "test"] if args.do_eval else ["train", "test"]
    tokenizer = load_tokenizer(model_args, data_args)
    pairs = read_pairs(data_args, splits)
    # all samples are drawn before the first run, so that no later one fails
    task, high_resource = data_args.task, transfer_args.high_resource
    chosen = {
        samples: choose(pairs["train"], task, high_resource, samples, args.seed)
        for samples in sorted(set(transfer_args.samples))
    }
    scores = {}
    for samples, train in chosen.items():
        run_args = copy.deepcopy(args)
        run_args.output_dir = str(Path(args.output_dir) / f"{high_resource}+{samples}")
        results = run(model_args, data_args, run_args, tokenizer, pairs | {"train": train})
        scores[samples] = {group: score for group, score in results[metric].items() if group != "all"}
    return scores, metric


def main():
    try:
        parsed = parse_arguments(ModelArguments, DataArguments, TransferArguments, TrainingArguments)
        scores, metric = transfer(*parsed)
    except (DataError, ConversionError, TrainingError) as error:
        sys.exit(f"error: {error}")
    _, _, transfer_args, args = parsed
    if args.process_index == 0:
        folder, high_resource = Path(args.output_dir), transfer_args.high_resource
        write_whole(folder / "transfer.md", table(scores, metric, high_resource))
        results = {"metric": metric, "high_resource": high_resource, "seed": args.seed, "scores": scores}
        write_whole(folder / "transfer.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        plot(scores, metric, high_resource, folder / "transfer.png")
        Console().print(Markdown(table(scores, metric, high_resource)))


if __name__ == "__main__":
    main()
