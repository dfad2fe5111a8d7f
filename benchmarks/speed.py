"""A training step and decoding, side by side with Transformers' own encoder-decoders, at the size of XLM-R base.

    python benchmarks/speed.py [--rounds 3] [--quick]

Random weights, 250,002 words. Every measurement is a process of its own, and the models take turns. Prints medians
with their spread, and writes outputs/benchmarks/speed.json and speed.png. `--quick` is for seeing it run: two layers,
5,000 words, short texts, one round.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from datetime import date
from functools import partial
from pathlib import Path

import torch
import transformers
from matplotlib import pyplot as plt
from rich.console import Console
from rich.table import Table
from transformers import (
    EncoderDecoderConfig,
    EncoderDecoderModel,
    MBartConfig,
    MBartForConditionalGeneration,
    PreTrainedModel,
    XLMRobertaConfig,
)

from modeling_xlm_swcm import XLMSWCMConfig, XLMSWCMForConditionalGeneration


FOLDER = Path("outputs/benchmarks")
WORDS = 250002
PEERS = ["MBart", "EncoderDecoder"]
# model, options of `train_step`
TRAINING = {
    "MBart": ("MBart", {}),
    "EncoderDecoder": ("EncoderDecoder", {}),
    "init": ("init", {}),
    "tied": ("tied", {}),
    "init, checkpointing": ("init", {"checkpointing": True}),
    "tied, checkpointing": ("tied", {"checkpointing": True}),
    "init, bf16 autocast": ("init", {"bf16": True}),
    "MBart, bf16 autocast": ("MBart", {"bf16": True}),
}
# batch size and beams
DECODING = {"batch 1": (1, 1), "batch 8": (8, 1), "beam 5": (1, 5)}
DECODERS = [*PEERS, "init"]


def make_model(name: str, quick: bool) -> PreTrainedModel:
    """All without dropout of attention weights, which MBart has not by default: it costs memory, and fast kernels."""
    torch.manual_seed(0)
    layers, words = (2, 5000) if quick else (12, WORDS)
    ids = dict(pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=0)
    if name == "MBart":
        sizes = dict(d_model=768, encoder_layers=layers, decoder_layers=layers)
        sizes |= dict(encoder_attention_heads=12, decoder_attention_heads=12, encoder_ffn_dim=3072)
        config = MBartConfig(vocab_size=words, decoder_ffn_dim=3072, forced_eos_token_id=None, **sizes, **ids)
        return MBartForConditionalGeneration(config)
    if name == "EncoderDecoder":
        half = XLMRobertaConfig(
            vocab_size=words, num_hidden_layers=layers, max_position_embeddings=514, attention_probs_dropout_prob=0.0
        )
        return EncoderDecoderModel(EncoderDecoderConfig.from_encoder_decoder_configs(half, half, **ids))
    config = XLMSWCMConfig(
        vocab_size=words, num_hidden_layers=layers, weight_sharing=name, attention_probs_dropout_prob=0.0
    )
    return XLMSWCMForConditionalGeneration(config)


def random_tokens(*shape: int) -> torch.Tensor:
    return torch.randint(10, 4990, shape, generator=torch.Generator().manual_seed(0))


def train_step(model: PreTrainedModel, quick: bool, checkpointing: bool = False, bf16: bool = False) -> dict:
    """Seconds of a step with SGD after one to warm up."""
    model.train()
    if checkpointing:
        model.activation_checkpointing_enable()
    batch, length = (2, 16) if quick else (8, 128)
    source = random_tokens(batch, length)
    inputs = {"input_ids": source, "attention_mask": torch.ones_like(source), "labels": random_tokens(batch, length)}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(2):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds = time.perf_counter() - start
    return {"seconds": seconds}


@torch.no_grad()
def decode(model: PreTrainedModel, quick: bool) -> dict:
    """Tokens a second, for each setting."""
    model.eval()
    length, new = (16, 4) if quick else (128, 64)
    speeds = {}
    for name, (batch, beams) in DECODING.items():
        source = random_tokens(batch, length)
        inputs = {"input_ids": source, "attention_mask": torch.ones_like(source)}
        write = partial(model.generate, **inputs, do_sample=False, num_beams=beams)
        write(max_new_tokens=3, min_new_tokens=3)
        start = time.perf_counter()
        written = write(max_new_tokens=new, min_new_tokens=new)
        speeds[name] = batch * new / (time.perf_counter() - start)
        assert written.shape == (batch, new + 1)
    return speeds


def worker(model: str, quick: bool, options: dict | None):
    model = make_model(model, quick)
    result = decode(model, quick) if options is None else train_step(model, quick, **options)
    result["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(json.dumps(result))


def measure(model: str, quick: bool, options: dict | None = None) -> dict:
    """One measurement in a process of its own: of a training step, or without `options` of decoding."""
    task = json.dumps({"model": model, "quick": quick, "options": options})
    run = subprocess.run([sys.executable, __file__, "--worker", task], stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(run.stdout.splitlines()[-1])


def summarise(runs: list[dict]) -> dict:
    """Median, smallest and largest of each measured value."""
    columns = {name: [run[name] for run in runs] for name in runs[0]}
    return {name: [statistics.median(values), min(values), max(values)] for name, values in columns.items()}


def table(title: str, results: dict, columns: dict[str, str]) -> Table:
    table = Table(title=title)
    table.add_column("")
    for heading in columns.values():
        table.add_column(heading, justify="right")
        table.add_column("/ MBart", justify="right")
    for name, result in results.items():
        cells = [name]
        for column in columns:
            median, low, high = result[column]
            cells += [f"{median:.1f} ({low:.1f}-{high:.1f})", f"{median / results['MBart'][column][0]:.2f}"]
        table.add_row(*cells)
    return table


def plot(training: dict, decoding: dict, path: Path):
    panels = [
        ("seconds per training step", training, ["seconds"]),
        ("peak memory in training, GB", training, ["peak_gb"]),
        ("decoded tokens per second", decoding, list(DECODING)),
    ]
    figure, axes = plt.subplots(len(panels), figsize=(8, 10), layout="constrained")
    for axis, (title, results, columns) in zip(axes, panels, strict=True):
        rows = [(name, column) for column in columns for name in results]
        medians = [results[name][column][0] for name, column in rows]
        bars = axis.barh(
            [name if len(columns) == 1 else f"{name}, {column}" for name, column in rows],
            medians,
            xerr=[
                [abs(results[name][column][side] - results[name][column][0]) for name, column in rows]
                for side in (1, 2)
            ],
            color=["tab:gray" if name.startswith(tuple(PEERS)) else "tab:blue" for name, _ in rows],
        )
        axis.bar_label(bars, [f" {median:.1f}" for median in medians])
        axis.set_title(title)
        axis.invert_yaxis()
        axis.margins(x=0.1)
    figure.savefig(path, dpi=120)


def machine() -> str:
    models = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return f"{models[0]}, {os.cpu_count()} cores"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small models, one round")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(**args.worker)

    training, decoding = {name: [] for name in TRAINING}, {name: [] for name in DECODERS}
    for _ in range(1 if args.quick else args.rounds):
        for name, (model, options) in TRAINING.items():
            training[name].append(measure(model, args.quick, options))
        for name in DECODERS:
            decoding[name].append(measure(name, args.quick))
    report(training, decoding, FOLDER / ("speed_quick" if args.quick else "speed"))


def report(training: dict[str, list[dict]], decoding: dict[str, list[dict]], path: Path):
    """Print what was measured, and write it to `path` with the endings .json and .png."""
    training, decoding = ({name: summarise(runs) for name, runs in part.items()} for part in (training, decoding))
    console = Console()
    console.print(table("Training step", training, {"seconds": "seconds", "peak_gb": "peak GB"}))
    console.print(table("Decoding, tokens a second", decoding, dict(zip(DECODING, DECODING, strict=True))))
    path.parent.mkdir(parents=True, exist_ok=True)
    results = {
        "date": date.today().isoformat(),
        "machine": machine(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "median, smallest and largest": {"training": training, "decoding": decoding},
    }
    path.with_suffix(".json").write_text(json.dumps(results, indent=2) + "\n")
    plot(training, decoding, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
