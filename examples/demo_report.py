"""The report of the demo: a table, samples, a plot and a JSON file."""

import random
from pathlib import Path

from cldr import NamePair
from matplotlib.ticker import LogLocator, ScalarFormatter
from rich.console import Console
from rich.table import Table
from sacrebleu.metrics import CHRF

from modeling_xlm_swcm.checkpoints.plots import make_figure, save_figure
from modeling_xlm_swcm.training.files import write_json


LANGUAGES = {"bo": "Tibetan", "ug": "Uyghur", "kk": "Kazakh", "mn": "Mongolian"}
# Kinds of pairs that `phrases.py` composes. All other kinds are names.
PHRASES = {"date", "month", "amount", "money", "countries"}

Outputs = dict[NamePair, str]


def same_text(first: str, second: str) -> bool:
    """Compare two texts up to the kind and number of spaces. XLM-R reads CLDR's narrow spaces as spaces."""
    return first.split() == second.split()


def is_phrase(pair: NamePair) -> bool:
    """Return True for a composed phrase and False for a name."""
    return pair.key[0] in PHRASES


def group_pairs(test: list[NamePair]) -> dict[str, list[NamePair]]:
    """Return the rows of the table: phrases of each language, and the names of all languages."""
    groups = {
        f"phrases, {name}": [pair for pair in test if pair.language == code and is_phrase(pair)]
        for code, name in LANGUAGES.items()
    }
    return groups | {"names, all": [pair for pair in test if not is_phrase(pair)]}


def score(pairs: list[NamePair], outputs: Outputs) -> dict[str, float]:
    """Return the share of exact outputs in percent, and chrF."""
    hypotheses, references = [outputs[pair] for pair in pairs], [" ".join(pair.target.split()) for pair in pairs]
    exact = sum(map(same_text, hypotheses, references))
    return {
        "exact": 100 * exact / max(1, len(pairs)),
        "chrF": CHRF().corpus_score(hypotheses, [references]).score if pairs else 0.0,
    }


def evaluation_losses(history: list[dict]) -> list[tuple[int, float]]:
    return [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]


def compare_speed(histories: dict[str, list[dict]]) -> str:
    """Say when the copied decoder reaches the last loss of the random decoder."""
    copied, randomly = (evaluation_losses(histories[name]) for name in ("copied", "random"))
    last_step, last_loss = randomly[-1]
    reached = next((step for step, loss in copied if loss <= last_loss), None)
    when = "does not reach this loss" if reached is None else f"reaches this loss after {reached} steps"
    return (
        f"After {last_step} steps, the random decoder has a loss of {last_loss:.2f} on held-out phrases. The copied "
        f"decoder {when}."
    )


def print_results(
    console: Console, test: list[NamePair], histories: dict[str, list[dict]], outputs: dict[str, Outputs], seed: int
) -> dict[str, dict]:
    """Print and return the scores, and print ten samples."""
    groups = group_pairs(test)
    scores = {group: {name: score(pairs, outputs[name]) for name in outputs} for group, pairs in groups.items()}
    table = Table("held out", "pairs", "copied: exact", "chrF", "random: exact", "chrF", title="From Chinese")
    for group, pairs in groups.items():
        cells = [f"{scores[group][name][metric]:.1f}" for name in ("copied", "random") for metric in ("exact", "chrF")]
        cells[0], cells[2] = f"{cells[0]} %", f"{cells[2]} %"
        table.add_row(group, f"{len(pairs):,}", *cells)
    console.print(table)
    console.print(compare_speed(histories))
    samples = Table(title="Ten held-out phrases")
    for column in ("", "Chinese", "into", "copied decoder", "reference"):
        samples.add_column(column, overflow="fold")
    phrases = [pair for pair in test if is_phrase(pair)]
    for pair in random.Random(seed).sample(phrases, min(10, len(phrases))):
        text = outputs["copied"][pair]
        mark = "✓" if same_text(text, pair.target) else "✗"
        samples.add_row(mark, pair.source, LANGUAGES[pair.language], text, pair.target)
    console.print(samples)
    return scores


def plot_losses(histories: dict[str, list[dict]], path: Path):
    """Plot training and held-out losses of both decoders."""
    figure, axes = make_figure(1, 1, size=(7, 4.5))
    axis = axes.item()
    for name, history in histories.items():
        training = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
        (line,) = axis.plot(
            *zip(*training, strict=True), alpha=0.4, label=f"{name} decoder, training phrases and names"
        )
        axis.plot(
            *zip(*evaluation_losses(history), strict=True),
            "o-",
            color=line.get_color(),
            label=f"{name} decoder, held-out phrases",
        )
    axis.set(
        title="Fine-tuning from Chinese into four languages",
        xlabel="training step",
        ylabel="loss (nats per token)",
        yscale="log",
    )
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(ScalarFormatter())
    axis.grid(alpha=0.3, which="both")
    axis.legend()
    save_figure(figure, path)


def write_outputs(
    test: list[NamePair], scores: dict[str, dict], outputs: dict[str, Outputs], seconds: float, path: Path
):
    """Write scores and outputs as JSON."""
    rows = [
        {"kind": pair.key[0], "language": pair.language, "source": pair.source, "reference": pair.target}
        | {name: texts[pair] for name, texts in outputs.items()}
        for pair in test
    ]
    write_json(path, {"scores": scores, "seconds": round(seconds), "outputs": rows})
