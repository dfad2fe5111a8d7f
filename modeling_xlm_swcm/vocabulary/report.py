"""What a change of vocabulary did, as JSON, as a table and as a picture."""

import json
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from modeling_xlm_swcm.checkpoints.errors import ConversionError
from modeling_xlm_swcm.checkpoints.writing import whole_file

from .corpus import Comparison


# share of tokens from which on a language is not written
MUCH_UNKNOWN = 0.05


def check_plot(path: Path):
    """Before hours of work, not after them."""
    if path.suffix.lower() != ".png" or path.is_dir():
        raise ConversionError(f"--plot writes a PNG file, and {path} is none.")
    if find_spec("matplotlib") is None:
        raise ConversionError("--plot needs matplotlib: pip install matplotlib.")


@dataclass
class VocabularyReport:
    """
    Attributes:
        action (`str`): "extend" or "trim".
        source (`str`): the checkpoint's folder or Hub id.
        revision (`str` or `None`): the Hub revision that was asked for.
        options (`dict`): as given.
        tokens (`dict[str, int]`): tokens of the tokenizer "before" and "after".
        rows (`dict[str, int]`): rows of the word embedding, which may be more.
        parameters (`dict[str, int]`): stored weights.
        changed (`list[str]`): tensors with a row per word.
        kept (`list[str]`): tensors that are bit-equal to the source's.
        languages (`dict[str, Comparison]`): how the text of each is cut, before and after.
    """

    action: str
    source: str
    revision: str | None
    options: dict
    tokens: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    languages: dict[str, Comparison] = field(default_factory=dict)

    def to_json(self) -> str:
        # where a folder lies is nobody's business
        source = Path(self.source).name if Path(self.source).is_dir() else self.source
        return json.dumps(asdict(self) | {"source": source}, indent=2, ensure_ascii=False) + "\n"

    def print(self, console: Console):
        table = Table(title=f"{self.source}: {self.action}", title_justify="left", box=box.SIMPLE)
        for column in ("", "lines", "tokens a line", "tokens a word", "<unk>", "cut anew"):
            table.add_column(column, justify="right" if column else "left")
        for language, text in self.languages.items():
            before, after = text.before, text.after
            table.add_row(
                escape(language),
                f"{text.lines:,}",
                f"{before.tokens_per_line:.1f} → {after.tokens_per_line:.1f}",
                f"{before.fertility:.2f} → {after.fertility:.2f}",
                f"{before.unknown:.2%} → {after.unknown:.2%}",
                f"{text.resegmented:.2%}",
            )
        console.print(table)
        for language, text in self.languages.items():
            if self.action == "trim" and text.after.unknown > MUCH_UNKNOWN:
                console.print(
                    f"{text.after.unknown:.0%} of the tokens of {language} are <unk>: the model cannot write it. "
                    "xlm-swcm vocab extend adds pieces for it.",
                    markup=False,
                )
        for name in ("tokens", "parameters"):
            counts = getattr(self, name)
            console.print(f"{name.capitalize()}: {counts['before']:,} → {counts['after']:,}.")
        console.print(
            f"{len(self.changed)} tensors changed ({', '.join(self.changed)}); {len(self.kept)} kept as they were."
        )

    def plot(self, path: Path):
        """Fertility and share of `<unk>` by language, before and after, as a PNG."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 1.6 + 0.5 * len(self.languages)), layout="constrained")
        figure.suptitle(
            f"{self.source}: vocabulary {self.tokens['before']:,} → {self.tokens['after']:,}", x=0.01, ha="left"
        )
        panels = figure.subplots(1, 2, sharey=True)
        places = range(len(self.languages))
        for panel, measure, title, scale, label, least in (
            (panels[0], "fertility", "tokens per word", 1, "{:.2f}", 0),
            (panels[1], "unknown", "<unk>, % of tokens", 100, "{:.1f}", 10),
        ):
            for shift, when, colour in ((-0.2, "before", "#b8bfc9"), (0.2, "after", "#2a6f97")):
                values = [scale * getattr(getattr(text, when), measure) for text in self.languages.values()]
                bars = panel.barh([place + shift for place in places], values, height=0.36, color=colour, label=when)
                panel.bar_label(bars, [label.format(value) for value in values], padding=3, fontsize=9)
            panel.set_title(title, loc="left", fontsize=10)
            panel.spines[["top", "right", "bottom"]].set_visible(False)
            panel.set_xticks([])
            panel.set_xlim(0, 1.15 * max(panel.dataLim.xmax, least))
        panels[0].set_yticks(places, self.languages)
        panels[0].invert_yaxis()
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower right", ncols=2, frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with whole_file(path) as partial:
                figure.savefig(partial, dpi=150, format="png")
        except OSError as error:
            raise ConversionError(f"{path} cannot be written: {error.strerror}.") from error
