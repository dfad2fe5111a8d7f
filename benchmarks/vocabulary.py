"""Measure `xlm-swcm vocab` on real text, and on size and speed of a model of the size of XLM-R base.

    python benchmarks/vocabulary.py DATA --tokenizer FOLDER [--rounds 3]

DATA has `ntrex.tsv` (columns bo, ug, kk, mn, zh, en, one sentence per line) and `mono/LANGUAGE.*.txt`. FOLDER has
XLM-R's tokenizer. The script learns Tibetan tokens from `mono` and measures them on ntrex. It trims the vocabulary to
the other five languages of `mono`. It compares encoder and converted model before and after. Both have random weights.
Each decoding runs in a new process. The models take turns. The script writes outputs/benchmarks/vocabulary.json.
"""

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, XLMRobertaConfig, XLMRobertaForMaskedLM

import modeling_xlm_swcm
from modeling_xlm_swcm.conversion import convert
from modeling_xlm_swcm.training.files import write_json
from modeling_xlm_swcm.vocabulary import extend, trim


FOLDER = Path("outputs/benchmarks/vocabulary")
LANGUAGES = ("ug", "kk", "mn", "zh", "en")
BATCH_SIZE, SOURCE_LENGTH, NEW_TOKENS = 8, 128, 64
DECODE = f"""
import json, sys, time, torch
from modeling_xlm_swcm import XLMSWCMForConditionalGeneration
model = XLMSWCMForConditionalGeneration.from_pretrained(sys.argv[1]).eval()
generator = torch.Generator().manual_seed(0)
source = torch.randint(4, 10000, ({BATCH_SIZE}, {SOURCE_LENGTH}), generator=generator)
options = dict(do_sample=False, num_beams=1, min_new_tokens={NEW_TOKENS}, max_new_tokens={NEW_TOKENS})
model.generate(source, **options | dict(min_new_tokens=4, max_new_tokens=4))
start = time.perf_counter()
model.generate(source, **options)
seconds = time.perf_counter() - start
# getrusage would return the peak of the parent process if this peak is higher.
status = open("/proc/self/status").read()
peak = int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9
print(json.dumps([{BATCH_SIZE * NEW_TOKENS} / seconds, peak]))
"""


def make_encoder(folder: Path, tokenizer_folder: Path):
    """Save an XLM-R base with random weights."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5
    )
    XLMRobertaForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_sentences(data: Path) -> dict[str, Path]:
    """Write the sentences of ntrex to a file for each language, and return the files."""
    with (data / "ntrex.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    paths = {language: FOLDER / f"{language}.ntrex.txt" for language in ("bo", *LANGUAGES)}
    for language, path in paths.items():
        path.write_text("".join(row[language] + "\n" for row in rows), encoding="utf-8")
    return paths


def size_in_gigabytes(folder: Path) -> float:
    """Return the size of the weights."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e9


def count_changed_texts(before: Path, after: Path, paths: dict[str, Path]) -> int:
    """Count the lines that the second tokenizer decodes differently from the first."""
    first, second = AutoTokenizer.from_pretrained(before), AutoTokenizer.from_pretrained(after)
    changed = 0
    for language in LANGUAGES:
        lines = paths[language].read_text(encoding="utf-8").splitlines()
        texts = (
            tokenizer.batch_decode(tokenizer(lines, add_special_tokens=False)["input_ids"])
            for tokenizer in (first, second)
        )
        changed += sum(old != new for old, new in zip(*texts, strict=True))
    return changed


@torch.inference_mode()
def largest_difference(before: Path, after: Path, paths: dict[str, Path], lines_each: int = 8) -> tuple[int, float]:
    """Compare the logits of kept ids for lines with equal segmentation. Return their number and the difference."""
    id_map = {int(old): new for old, new in json.loads((after / "id_map.json").read_text()).items()}
    old_ids, new_ids = torch.tensor(list(id_map.items())).T
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (before, after)]
    models = [XLMRobertaForMaskedLM.from_pretrained(folder).eval() for folder in (before, after)]
    compared, difference = 0, 0.0
    for language in LANGUAGES:
        found = 0
        for line in paths[language].read_text(encoding="utf-8").splitlines():
            old, new = (tokenizer(line, return_tensors="pt")["input_ids"] for tokenizer in tokenizers)
            if found == lines_each or [id_map.get(token) for token in old[0].tolist()] != new[0].tolist():
                continue
            logits = models[0](old).logits[..., old_ids], models[1](new).logits[..., new_ids]
            difference = max(difference, (logits[0] - logits[1]).abs().max().item())
            found, compared = found + 1, compared + 1
    return compared, difference


