"""Measure the cost of mask queries: processor time of a training step and of generation.

    python benchmarks/ablation/mask_queries_cost.py ENCODER OUTPUT.json

A training step has 16 pairs of 12 + 12 random tokens, with AdamW. Generation writes 24 tokens for each source of 12
tokens. It uses `eager` attention, so that no decoding step copies the cache. The decoders take turns. The script
prints and writes the medians.
"""

import argparse
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

import torch
from decoders import build
from transformers import PreTrainedModel

from modeling_xlm_swcm.training.arguments import has_fast_bf16
from modeling_xlm_swcm.training.files import write_json


DECODERS = ("prefix-tied", "prefix-masked")
ROUNDS, LENGTH, NEW_TOKENS = 15, 12, 24


def draw_tokens(model: PreTrainedModel, rows: int) -> torch.LongTensor:
    return torch.randint(4, model.config.vocab_size, (rows, LENGTH))


def train_step(model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> float:
    """Return the seconds of a training step."""
    model.train().set_attn_implementation("sdpa")
    source, labels = draw_tokens(model, 16), draw_tokens(model, 16)
    start = time.process_time()
    with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bf16()):
        loss = model(source, labels=labels).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.process_time() - start


def tokens_a_second(model: PreTrainedModel, rows: int) -> float:
    model.eval().set_attn_implementation("eager")
    source = draw_tokens(model, rows)
    start = time.process_time()
    model.generate(source, do_sample=False, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS)
    return rows * NEW_TOKENS / (time.process_time() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("encoder", help="Folder of an encoder.")
    parser.add_argument("output", type=Path, help="File for the medians.")
    args = parser.parse_args()
    torch.set_num_threads(1)
    models = {name: build(name, args.encoder, ["zh", "kk"], seed=0).model for name in DECODERS}
    # The rate is too small to change the weights much.
    optimizers = {name: torch.optim.AdamW(model.parameters(), lr=1e-9, fused=True) for name, model in models.items()}
    values = defaultdict(list)
    # The first round warms up.
    for _ in range(1 + ROUNDS):
        for name, model in models.items():
            values[name, "training_step_seconds"].append(train_step(model, optimizers[name]))
            for rows in (1, 16):
                values[name, f"tokens_per_second_batch_{rows}"].append(tokens_a_second(model, rows))
    results = defaultdict(dict)
    for (name, measured), numbers in values.items():
        results[name][measured] = median(numbers[1:])
        print(f"{name}: {measured} {results[name][measured]:.3f}")
    write_json(args.output, results)


if __name__ == "__main__":
    main()
