"""Compare models with and without an extended vocabulary, and two initialisations of the new embeddings.

    python benchmarks/vocabulary_learning.py DATA --tokenizer FOLDER [--work outputs/vocabulary_learning]

A small XLM-R is trained by masked language modelling on Uyghur, Kazakh, Mongolian, Chinese and English. It is extended
with Tibetan tokens or not, converted, and trained on Tibetan denoising and Chinese - Tibetan translation. Each variant
has the same number of steps and three seeds. DATA has `ntrex.tsv` (columns split, bo, ug, kk, mn, zh, en) and
`mono/LANGUAGE.*.txt`. Finished stages are not repeated. The script writes `results.json`, `results.md` and
`results.png`.
"""

import argparse
import csv
import itertools
import math
import os
import platform
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import torch
import yaml
from datasets import Dataset
from sacrebleu.metrics import CHRF
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)

from modeling_xlm_swcm import XLMSWCMTokenizer
from modeling_xlm_swcm.checkpoints.plots import make_figure, save_figure
from modeling_xlm_swcm.checkpoints.reading import read_json
from modeling_xlm_swcm.conversion import convert
from modeling_xlm_swcm.training.files import write_json, write_whole
from modeling_xlm_swcm.vocabulary import extend, trim


LANGUAGES = ("ug", "kk", "mn", "zh", "en")
SEEDS = (0, 1, 2)
# tokens of the trimmed vocabulary, and tokens to add
ENCODER_SIZE, NEW_TOKENS = 16_000, 4_000
ENCODER_STEPS, STEPS = 3_000, 600
WAYS = {
    "not extended": None,
    "random rows": "random",
    "mean of pieces": "mean-of-pieces",
}


