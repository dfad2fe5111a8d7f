"""Measure how many lines of 256 tokens per second one core denoises, from token ids and from a text file.

    python benchmarks/denoising.py [--tokenizer FOLDER]

Without a tokenizer the vocabulary has the size of XLM-R's, with random words and full stops. The file is read,
tokenized, mixed and collated as in `examples/pretrain.py`. Its words are tokens with frequencies after Zipf's law.
"""

import argparse
import itertools
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, PreTrainedTokenizerBase, XLMRobertaTokenizer

from modeling_xlm_swcm import XLMSWCMTokenizer
from modeling_xlm_swcm.training import DataCollatorForDenoising
from modeling_xlm_swcm.training.mixture import CorpusConfig, Mixture


GOAL = 5000
LENGTH = 256


def make_tokenizer() -> PreTrainedTokenizerBase:
    """Return a tokenizer with 250,000 random tokens."""
    marks = np.random.default_rng(0).choice(["▁", ""], 250_000)
    tokens = [f"{mark}{number}{'.' if number % 20 == 0 else ''}" for number, mark in enumerate(marks)]
    vocab = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((token, -9.0) for token in tokens)]
    return XLMRobertaTokenizer(vocab=[*vocab, ("<mask>", 0.0)])


def add_language(tokenizer: PreTrainedTokenizerBase) -> XLMSWCMTokenizer:
    """Return the tokenizer, with a language tag if it has none."""
    if isinstance(tokenizer, XLMSWCMTokenizer):
        return tokenizer
    return XLMSWCMTokenizer(
        tokenizer_object=tokenizer.backend_tokenizer, languages=["en"], **tokenizer.special_tokens_map
    )


def write_lines(path: Path, tokenizer: XLMSWCMTokenizer, count: int):
    """Write lines of `LENGTH` tokens, including start, tag and end."""
    rng = np.random.default_rng(0)
    tokens = rng.permutation(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    words = [token[1:] for token in tokens.tolist() if token.startswith("▁") and len(token) > 1]
    ids = tokenizer(words, add_special_tokens=False)["input_ids"]
    words = [word for word, tokens in zip(words, ids, strict=True) if len(tokens) == 1]
    shares = 1 / np.arange(1, len(words) + 1)
    sampled = rng.choice(len(words), (count, LENGTH - 3), p=shares / shares.sum())
    path.write_text("".join(" ".join(words[i] for i in row) + "\n" for row in sampled.tolist()), encoding="utf-8")


def measure_stream(collator: DataCollatorForDenoising, batch_size: int) -> list[float]:
    """Measure lines per second from a file to batches, in three readings."""
    tokenizer = collator.tokenizer
    # The mixture reads this many lines at once.
    count = Mixture.batches_sorted_together * batch_size
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lines.txt"
        write_lines(path, tokenizer, count)
        corpus = CorpusConfig(str(path), language=tokenizer.languages[0], examples=count)
        mixture = Mixture([corpus], tokenizer, max_length=LENGTH, batch_size=batch_size)
        speeds = []
        for _ in range(3):
            batches = DataLoader(mixture, batch_size=batch_size, collate_fn=collator)
            start = time.perf_counter()
            for _ in itertools.islice(batches, Mixture.batches_sorted_together):
                pass
            speeds.append(count / (time.perf_counter() - start))
    return speeds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", help="Tokenizer: a folder or Hub id. Default: a random vocabulary.")
    parser.add_argument("--batch-size", type=int, default=64, help="Lines per batch. Default: 64.")
    args = parser.parse_args()
    # The measurement is for one core.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = make_tokenizer() if args.tokenizer is None else AutoTokenizer.from_pretrained(args.tokenizer)
    tokenizer = add_language(tokenizer)
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
    console = Console()
    console.print(
        f"{statistics.median(speeds):.0f} lines of {LENGTH} tokens per second (median of {len(speeds)}, from "
        f"{min(speeds):.0f} to {max(speeds):.0f}; goal {GOAL}). Tables of {len(tokenizer)} tokens took {tables:.1f} s."
    )
    speeds = measure_stream(collator, args.batch_size)
    console.print(
        f"{statistics.median(speeds):.0f} lines per second from a text file (median of {len(speeds)}, from "
        f"{min(speeds):.0f} to {max(speeds):.0f})."
    )


if __name__ == "__main__":
    main()
