"""The report of an evaluation: tables, JSON, samples, plot and the results for model cards."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from modeling_xlm_swcm.checkpoints.plots import as_label, make_figure, save_figure
from modeling_xlm_swcm.checkpoints.writing import whole_files
from modeling_xlm_swcm.corpora.bad_rows import DataError
from modeling_xlm_swcm.hub.card import read_metrics
from modeling_xlm_swcm.hub_xlm_swcm import REPORT
from modeling_xlm_swcm.training.files import format_json, write_json

from .scoring import MIN_TEXTS, RESAMPLES, TABLE_SCORES, DirectionResult, ModelResult, choose_samples, describe_sample


if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLES = 10
# Names of the main scores in the plot.
PLOT_LABELS = {"chrf++": "chrF++", "rougeL_f": "ROUGE-L"}
# Scores that the model card shows.
CARD_SCORES = ("chrf++", "bleu", "rougeL_f")
CARD_SETTINGS = ("num_beams", "max_length")


@dataclass
class Evaluation:
    """
    Results of [`evaluate`].

    Attributes:
        dataset (`str`):
            Name of the data.
        task (`str`):
            "translation" or "summarization".
        sources (`dict[str, str]`):
            Folder or Hub id of each model, by its name in the report.
        directions (`dict[str, DirectionResult]`):
            Results of each direction, for example `zh-bo`.
        settings (`dict[str, int]`):
            Settings of the generation, and `max_samples` if only some texts are evaluated.
        skipped (`dict[str, int]`):
            Number of bad rows of each direction that are skipped.
    """

    dataset: str
    task: str
    sources: dict[str, str]
    directions: dict[str, DirectionResult]
    settings: dict[str, int]
    skipped: dict[str, int] = field(default_factory=dict)

    def print(self, console: Console):
        """Print a table of scores, a table of faults and the signatures of sacrebleu."""
        rows = [
            (direction, name, result)
            for direction, of in self.directions.items()
            for name, result in of.models.items()
        ]
        names = TABLE_SCORES[self.task]
        headings = ["p"] if any(model.p_values for _, _, model in rows) else []
        scores = make_table(f"{self.dataset}: scores", [*names, *headings])
        for direction, name, result in rows:
            cells = [format_score(result, metric) for metric in names]
            scores.add_row(direction, Text(name), *cells, *(format_p(result) for _ in headings))
        console.print(scores)
        if headings:
            first = next(iter(self.sources))
            console.print(f"p: paired bootstrap of chrF++ against {first}, {RESAMPLES} samples.", markup=False)
        if few := [direction for direction, of in self.directions.items() if len(of.pairs) < MIN_TEXTS]:
            console.print(f"No confidence intervals or p-values for fewer than {MIN_TEXTS} texts: {', '.join(few)}.")
        faults = make_table(f"{self.dataset}: texts with faults", ["texts", *rows[0][2].count_faults()])
        for direction, name, result in rows:
            counts = result.count_faults().values()
            faults.add_row(direction, Text(name), str(len(result.outputs.texts)), *map(str, counts))
        console.print(faults)
        for name, signature in list_signatures(self.directions):
            console.print(f"{name}: {signature}", soft_wrap=True)

    def to_dict(self) -> dict:
        """Return the report as JSON values."""
        return {
            "dataset": self.dataset,
            "task": self.task,
            "models": self.sources,
            "settings": self.settings,
            "signatures": dict(list_signatures(self.directions)),
            "directions": {
                direction: {
                    "texts": len(result.pairs),
                    "skipped_rows": self.skipped.get(direction, 0),
                    "models": {name: describe_model(model) for name, model in result.models.items()},
                    "samples": [describe_sample(result, place) for place in choose_samples(result, SAMPLES)],
                }
                for direction, result in self.directions.items()
            },
            "card": {name: self.card_results(name) for name in self.sources},
        }

    def card_results(self, name: str) -> dict:
        """Return the fields of `metrics.json` that put the results of a model on its card."""
        results = {
            metric: {
                direction: round(result.models[name].scores[metric], 2)
                for direction, result in self.directions.items()
            }
            for metric in CARD_SCORES
        }
        texts = {f"texts, {direction}": len(result.pairs) for direction, result in self.directions.items()}
        skipped = {f"skipped rows, {direction}": count for direction, count in self.skipped.items() if count}
        settings = {name: self.settings[name] for name in CARD_SETTINGS if name in self.settings}
        return {
            "task": self.task,
            "dataset": self.dataset,
            "results": results,
            "evaluation": texts | skipped | settings,
        }

    def plot(self, path: Path):
        """Draw the main score of each model and direction, with its 95 % confidence interval if there is one."""
        save_figure(self._draw(), path)

    def _draw(self) -> "Figure":
        """Return the figure of [`~Evaluation.plot`]."""
        metric = TABLE_SCORES[self.task][0]
        bars = len(self.directions) * (0.6 + 0.4 * len(self.sources))
        # Inches for the longest name, and for the lines of the legend below the bars.
        letters = 0.09 * max(map(len, [self.dataset, *self.sources]))
        figure, axes = make_figure(size=(max(5, 1.5 + bars, 1 + letters), 4 + 0.25 * len(self.sources)))
        width = 0.8 / len(self.sources)
        label = PLOT_LABELS[metric]
        if any(metric in model.intervals for result in self.directions.values() for model in result.models.values()):
            label += "\nerror bars: 95 % confidence interval"
        for number, name in enumerate(self.sources):
            results = [result.models[name] for result in self.directions.values()]
            places = [place + (number - (len(self.sources) - 1) / 2) * width for place in range(len(results))]
            errors = [result.intervals.get(metric, math.nan) for result in results]
            heights = [result.scores[metric] for result in results]
            axes[0, 0].bar(places, heights, 0.9 * width, yerr=errors, capsize=3, label=as_label(name))
        axes[0, 0].set_xticks(range(len(self.directions)), [*map(as_label, self.directions)])
        axes[0, 0].set(ylabel=label, ylim=(0, None), title=as_label(self.dataset))
        axes[0, 0].grid(axis="y", alpha=0.3)
        axes[0, 0].set_axisbelow(True)
        figure.legend(loc="outside lower center")
        return figure

    def write(self, folder: Path):
        """
        Write `results.json`, `outputs.jsonl`, `samples.md` and `scores.png`. If one file fails, write no file.

        Args:
            folder (`Path`):
                Folder to write. Files with these names are replaced.

        Raises:
            ConversionError: if the folder cannot be written.
        """
        content = self.to_dict()
        texts = {
            "results.json": format_json(content),
            "outputs.jsonl": "".join(self.list_outputs()),
            "samples.md": "\n".join(write_samples(content)),
        }
        with whole_files(folder, [*texts, "scores.png"]) as (*files, plot):
            for file, text in zip(files, texts.values(), strict=True):
                file.write_text(text, encoding="utf-8")
            self._draw().savefig(plot, dpi=120, format="png")

    def record(self) -> list[Path]:
        """
        Write the results into `metrics.json` of each local XLM-SWCM model, for its card. Return the files.

        Fields about the training stay. `xlm-swcm push` writes the card.

        Raises:
            DataError: if only some texts of the data are evaluated.
        """
        if "max_samples" in self.settings:
            raise DataError(
                f"`max_samples={self.settings['max_samples']}` selects only some texts, so the scores are not scores "
                "of the whole data. Evaluate without `max_samples` to record the scores."
            )
        written = []
        for name in find_recordable(self.sources):
            path = Path(self.sources[name]) / "metrics.json"
            write_json(path, read_metrics(path.parent) | self.card_results(name))
            written.append(path)
        return written

    def list_outputs(self) -> list[str]:
        """Return a line of JSON for each source, with the outputs of all models."""
        lines = []
        for direction, result in self.directions.items():
            for place, pair in enumerate(result.pairs):
                outputs = {name: model.outputs.texts[place] for name, model in result.models.items()}
                row = {"direction": direction, "source": pair.source, "reference": pair.target, "outputs": outputs}
                lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        return lines


def find_recordable(sources: dict[str, str]) -> list[str]:
    """Return the names of the models that are local folders with a conversion report."""
    return [name for name, source in sources.items() if Path(source, REPORT).is_file()]


def list_signatures(directions: dict[str, DirectionResult]) -> list[tuple[str, str]]:
    """Return the signatures, which all directions share."""
    return [*next(iter(directions.values())).signatures.items()]


def format_score(result: ModelResult, metric: str) -> str:
    """Return a score, with its confidence interval if there is one."""
    interval = result.intervals.get(metric)
    return f"{result.scores[metric]:.2f}" + (f" ±{interval:.2f}" if interval is not None else "")


def format_p(result: ModelResult) -> str:
    """Return the p-value of chrF++, or nothing for the first model."""
    p_value = result.p_values.get("chrf++")
    return "" if p_value is None else f"{p_value:.3f}"


def make_table(title: str, headings: list[str]) -> Table:
    """Return a table with a row for each direction and model. Each word of a heading has a separate line."""
    table = Table("", title=Text(title), title_justify="left", box=None)
    # The ends of long names stay visible.
    table.add_column("model", overflow="fold")
    for heading in headings:
        table.add_column(heading.replace("_", "\n"), justify="right", no_wrap=True)
    return table


def describe_model(model: ModelResult) -> dict:
    """Return the results of a model as JSON values."""
    return {
        "scores": {name: round(value, 4) for name, value in model.scores.items()},
        "confidence_95": {name: round(value, 4) for name, value in model.intervals.items()},
        "p_values": {name: round(value, 4) for name, value in model.p_values.items()},
        "faults": model.count_faults(),
    }


def write_samples(content: dict) -> list[str]:
    """Return the samples of a report as lines of Markdown."""
    order = "The samples go from the best output of the first model to the worst output."
    lines = [f"# Samples of {content['dataset']}", "", order]
    for direction, result in content["directions"].items():
        for number, sample in enumerate(result["samples"], 1):
            lines += ["", f"## {direction}, {number}", "", "| | text |", "|---|---|"]
            lines += [
                f"| source | {escape_cell(sample['source'])} |",
                f"| reference | {escape_cell(sample['reference'])} |",
            ]
            for name, output in sample["outputs"].items():
                verdict = ", ".join(["right" if output["is_right"] else "wrong", *output["faults"]])
                lines.append(f"| {escape_cell(name)}: {verdict} | {escape_cell(output['text'])} |")
    return [*lines, ""]


def escape_cell(text: str) -> str:
    """Return a text for a cell of a Markdown table."""
    return " ".join(text.replace("|", "\\|").split())
