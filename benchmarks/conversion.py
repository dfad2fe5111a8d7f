"""Measure time and peak memory of `xlm-swcm convert` at the size of XLM-R base, with random weights.

    python benchmarks/conversion.py [--rounds 3]

The script writes outputs/benchmarks/conversion.json. The encoder (1.1 GB) is made once and kept in the same folder.
"""

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from datetime import date
from itertools import islice, product
from pathlib import Path

import torch
import transformers
from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM, XLMRobertaTokenizer

from modeling_xlm_swcm.training.files import write_json


FOLDER = Path("outputs/benchmarks")
VOCAB_SIZE = 250002


def make_encoder(folder: Path):
    """Save an XLM-R base with random weights, and a tokenizer of the same vocabulary size."""
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=VOCAB_SIZE, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5
    )
    XLMRobertaForMaskedLM(config).save_pretrained(folder)
    specials = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    words = islice(product("▁abcdefghijklmnopqrstuvwxyz", repeat=5), VOCAB_SIZE - 5)
    tokens = [("".join(letters), -10.0 - index / VOCAB_SIZE) for index, letters in enumerate(words)]
    XLMRobertaTokenizer(vocab=[*specials, *tokens, ("<mask>", 0.0)]).save_pretrained(folder)


def measure_conversion(source: Path, output: Path, options: list[str]) -> tuple[float, float]:
    """Measure seconds and peak resident gigabytes of one run of the command, including the start of Python."""
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-c", "from modeling_xlm_swcm.cli import main; main()", "convert"]
    start = time.perf_counter()
    process = subprocess.Popen([*command, str(source), str(output), *options], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status != 0:
        raise SystemExit("The conversion failed. See the error above.")
    return seconds, usage.ru_maxrss * 1024 / 1e9


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="Number of rounds. Default: 3.")
    args = parser.parse_args()
    source, output = FOLDER / "encoder", FOLDER / "converted"
    if not (source / "tokenizer.json").exists():
        make_encoder(source)
    size = (source / "model.safetensors").stat().st_size / 1e9

    variants = {"init": [], "tied": ["--weight-sharing", "tied"], "bfloat16": ["--dtype", "bfloat16"]}
    variants = {name: ["--decoder", "paper", *options] for name, options in variants.items()}
    measured = {name: [] for name in variants}
    for _ in range(args.rounds):
        for name, options in variants.items():
            options = [*options, "--languages", "bo", "kk", "mn", "ug", "zh"]
            measured[name].append(measure_conversion(source, output, options))
            written = (output / "model.safetensors").stat().st_size / 1e9
            print(f"{name:9} {measured[name][-1][0]:5.1f} s  {measured[name][-1][1]:.2f} GB  file {written:.2f} GB")

    results = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "date": date.today().isoformat(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "source_file_gb": size,
    }
    print(f"\nSource file {size:.2f} GB; medians of {args.rounds} rounds:")
    for name, runs in measured.items():
        seconds, memory = (statistics.median(values) for values in zip(*runs, strict=True))
        spread = max(run[0] for run in runs) - min(run[0] for run in runs)
        results[name] = {"seconds": seconds, "seconds_spread": spread, "peak_gb": memory, "peak_ratio": memory / size}
        print(
            f"{name:9} {seconds:5.1f} s (spread {spread:.1f})  peak {memory:.2f} GB, {memory / size:.2f} x the source"
        )
    write_json(FOLDER / "conversion.json", results)


if __name__ == "__main__":
    main()
