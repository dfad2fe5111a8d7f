"""Report a change of vocabulary as JSON, as a table and as a plot."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from modeling_xlm_swcm.checkpoints.plots import as_label, make_figure, save_figure

from .corpus import SegmentationComparison


# Share of `<unk>` tokens above which a model cannot generate a language.
MAX_UNKNOWN = 0.05

COLUMNS = ("language", "lines", "tokens/line", "tokens/word", "<unk>", "resegmented")


@dataclass
class VocabularyReport:
    """
    The result of `extend` or `trim`.

    Attributes:
        action (`str`):
            `"extend"` or `"trim"`.
        source (`str`):
            Folder or Hub id of the checkpoint.
        revision (`str`, *optional*):
            Revision of the checkpoint on the Hub.
        options (`dict`):
            Options of the action.
        num_learned (`int`, *optional*):
            Number of tokens that `extend` learned from the corpus. The checkpoint can have some of them already.
        tokens (`dict[str, int]`):
            Number of tokens of the tokenizer `"before"` and `"after"`.
        rows (`dict[str, int]`):
            Number of rows of the embedding matrix, including rows without a token.
        parameters (`dict[str, int]`):
            Number of stored weights.
        changed (`list[str]`):
            Names of the tensors with a row per token.
        kept (`list[str]`):
            Names of the tensors that are bit-equal to the source.
        languages (`dict[str, SegmentationComparison]`):
            Segmentation of each language before and after.
    """

    action: str
    source: str
    revision: str | None
    options: dict
    num_learned: int | None = None
    tokens: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    languages: dict[str, SegmentationComparison] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the report as JSON."""
        # The report is published with the model, so it holds only the name of a local folder.
        source = Path(self.source).name if Path(self.source).is_dir() else self.source
        return json.dumps(asdict(self) | {"source": source}, indent=2, ensure_ascii=False) + "\n"

    def print(self, console: Console):
        """Print a table of the languages and the counts."""
        table = Table(title=Text(f"{self.source}: {self.action}"), title_justify="left", box=box.SIMPLE)
        for column in COLUMNS:
            table.add_column(column, justify="left" if column == "language" else "right")
        for language, text in self.languages.items():
            before, after = text.before, text.after
            table.add_row(
                Text(language),
                f"{text.lines:,}",
                f"{before.tokens_per_line:.1f} → {after.tokens_per_line:.1f}",
                f"{before.fertility:.2f} → {after.fertility:.2f}",
                f"{before.unknown:.2%} → {after.unknown:.2%}",
                f"{text.resegmented:.2%}",
            )
        console.print(table)
        for language, text in self.languages.items():
            if self.action == "trim" and text.after.unknown > MAX_UNKNOWN:
                console.print(
                    f"{text.after.unknown:.0%} of the {language} tokens are <unk>. The model cannot generate this "
                    "language. Add tokens with xlm-swcm vocab extend.",
                    markup=False,
                )
        if self.num_learned is not None:
            self._print_added(console, self.num_learned)
        for name in ("tokens", "parameters"):
            counts = getattr(self, name)
            console.print(f"{name.capitalize()}: {counts['before']:,} → {counts['after']:,}.")
        console.print(
            f"Changed tensors: {len(self.changed)} ({', '.join(self.changed)}). Unchanged tensors: {len(self.kept)}."
        )

    def _print_added(self, console: Console, learned: int):
        """Print the number of tokens that were added, and why it is smaller than the size."""
        size, added = self.options["size"], self.tokens["after"] - self.tokens["before"]
        few = f" The corpus has not enough different words for {size:,}." if learned < size else ""
        console.print(f"Learned {learned:,} tokens from the corpus.{few}")
        others = f" The other {learned - added:,} were known or are in another script." if learned > added else ""
        console.print(f"Added {added:,} tokens.{others}")

    def plot(self, path: Path):
        """Plot tokens per word and the share of `<unk>` by language, before and after, as a PNG file."""
        figure, [axes] = make_figure(columns=2, size=(9, 1.6 + 0.5 * len(self.languages)), sharey=True)
        figure.suptitle(
            f"{as_label(self.source)}: vocabulary {self.tokens['before']:,} → {self.tokens['after']:,} tokens",
            x=0.01,
            ha="left",
        )
        positions = range(len(self.languages))
        for axis, statistic, title, scale, label, min_width in (
            (axes[0], "fertility", "tokens per word", 1, "{:.2f}", 0),
            (axes[1], "unknown", "<unk> (% of tokens)", 100, "{:.1f}", 10),
        ):
            for shift, when, colour in ((-0.2, "before", "#b8bfc9"), (0.2, "after", "#2a6f97")):
                values = [scale * getattr(getattr(text, when), statistic) for text in self.languages.values()]
                places = [position + shift for position in positions]
                bars = axis.barh(places, values, height=0.36, color=colour, label=when)
                axis.bar_label(bars, [label.format(value) for value in values], padding=3, fontsize=9)
            axis.set_title(title, loc="left", fontsize=10)
            axis.spines[["top", "right", "bottom"]].set_visible(False)
            axis.set_xticks([])
            axis.set_xlim(0, 1.15 * max(axis.dataLim.xmax, min_width))
        axes[0].set_yticks(positions, self.languages)
        axes[0].invert_yaxis()
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower right", ncols=2, frameon=False)
        save_figure(figure, path, dpi=150)
