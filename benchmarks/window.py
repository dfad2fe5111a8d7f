"""Compare two masks of the self-attention in the paper's decoder for ModernBERT: a window, and full attention.

    python benchmarks/window.py DATA --tokenizer FOLDER

A small ModernBERT is trained by masked language modelling on Kazakh text. Its local layers read 16 tokens on each
side. It is converted with `--decoder paper`, and learns to denoise texts of 127 tokens. With a window, the copy of a
local layer reads the target token itself and 16 tokens before it. With full attention, it reads all tokens before it.
DATA has `mono/kk.*.txt`. The script prints the development loss by seed, and writes outputs/benchmarks/window.json.
"""

import argparse
import itertools
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from unittest import mock

import torch
from measuring import describe_machine
from transformers import AutoTokenizer, DataCollatorForLanguageModeling, ModernBertConfig, ModernBertForMaskedLM

from modeling_xlm_swcm import XLMSWCMModernForConditionalGeneration
from modeling_xlm_swcm.conversion import from_encoder
from modeling_xlm_swcm.modern_xlm_swcm import XLMSWCMModernDecoder
from modeling_xlm_swcm.training.denoising import DataCollatorForDenoising
from modeling_xlm_swcm.training.files import write_json
from modeling_xlm_swcm.vocabulary import trim


FOLDER = Path("outputs/benchmarks/window")
SIZES = dict(hidden_size=96, num_hidden_layers=6, num_attention_heads=4, intermediate_size=192)
VOCABULARY, LENGTH, WINDOW, BATCH = 3_000, 128, 16, 8
ENCODER_STEPS, STEPS, EVAL_STEPS, SEEDS = 1_500, 300, 50, (0, 1)
make_masks = XLMSWCMModernDecoder._make_masks


def make_full_masks(*args):
    """Return the masks of the decoder without a window."""
    masks, cross_attention_mask = make_masks(*args)
    full, _ = masks["full_attention"]
    return {kind: (full, rotation) for kind, (_, rotation) in masks.items()}, cross_attention_mask


def make_untrained_encoder(data: Path, tokenizer_folder: Path) -> Path:
    """Write a small ModernBERT whose vocabulary is trimmed to Kazakh, and return its folder."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    ids |= {"cls_token_id": ids["bos_token_id"], "sep_token_id": ids["eos_token_id"]}
    sizes = SIZES | {"vocab_size": len(tokenizer), "max_position_embeddings": LENGTH}
    config = ModernBertConfig(**sizes, **ids, local_attention=2 * WINDOW)
    ModernBertForMaskedLM(config).save_pretrained(FOLDER / "untrained")
    tokenizer.save_pretrained(FOLDER / "untrained")
    corpus = [f"kk={path}" for path in sorted((data / "mono").glob("kk.*.txt"))]
    trim(FOLDER / "untrained", FOLDER / "trimmed", corpus=corpus, size=VOCABULARY, overwrite=True)
    return FOLDER / "trimmed"


def read_blocks(data: Path, tokenizer) -> list[list[int]]:
    """Return the text as blocks of ids of the same length."""
    lines = [
        line for path in sorted((data / "mono").glob("kk.*.txt")) for line in path.read_text("utf-8").splitlines()
    ]
    ids = [token for line in tokenizer(lines, add_special_tokens=False)["input_ids"] for token in line]
    size = LENGTH - 2
    start, end = [tokenizer.bos_token_id], [tokenizer.eos_token_id]
    return [start + ids[place : place + size] + end for place in range(0, len(ids) - size, size)]


def shuffle(blocks: list[list[int]], steps: int, seed: int) -> Iterator[list[dict]]:
    """Yield random batches."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(len(blocks), (BATCH,), generator=generator)
        yield [{"input_ids": blocks[index]} for index in chosen]


def train(model: torch.nn.Module, batches: Iterator[dict], steps: int, learning_rate: float) -> Iterator[int]:
    """Train a model, and yield the number of steps so far."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    for step, batch in enumerate(batches, 1):
        model.train()(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        yield step


@torch.inference_mode()
def measure_loss(model: XLMSWCMModernForConditionalGeneration, batches: list[dict]) -> float:
    """Return the mean development loss in nats per token."""
    return sum(model.eval()(**batch).loss.item() for batch in batches) / len(batches)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="Folder with mono/.")
    parser.add_argument("--tokenizer", type=Path, required=True, help="Folder with XLM-R's tokenizer.")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder, start = make_untrained_encoder(args.data, args.tokenizer), time.perf_counter()
    tokenizer, encoder = AutoTokenizer.from_pretrained(folder), ModernBertForMaskedLM.from_pretrained(folder)
    blocks = read_blocks(args.data, tokenizer)
    held_out, blocks = blocks[:64], blocks[64:]
    mask, noise = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3), DataCollatorForDenoising(tokenizer)
    for step in train(encoder, map(mask, shuffle(blocks, ENCODER_STEPS, 0)), ENCODER_STEPS, 2e-3):
        if step % 100 == 0:
            print(f"encoder: step {step}, {time.perf_counter() - start:.0f} s", flush=True)
    development = [noise([{"input_ids": ids} for ids in held_out[place : place + BATCH]]) for place in range(0, 64, 8)]
    results = {}
    for seed, has_window in itertools.product(SEEDS, (True, False)):
        model, _ = from_encoder(encoder, tokenizer=tokenizer, decoder="paper", normal_layers="none", seed=seed)
        masks = make_masks if has_window else make_full_masks
        with mock.patch.object(XLMSWCMModernDecoder, "_make_masks", masks):
            curve = {0: measure_loss(model, development)}
            for step in train(model, map(noise, shuffle(blocks, STEPS, seed)), STEPS, 1e-3):
                if step % EVAL_STEPS == 0:
                    curve[step] = measure_loss(model, development)
        name = f"{'window' if has_window else 'full'}, seed {seed}"
        results[name] = curve
        print(name, {step: round(loss, 3) for step, loss in curve.items()}, flush=True)
    settings = {"sizes": SIZES, "encoder_steps": ENCODER_STEPS, "steps": STEPS, "window": WINDOW, "length": LENGTH}
    machine = {"machine": describe_machine(), "date": date.today().isoformat()}
    write_json(FOLDER.with_suffix(".json"), {"settings": settings | machine, "development_loss": results})


if __name__ == "__main__":
    main()
