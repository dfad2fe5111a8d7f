"""Compare training, decoding and loading with Transformers' encoder-decoders, at the size of XLM-R base.

    python benchmarks/speed.py [--only PART ...] [--rows ROW ...] [--rounds 3] [--quick]

Each measurement (workloads.py) runs in a new process. The models take turns. The script prints medians with their
spread, and writes outputs/benchmarks/speed.json and speed.png. Parts that do not run keep their old figures. `--rows`
measures only some rows of each part. `--quick` is a trial run with small models, short texts and one round.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from datetime import date
from pathlib import Path

import torch
import transformers
from matplotlib.axes import Axes
from measuring import describe_machine, summarise
from peers import DECODING, GPU_BATCHES, TRIMMED, make_model
from rich.console import Console
from rich.table import Table
from transformers.utils import is_liger_kernel_available

from modeling_xlm_swcm.checkpoints.plots import make_figure, save_figure
from modeling_xlm_swcm.checkpoints.reading import read_json
from modeling_xlm_swcm.training.files import write_json


FOLDER = Path("outputs/benchmarks")
WIDTH = 150
PEERS = ("MBart", "EncoderDecoder")
# baselines of the ratios
BASELINES = ("MBart", "init")
PREFIX = {name: dict(model=name) for name in ("prefix-init", "prefix-tied")}
TRAINING = {
    "MBart": dict(model="MBart"),
    "EncoderDecoder": dict(model="EncoderDecoder"),
    "init": dict(model="init"),
    "tied": dict(model="tied"),
    **PREFIX,
    "init, checkpointing": dict(model="init", checkpointing=True),
    "init, bf16 autocast": dict(model="init", bf16=True),
    "MBart, bf16 autocast": dict(model="MBart", bf16=True),
}
DECODERS = {
    "MBart": dict(model="MBart"),
    "EncoderDecoder": dict(model="EncoderDecoder"),
    "init": dict(model="init"),
    **PREFIX,
    "init, bf16 weights": dict(model="init", weights="bfloat16"),
    "init, int8 (PyTorch)": dict(model="init", weights="int8, PyTorch"),
}
BOTH = {"MBart": dict(model="MBart"), "init": dict(model="init")}
SMALL_VOCABULARY = {name: options | dict(words=TRIMMED) for name, options in (BOTH | PREFIX).items()}
TORCHAO = {"init, int8 (torchao)": dict(model="init", weights="int8, torchao", new=4)}
STATIC = {name: options | dict(cache_implementation="static") for name, options in BOTH.items()}
GPU_MODELS = BOTH | {"EncoderDecoder": dict(model="EncoderDecoder")}
GPU_DECODERS = GPU_MODELS | PREFIX
LOSSES = {kind: dict(kind=kind) for kind in ("logits", "chunks", *(["Liger"] if is_liger_kernel_available() else []))}
LOSSES |= {f"chunks of 2^{power}": dict(kind="chunks", max_logits=2**power) for power in (25, 26, 27, 28, 29)}
LONG = {
    f"{work}, {length} tokens": dict(work=work, length=length)
    for work in ("encode", "train", "train the paper's decoder")
    for length in (512, 2048, 8192)
}
SETTINGS = dict(zip(DECODING, DECODING, strict=True))
STEPS = SETTINGS | {"batch 8, later steps": "batch 8, later steps"}
TIME_AND_MEMORY = {"seconds": "seconds", "peak_gb": "peak GB"}
SIZE = {"file_gb": "file GB", "million_parameters": "million parameters"}
GPU_DECODING = {name: name for name in GPU_BATCHES} | {"peak_gb": "peak GB"}
COMPILED = {"batch 1": "batch 1", "compiling": "seconds to compile"}
# part -> task of workloads.py, runs, maximum number of rounds, and columns of its table
PARTS = {
    "training": ("train", TRAINING, None, TIME_AND_MEMORY),
    "decoding": ("decode", DECODERS, None, SETTINGS),
    "training-trimmed": ("train", SMALL_VOCABULARY, None, TIME_AND_MEMORY),
    "decoding-trimmed": ("decode", SMALL_VOCABULARY, None, STEPS),
    "loading": ("load", BOTH | PREFIX, None, TIME_AND_MEMORY | SIZE),
    "lengths": ("decode_long", BOTH, 1, {}),
    "long": ("read_long", LONG, None, {"seconds": "CPU seconds", "peak_gb": "peak GB"}),
    # Not by default: compiling takes minutes, and Transformers imports torchao wherever it is installed.
    "compiled": ("decode_compiled", {"init": dict(model="init")}, 1, COMPILED),
    "torchao": ("decode", TORCHAO, 1, SETTINGS),
    "gpu-training": (
        "train_gpu",
        GPU_MODELS | {"tied": dict(model="tied")} | PREFIX,
        None,
        {"tokens": "tokens/s", "teraflops": "TFLOP/s", "utilisation": "utilisation", "peak_gb": "peak GB"},
    ),
    "gpu-decoding": ("decode_gpu", GPU_DECODERS, None, GPU_DECODING),
    # Compiling takes minutes.
    "gpu-static": ("decode_gpu", STATIC, 1, GPU_DECODING),
    "gpu-loss": (
        "loss_gpu",
        LOSSES,
        None,
        {"milliseconds": "milliseconds", "peak_gb": "peak GB"},
    ),
}
ALWAYS = ["training", "decoding", "loading", "lengths"]


def measure(**options) -> dict:
    """Run a measurement in a new process."""
    script = Path(__file__).with_name("workloads.py")
    run = subprocess.run([sys.executable, script, json.dumps(options)], stdout=subprocess.PIPE, text=True)
    if run.returncode:
        sys.exit(run.returncode)
    return json.loads(run.stdout.splitlines()[-1])


def save_models(names: Iterable[str], folder: Path, quick: bool):
    """Save models. MBart has enough decoder layers for a file of the size of `init`."""
    for name in names:
        make_model(name, quick, decoder_layers=None if quick else 21).save_pretrained(folder / name)


def choose_runs(part: str, rows: list[str] | None) -> dict[str, dict]:
    """Return the runs of a part, or only the runs in `rows`."""
    return {name: options for name, options in PARTS[part][1].items() if rows is None or name in rows}


def measure_part(part: str, runs: dict[str, dict], rounds: int, quick: bool) -> dict[str, list[dict]]:
    """Measure the runs of a part in turns, and return the figures of each round."""
    task, _, most, _ = PARTS[part]
    results = {name: [] for name in runs}
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        if part == "loading":
            save_models(runs, Path(folder), quick)
            runs = {name: dict(folder=str(Path(folder) / name)) for name in runs}
        for _ in range(min(rounds, most or rounds)):
            for name, options in runs.items():
                results[name].append(measure(task=task, quick=quick, **options))
    return results


def make_table(title: str, results: dict, columns: dict[str, str]) -> Table:
    """Return a table of medians with their spread, and their ratios to the baselines."""
    baselines = [name for name in BASELINES if name in results]
    table = Table(title=title)
    table.add_column("")
    for heading in columns.values():
        table.add_column(heading, justify="right")
        for name in baselines:
            table.add_column(f"/ {name}", justify="right")
    for name, result in results.items():
        cells = [name]
        for column in columns:
            median, low, high = result[column]
            spread = f" ({low:.2f}-{high:.2f})" if low < high else ""
            cells += [f"{median:.2f}{spread}", *(f"{median / results[of][column][0]:.2f}" for of in baselines)]
        table.add_row(*cells)
    return table


def plot_bars(axis: Axes, title: str, results: dict, columns: list[str]):
    """Plot medians as bars with their spread."""
    rows = [(name, column) for column in columns for name in results]
    medians = [results[name][column][0] for name, column in rows]
    ends = [[results[name][column][side] for name, column in rows] for side in (1, 2)]
    bars = axis.barh(
        [name if len(columns) == 1 else f"{name}, {column}" for name, column in rows],
        medians,
        xerr=[[abs(end - median) for end, median in zip(side, medians, strict=True)] for side in ends],
        color=["tab:gray" if name.startswith(PEERS) else "tab:blue" for name, _ in rows],
    )
    axis.bar_label(bars, [f" {median:.1f}" for median in medians])
    axis.set_title(title)
    axis.invert_yaxis()
    axis.margins(x=0.1)


def plot_lengths(lengths: Axes, batches: Axes, results: dict):
    """Plot the milliseconds of a step over the length of the text (medians of 32 steps) and over the batch size."""
    for name, result in results.items():
        steps, color = result["steps"], "tab:gray" if name.startswith(PEERS) else "tab:blue"
        middles = [statistics.median(steps[start : start + 32]) for start in range(0, len(steps), 32)]
        lengths.plot([32 * (index + 1) for index in range(len(middles))], middles, "o-", label=name, color=color)
        sizes = [int(size) for size in result["batches"]]
        batches.plot(sizes, list(result["batches"].values()), "o-", label=name, color=color)
    for axis, title in ((lengths, "tokens written, batch 1"), (batches, "batch size")):
        axis.set_title(f"milliseconds a step by {title}")
        axis.set_ylim(bottom=0)
        axis.legend()


def plot_results(results: dict, path: Path):
    """Plot all parts that were measured."""
    panels = [
        ("training", "seconds per training step", ["seconds"]),
        ("training", "peak memory in training, GB", ["peak_gb"]),
        ("decoding", "decoded tokens per second", list(DECODING)),
        ("loading", "seconds to load", ["seconds"]),
    ]
    panels = [panel for panel in panels if panel[0] in results]
    rows = len(panels) + 2 * ("lengths" in results)
    if not rows:
        return
    figure, axes = make_figure(rows, size=(9, 3 * rows))
    for axis, (part, title, columns) in zip(axes[:, 0], panels, strict=False):
        plot_bars(axis, title, results[part], columns)
    if "lengths" in results:
        plot_lengths(*axes[-2:, 0], results["lengths"])
    save_figure(figure, path)


def report(part: str, runs: dict[str, list[dict]], path: Path):
    """Print the figures of a part, and add them to `path` with the endings .json and .png."""
    before = read_json(path.with_suffix(".json")) if path.with_suffix(".json").exists() else {}
    origin = {
        "date": date.today().isoformat(),
        "machine": describe_machine(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    parts = before.get("parts", {})
    results = {name: summarise(values) for name, values in runs.items()}
    parts[part] = origin | {"median, smallest and largest": results}
    if columns := PARTS[part][3]:
        Console(width=WIDTH).print(make_table(part, results, columns))
    write_json(path.with_suffix(".json"), {"parts": parts})
    plot_results(
        {part: values["median, smallest and largest"] for part, values in parts.items()}, path.with_suffix(".png")
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=ALWAYS, help=f"Parts to measure. Default: {' '.join(ALWAYS)}."
    )
    parser.add_argument(
        "--rows", nargs="+", metavar="ROW", help="Rows to measure, for example: MBart init prefix-tied. Default: all."
    )
    parser.add_argument("--rounds", type=int, default=3, help="Number of rounds. Default: 3.")
    parser.add_argument("--quick", action="store_true", help="Use small models and one round.")
    args = parser.parse_args()
    chosen = {part: choose_runs(part, args.rows) for part in args.only}
    known = {name for part in args.only for name in PARTS[part][1]}
    if unknown := [row for row in args.rows or [] if row not in known]:
        parser.error(f"--rows has the unknown row {unknown[0]!r}. Known: {', '.join(sorted(known))}.")
    FOLDER.mkdir(parents=True, exist_ok=True)
    rounds, path = (1, FOLDER / "speed_quick") if args.quick else (args.rounds, FOLDER / "speed")
    for part, runs in chosen.items():
        if runs:
            report(part, measure_part(part, runs, rounds, args.quick), path)


if __name__ == "__main__":
    main()