def write_texts(data: Path, folder: Path):
    """Write the training text of each language, and the Chinese - Tibetan pairs of each split."""
    folder.mkdir(parents=True, exist_ok=True)
    with (data / "ntrex.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    for language in (*LANGUAGES, "bo"):
        lines = [row[language] for row in rows if row["split"] == "train"]
        for path in sorted((data / "mono").glob(f"{language}.*.txt")):
            lines += path.read_text(encoding="utf-8").splitlines()
        write_nonempty_lines(folder / f"{language}.txt", lines)
    for split in ("train", "dev", "test"):
        pairs = [f"{row['zh']}\t{row['bo']}" for row in rows if row["split"] == split]
        write_nonempty_lines(folder / f"{split}.tsv", ["zh\tbo", *pairs])


def write_nonempty_lines(path: Path, lines: list[str]):
    """Write the lines that hold text."""
    path.write_text("".join(line.strip() + "\n" for line in lines if line.strip()), encoding="utf-8")


def read_table_pairs(path: Path) -> list[tuple[str, str]]:
    """Return the pairs of a table with a header."""
    return [tuple(line.split("\t")) for line in path.read_text(encoding="utf-8").splitlines()[1:]]


def train_trimmed_encoder(tokenizer_folder: Path, texts: Path, work: Path):
    """Trim XLM-R's vocabulary to five languages, and train a small encoder with it."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=768,
        max_position_embeddings=130,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    )
    torch.manual_seed(0)
    XLMRobertaForMaskedLM(config).save_pretrained(work / "untrained")
    tokenizer.save_pretrained(work / "untrained")
    trim(work / "untrained", work / "trimmed", corpus=[f"{texts}/{code}.txt" for code in LANGUAGES], size=ENCODER_SIZE)

    tokenizer = AutoTokenizer.from_pretrained(work / "trimmed")
    lines = [line for code in LANGUAGES for line in (texts / f"{code}.txt").read_text(encoding="utf-8").splitlines()]
    rows = Dataset.from_dict(dict(tokenizer(lines, truncation=True, max_length=64)))
    training = TrainingArguments(
        output_dir=str(work / "encoder-run"),
        max_steps=ENCODER_STEPS,
        per_device_train_batch_size=64,
        learning_rate=1e-3,
        warmup_steps=ENCODER_STEPS // 20,
        train_sampling_strategy="group_by_length",
        bf16=True,
        use_cpu=True,
        logging_steps=50,
        save_strategy="no",
        report_to="none",
    )
    model = XLMRobertaForMaskedLM.from_pretrained(work / "trimmed")
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    trainer = Trainer(model, training, train_dataset=rows, data_collator=collator)
    trainer.train()
    write_json(work / "encoder_log.json", trainer.state.log_history)
    model.save_pretrained(work / "encoder")
    tokenizer.save_pretrained(work / "encoder")


def train_model(way: str, seed: int, texts: Path, work: Path):
    """Extend, convert, and train with `examples/pretrain.py`."""
    folder = work / way.replace(" ", "-") / str(seed)
    if (folder / "trained" / "metrics.json").exists():
        return
    encoder = work / "encoder"
    if WAYS[way] is not None:
        encoder = folder / "extended"
        corpus, init = [f"{texts}/bo.txt"], WAYS[way]
        extend(work / "encoder", encoder, corpus=corpus, size=NEW_TOKENS, init=init, seed=seed, overwrite=True)
    convert(
        encoder,
        folder / "model",
        languages=["zh", "bo"],
        decoder="paper",
        seed=seed,
        license="mit",
        overwrite=True,
    )
    corpora = {
        "train": [
            {"path": str(texts / "bo.txt"), "language": "bo"},
            {"path": str(texts / "train.tsv"), "languages": ["zh", "bo"], "weight": 3.0},
        ],
        "validation": [{"path": str(texts / "dev.tsv"), "languages": ["zh", "bo"]}],
    }
    (folder / "corpora.yaml").write_text(yaml.safe_dump(corpora, allow_unicode=True), encoding="utf-8")
    options = {
        "model_name_or_path": folder / "model",
        "data": folder / "corpora.yaml",
        "output_dir": folder / "trained",
        "max_steps": STEPS,
        "max_length": 96,
        "per_device_train_batch_size": 16,
        # Some pairs are longer than max_length.
        "skip_bad_rows": True,
        "eval_steps": 100,
        "save_steps": STEPS,
        "bf16": True,
        "seed": seed,
    }
    command = [sys.executable, "examples/pretrain.py", "examples/presets/cpu_small.yaml"]
    command += [f"--{name}={value}" for name, value in options.items()]
    with (folder / "log.txt").open("w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log)


@torch.inference_mode()
def score_model(folder: Path, texts: Path) -> dict[str, float]:
    """Return chrF on the test lines, and the loss per character of the references on the development lines."""
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    tokenizer.src_lang, tokenizer.tgt_lang = "zh", "bo"
    losses = measure_loss(model, tokenizer, read_table_pairs(texts / "dev.tsv"))
    hypotheses, references = [], []
    pairs = sorted(read_table_pairs(texts / "test.tsv"), key=lambda pair: len(pair[0]))
    for start in range(0, len(pairs), 32):
        sources, targets = zip(*pairs[start : start + 32], strict=True)
        inputs = tokenizer(list(sources), padding=True, truncation=True, max_length=126, return_tensors="pt")
        generated = model.generate(**inputs, forced_bos_token_id=tokenizer.get_lang_id("bo"), max_new_tokens=100)
        hypotheses += tokenizer.batch_decode(generated, skip_special_tokens=True)
        references += targets
    write_whole(folder / "test.txt", "\n".join(hypotheses) + "\n")
    return {"chrF": CHRF().corpus_score(hypotheses, [references]).score, **losses}


def measure_loss(model: PreTrainedModel, tokenizer: XLMSWCMTokenizer, pairs: list[tuple[str, str]]) -> dict:
    """Return the loss per character of the references, and the share of `<unk>` in them."""
    nats = characters = unknown = tokens = 0
    collator = DataCollatorForSeq2Seq(tokenizer, model)
    for start in range(0, len(pairs), 32):
        sources, targets = zip(*pairs[start : start + 32], strict=True)
        rows = [
            dict(tokenizer(s, text_target=t, truncation=True, max_length=126))
            for s, t in zip(sources, targets, strict=True)
        ]
        batch = collator(rows)
        counted = (batch["labels"] != -100).sum().item()
        nats += model(**batch).loss.item() * counted
        unknown += (batch["labels"] == tokenizer.unk_token_id).sum().item()
        tokens += counted
        characters += sum(map(len, targets))
    return {
        "loss per character": nats / characters,
        "bits per character": nats / characters / math.log(2),
        "unknown": unknown / tokens,
    }


def collect(work: Path) -> dict[str, list[dict]]:
    """Return the scores of every run, with its development losses by step."""
    results = {}
    for way in WAYS:
        results[way] = []
        for seed in SEEDS:
            folder = work / way.replace(" ", "-") / str(seed) / "trained"
            state = read_json(folder / f"checkpoint-{STEPS}" / "trainer_state.json")
            curve = [(entry["step"], entry["eval_loss"]) for entry in state["log_history"] if "eval_loss" in entry]
            results[way].append({"seed": seed, **read_json(folder / "scores.json"), "curve": curve})
    return results


def make_table(results: dict[str, list[dict]]) -> str:
    """Return a Markdown table of mean and spread over the seeds."""
    columns = ("chrF", "bits per character", "unknown")
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for way, runs in results.items():
        cells = []
        for column in columns:
            values = [run[column] for run in runs]
            digits = 1 if column == "chrF" else 3
            cells.append(f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}")
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot_results(results: dict[str, list[dict]], path: Path):
    """Plot the development loss per character, for variants without `<unk>` in the references, and chrF."""
    figure, axes = make_figure(1, 2, size=(10, 4))
    losses, scores = axes[0]
    for number, (way, runs) in enumerate(results.items()):
        colour = f"C{number}"
        scores.scatter([number] * len(runs), [run["chrF"] for run in runs], color=colour)
        if max(run["unknown"] for run in runs) > 0.01:
            continue
        for run in runs:
            per_character = run["loss per character"] / run["curve"][-1][1]
            steps, values = zip(*run["curve"], strict=True)
            label = way if run["seed"] == 0 else None
            losses.plot(steps, [value * per_character for value in values], color=colour, label=label)
    losses.set(xlabel="step", ylabel="nats per character", title="Chinese to Tibetan, development lines")
    losses.legend()
    scores.set(xticks=range(len(results)), xticklabels=results, ylabel="chrF", title="test lines, a dot for each seed")
    for axis in (losses, scores):
        axis.grid(alpha=0.3)
    save_figure(figure, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="Folder with ntrex.tsv and mono/.")
    parser.add_argument("--tokenizer", type=Path, required=True, help="Folder with XLM-R's tokenizer.")
    parser.add_argument(
        "--work", type=Path, default=Path("outputs/vocabulary_learning"), help="Folder for all output."
    )
    parser.add_argument(
        "--jobs", type=int, default=2, help="Number of runs at a time, with one core each. Default: 2."
    )
    args = parser.parse_args()
    texts = args.work / "texts"
    # A model this small is slower with several threads.
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    if not (texts / "test.tsv").exists():
        write_texts(args.data, texts)
    if not (args.work / "encoder" / "model.safetensors").exists():
        train_trimmed_encoder(args.tokenizer, texts, args.work)
    with ThreadPoolExecutor(args.jobs) as pool:
        # With seeds in the outer loop, a run that is stopped leaves comparable results.
        list(
            pool.map(lambda run: train_model(*run, texts, args.work), [(way, seed) for seed in SEEDS for way in WAYS])
        )
    for way, seed in itertools.product(WAYS, SEEDS):
        folder = args.work / way.replace(" ", "-") / str(seed) / "trained"
        if not (folder / "scores.json").exists():
            write_json(folder / "scores.json", score_model(folder, texts))
    results = collect(args.work)
    table = make_table(results)
    plot_results(results, args.work / "results.png")
    write_whole(args.work / "results.md", table)
    machine = {"cpu": platform.processor() or platform.machine(), "date": date.today().isoformat()}
    settings = {"encoder_steps": ENCODER_STEPS, "steps": STEPS, "new_pieces": NEW_TOKENS, "machine": machine}
    write_json(args.work / "results.json", {"settings": settings, "runs": results})
    print(table)


if __name__ == "__main__":
    main()
