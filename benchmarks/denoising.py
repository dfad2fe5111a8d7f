"""Lines of 256 tokens a second that one core prepares with `DataCollatorForDenoising`.

    python benchmarks/denoising.py [--tokenizer FOLDER]

Without a tokenizer: a vocabulary of XLM-R's size, of random words and full stops.
"""

import argparse
import statistics
import time

import numpy as np
from rich.console import Console
from transformers import AutoTokenizer, PreTrainedTokenizerBase, XLMRobertaTokenizer

import modeling_xlm_swcm  # noqa: F401 - registers the tokenizer
from modeling_xlm_swcm.training import DataCollatorForDenoising


GOAL = 5000
LENGTH = 256


def make_tokenizer() -> PreTrainedTokenizerBase:
    marks = np.random.default_rng(0).choice(["▁", ""], 250_000)
    pieces = [f"{mark}{number}{'.' if number % 20 == 0 else ''}" for number, mark in enumerate(marks)]
    vocab = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((piece, -9.0) for piece in pieces)]
    return XLMRobertaTokenizer(vocab=[*vocab, ("<mask>", 0.0)])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", help="folder or Hub id; by default a made-up vocabulary")
    parser.add_argument("--batch-size", type=int, default=64)
    args = parser.parse_args()
    tokenizer = make_tokenizer() if args.tokenizer is None else AutoTokenizer.from_pretrained(args.tokenizer)
    start = time.perf_counter()
    collator = DataCollatorForDenoising(tokenizer)
    tables = time.perf_counter() - start

    ids = np.random.default_rng(0).integers(10, len(tokenizer) - 10, (50, args.batch_size, LENGTH))
    ids[..., 0], ids[..., -1] = tokenizer.bos_token_id, tokenizer.eos_token_id
    batches = [[{"input_ids": row} for row in batch] for batch in ids.tolist()]
    speeds = []
    for _ in range(5):
        start = time.perf_counter()
        for batch in batches:
            collator(batch)
        speeds.append(ids.shape[0] * args.batch_size / (time.perf_counter() - start))
    Console().print(
        f"{statistics.median(speeds):.0f} lines of {LENGTH} tokens a second (median of {len(speeds)}, from "
        f"{min(speeds):.0f} to {max(speeds):.0f}; goal {GOAL}), tables over {len(tokenizer)} pieces in {tables:.1f} s."
    )


if __name__ == "__main__":
    main()