def decode(folder: Path) -> tuple[float, float]:
    """Measure tokens per second of greedy decoding, and peak resident gigabytes of the process."""
    run = subprocess.run([sys.executable, "-c", DECODE, str(folder)], capture_output=True, text=True, check=True)
    return tuple(json.loads(run.stdout.splitlines()[-1]))


def change_vocabulary(data: Path, paths: dict[str, Path], full: Path, trimmed: Path, console: Console) -> dict:
    """Extend and trim the vocabulary of `full`, print both reports, and return their figures."""
    monolingual = {language: sorted(map(str, (data / "mono").glob(f"{language}.*.txt"))) for language in paths}
    measured = [str(path) for path in paths.values()]
    start = time.perf_counter()
    extended = extend(full, FOLDER / "extended", corpus=monolingual["bo"], size=8000, evaluate=measured, dry_run=True)
    seconds = {"extend": time.perf_counter() - start}
    start = time.perf_counter()
    corpus = [file for language in LANGUAGES for file in monolingual[language]]
    report = trim(full, trimmed, corpus=corpus, evaluate=measured[1:], overwrite=True)
    seconds["trim"] = time.perf_counter() - start
    extended.print(console)
    report.print(console)
    return {
        "seconds": seconds,
        "extend": json.loads(extended.to_json())["languages"],
        "trim": json.loads(report.to_json())["languages"],
    }


def measure_models(folders: list[Path], rounds: int) -> dict[str, dict]:
    """Convert the encoders, decode with the models in turns, and return sizes and speeds."""
    for folder in folders:
        convert(folder, FOLDER / f"{folder.name}-model", languages=LANGUAGES, decoder="paper", overwrite=True)
    runs = {folder.name: [] for folder in folders}
    for _ in range(rounds):
        for name in runs:
            runs[name].append(decode(FOLDER / f"{name}-model"))
    results = {}
    for name, measures in runs.items():
        config = modeling_xlm_swcm.XLMSWCMConfig.from_pretrained(FOLDER / f"{name}-model")
        with torch.device("meta"):
            parameters = modeling_xlm_swcm.XLMSWCMForConditionalGeneration(config).num_parameters()
        speeds, peaks = zip(*measures, strict=True)
        results[name] = {
            "vocab_size": config.vocab_size,
            "parameters": parameters,
            "encoder_gigabytes": size_in_gigabytes(FOLDER / name),
            "model_gigabytes": size_in_gigabytes(FOLDER / f"{name}-model"),
            "tokens_per_second": statistics.median(speeds),
            "spread": max(speeds) - min(speeds),
            "peak_gigabytes": statistics.median(peaks),
        }
    return results


def models_table(results: dict[str, dict]) -> Table:
    """Return a table of sizes and speeds."""
    table = Table("", "vocabulary", "parameters", "encoder GB", "model GB", "tokens/s (spread)", "peak GB")
    for name, result in results.items():
        cells = list(result.values())
        table.add_row(
            name,
            f"{cells[0]:,}",
            f"{cells[1] / 1e6:.0f} M",
            *(f"{cell:.2f}" for cell in cells[2:4]),
            f"{cells[4]:.1f} ({cells[5]:.1f})",
            f"{cells[6]:.2f}",
        )
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="Folder with ntrex.tsv and mono/.")
    parser.add_argument("--tokenizer", type=Path, required=True, help="Folder with XLM-R's tokenizer.")
    parser.add_argument("--rounds", type=int, default=3, help="Number of rounds. Default: 3.")
    args = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    console = Console()
    paths = write_sentences(args.data)
    full, trimmed = FOLDER / "full", FOLDER / "trimmed"
    make_encoder(full, args.tokenizer)
    changes = change_vocabulary(args.data, paths, full, trimmed, console)
    results = measure_models([full, trimmed], args.rounds)
    console.print(models_table(results))
    changed = count_changed_texts(full, trimmed, paths)
    compared, difference = largest_difference(full, trimmed, paths)
    seconds = changes["seconds"]
    console.print(
        f"{changed} lines decode differently. Logits of {compared} lines with equal segmentation differ by at most "
        f"{difference:g}. Extending took {seconds['extend']:.0f} s, trimming {seconds['trim']:.0f} s."
    )
    results |= changes
    results |= {"changed_texts": changed, "logits": {"lines": compared, "largest_difference": difference}}
    results["machine"] = {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    path = FOLDER.parent / "vocabulary.json"
    write_json(path, results)
    console.print(f"Written to {path}.")


if __name__ == "__main__":
    main()
