"""Compare exported models with PyTorch and with an MBart of similar size in CTranslate2.

    python benchmarks/serving.py [--rounds 3] [--quick] [--checkpoint FOLDER --data DATA --languages zh bo]
    python benchmarks/serving.py --only exported-int8 prefix-tied-exported-int8 [--rounds 3] [--quick]
    python benchmarks/serving.py --memory 2000 [--quick]

CTranslate2 cannot run XLM-SWCM. The script measures tokens per second. The models have the size of XLM-R base, 250,002
tokens in the vocabulary and random weights. A source has 128 tokens, and the models generate 64 tokens. Each
measurement runs in a new process. The systems take turns. With a trained checkpoint the script also compares the
outputs for 200 lines of ntrex.tsv in DATA. It prints medians with their spread, and writes
outputs/benchmarks/serving.json. `--quick` is a trial run with small models, short texts and one round. `--memory`
prints only the memory of XLM-SWCM during calls of varied lengths.
"""

import argparse
import csv
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import openvino
import torch
import transformers
from ctranslate2.converters.transformers import MBartLoader
from measuring import describe_machine, summarise
from peers import DECODING, make_model, random_tokens
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from modeling_xlm_swcm import XLMSWCMTokenizer
from modeling_xlm_swcm.export import export
from modeling_xlm_swcm.export.xlm_swcm_runtime import ExportedModel
from modeling_xlm_swcm.training.files import write_json


FOLDER = Path("outputs/benchmarks")
SYSTEMS = {
    "XLM-SWCM, PyTorch, float32": "pytorch",
    "XLM-SWCM, exported, float32": "exported-none",
    "XLM-SWCM, exported, int8": "exported-int8",
    "XLM-SWCM, prefix-tied, exported, int8": "prefix-tied-exported-int8",
    "MBart, CTranslate2, float32": "ctranslate2-float32",
    "MBart, CTranslate2, int8": "ctranslate2-int8",
}
# baselines of the ratios
BASELINES = {"MBart, CTranslate2, int8": "MBart int8", "XLM-SWCM, exported, int8": "our int8"}
LINES, BATCH = 200, 8


def make_models(systems: dict[str, str], folder: Path, quick: bool):
    """Make the models of the systems, each in a new folder. Each model needs a new process, because it is large."""
    names = list(systems.values())
    for prefix in ("prefix-tied-", ""):
        own = [
            name.removeprefix(prefix) for name in names if name.startswith((f"{prefix}pytorch", f"{prefix}exported"))
        ]
        if own:
            run_task(make_exports, folder=str(folder), quick=quick, prefix=prefix, systems=own)
    if any(name.startswith("ctranslate2") for name in names):
        run_task(make_mbart, folder=str(folder), quick=quick)


def make_exports(folder: str, quick: bool, prefix: str, systems: list[str]):
    """Save an XLM-SWCM and its exports. Their folders start with `prefix`."""
    model = make_model(prefix.removesuffix("-") or "init", quick)
    # The model must never generate the end token.
    model.lm_head.bias.data[model.config.eos_token_id] = -1e4
    words = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    tokenizer = XLMSWCMTokenizer(
        tokenizer_object=Tokenizer(models.Unigram(words, unk_id=3)),
        **dict(bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"),
    )
    for part in (model, tokenizer):
        part.save_pretrained(f"{folder}/{prefix}pytorch")
    del model
    for quantize in ("none", "int8"):
        if (system := f"exported-{quantize}") in systems:
            export(f"{folder}/{prefix}pytorch", f"{folder}/{prefix}{system}", quantize=quantize)


def make_mbart(folder: str, quick: bool):
    """Save an MBart for CTranslate2."""
    model = make_model("MBart", quick)
    # The converter needs these fields of released MBart configs.
    model.config.normalize_before = model.config.normalize_embedding = True
    for quantization in ("float32", "int8"):
        spec = MBartLoader().get_model_spec(model)
        words = [*("<s>", "<pad>", "</s>", "<unk>"), *(f"t{index}" for index in range(4, model.config.vocab_size))]
        spec.register_source_vocabulary(words)
        spec.register_target_vocabulary(words)
        spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = "<s>", "</s>", "<unk>"
        spec.config.decoder_start_token = "<s>"
        spec.validate()
        spec.optimize(quantization=None if quantization == "float32" else quantization)
        output = Path(folder) / f"ctranslate2-{quantization}"
        output.mkdir()
        spec.save(str(output))


def load_generator(folder: Path) -> Callable[[torch.Tensor, int, int], int]:
    """
    Load a system as a function of sources, number of new tokens and number of beams.

    The function returns the number of tokens that were generated for each source.
    """
    if folder.name.endswith("pytorch"):
        model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()

        def generate(source, new, beams):
            options = dict(do_sample=False, num_beams=beams, max_new_tokens=new)
            with torch.inference_mode():
                return model.generate(source, attention_mask=torch.ones_like(source), **options).shape[1] - 1

    elif "exported" in folder.name:
        runtime = ExportedModel(folder)

        def generate(source, new, beams):
            return runtime.generate(source.numpy(), num_beams=beams, max_new_tokens=new).shape[1] - 1

    else:
        threads = dict(inter_threads=1, intra_threads=os.cpu_count())
        kind = folder.name.removeprefix("ctranslate2-")
        translator = ctranslate2.Translator(str(folder), compute_type=kind, **threads)

        def generate(source, new, beams):
            texts = [[f"t{token}" for token in row] for row in source.tolist()]
            lengths = dict(min_decoding_length=new, max_decoding_length=new)
            results = translator.translate_batch(texts, beam_size=beams, **lengths)
            return min(len(result.hypotheses[0]) for result in results)

    return generate


def decode(folder: str, quick: bool) -> dict:
    """Measure tokens per second for each setting, and the peak memory of the process."""
    generate = load_generator(Path(folder))
    length, new = (16, 4) if quick else (128, 64)
    result = {}
    for name, (batch, beams) in DECODING.items():
        source = random_tokens(batch, length)
        generate(source, 3, beams)
        start = time.perf_counter()
        assert generate(source, new, beams) == new
        result[name] = batch * new / (time.perf_counter() - start)
    return result | {"peak_gb": peak_gigabytes()}


def peak_gigabytes() -> float:
    """Return the peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def watch_memory(folder: str, calls: int) -> list[float]:
    """Return the peak memory in GB at the start, and after each eighth of calls of varied lengths."""
    generate, rng = load_generator(Path(folder)), np.random.default_rng(0)
    memory = [peak_gigabytes()]
    for number in range(1, calls + 1):
        source = random_tokens(int(rng.integers(1, 9)), int(rng.integers(4, 200)))
        generate(source, int(rng.integers(2, 12)), int(rng.choice([1, 4])))
        if number % -(-calls // 8) == 0 or number == calls:
            memory.append(peak_gigabytes())
    return memory


def print_memory(systems: dict[str, str], folder: Path, calls: int):
    """Print a table of the peak memory of each system during calls of varied lengths."""
    table = Table("", "peak GB at the start, and after each eighth", title=f"Memory during {calls} calls")
    for name, system in systems.items():
        memory = run_task(watch_memory, folder=str(folder / system), calls=calls)
        table.add_row(name, "  ".join(f"{gigabytes:.2f}" for gigabytes in memory))
    Console().print(table)


def compare_outputs(checkpoint: str, folder: str, data: str, languages: list[str]) -> dict:
    """Compare an export with PyTorch: count equal greedy lines, and equal next tokens after the same tokens."""
    model = AutoModelForSeq2SeqLM.from_pretrained(checkpoint).float().eval()
    source, target = languages
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, src_lang=source)
    options = {"forced_bos_token_id": tokenizer.get_lang_id(target), "max_new_tokens": 64, "num_beams": 1}
    # Transformers would warn at every call that max_length has no effect.
    model.generation_config.max_length = None
    with open(Path(data) / "ntrex.tsv", encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        texts = [row[source] for row in rows if row["split"] == "test"][:LINES]
    batches = [
        tokenizer(texts[start : start + BATCH], padding=True, truncation=True, return_tensors="pt")
        for start in range(0, len(texts), BATCH)
    ]
    with torch.inference_mode():
        expected = [model.generate(**batch, do_sample=False, **options).numpy() for batch in batches]
    result = {"lines": len(texts)}
    for quantize in ("none", "int8"):
        output = Path(folder) / quantize
        files = export(checkpoint, output, quantize=quantize)
        runtime = ExportedModel(output)
        lines, next_tokens = [], []
        for batch, written in zip(batches, expected, strict=True):
            input_ids = batch["input_ids"].numpy()
            lines += same_lines(runtime.generate(input_ids, **options), written)
            next_tokens += same_next_tokens(runtime, input_ids, written)
        result[quantize] = {
            "gigabytes": sum(files.values()) / 1e9,
            "same lines": sum(lines) / len(lines),
            "next tokens": len(next_tokens),
            "same next tokens": sum(next_tokens) / len(next_tokens),
        }
        shutil.rmtree(output)
    weights = Path(checkpoint).glob("model*.safetensors")
    return result | {"checkpoint": {"gigabytes": sum(path.stat().st_size for path in weights) / 1e9}}


def same_lines(written: np.ndarray, expected: np.ndarray) -> list[bool]:
    """Return which rows of token ids are equal, up to padding."""
    shape = (len(expected), max(written.shape[1], expected.shape[1]))
    first, second = np.ones(shape, int), np.ones(shape, int)
    first[:, : written.shape[1]], second[:, : expected.shape[1]] = written, expected
    return (first == second).all(axis=1).tolist()


def same_next_tokens(runtime: ExportedModel, input_ids: np.ndarray, expected: np.ndarray) -> list[bool]:
    """Return which next tokens equal the expected ones, given the expected tokens before, without start and tag."""
    runtime._searches.read(input_ids)
    same = []
    for place in range(expected.shape[1] - 1):
        _, top_tokens = runtime._searches.step(expected[:, place], place, np.arange(len(expected)), 1)
        following = expected[:, place + 1]
        if place > 0:
            same += (top_tokens[:, 0] == following)[following != runtime.config["pad_token_id"]].tolist()
    return same


def run_task(task: Callable, **arguments) -> Any:
    """Call a function of this file in a new process."""
    worker = [sys.executable, __file__, "--worker", json.dumps([task.__name__, arguments])]
    output = subprocess.run(worker, stdout=subprocess.PIPE, check=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def speeds_table(speeds: dict[str, dict], sizes: dict[str, float]) -> Table:
    """Return a table of tokens per second, sizes and memory."""
    table = Table("", "", title="Decoding, tokens per second")
    baselines = {name: title for name, title in BASELINES.items() if name in speeds}
    ratios = [f"/ {title}" for title in baselines.values()]
    for heading in ("median (spread)", *ratios, "files, GB", "peak GB"):
        table.add_column(heading, justify="right")
    for name, result in speeds.items():
        labels = [name, f"{sizes[name]:.2f}", f"{result['peak_gb'][0]:.2f}"]
        for column in DECODING:
            median, low, high = result[column]
            ratios = [f"{median / speeds[of][column][0]:.2f}" for of in baselines]
            spread = f" ({low:.1f}-{high:.1f})" if low < high else ""
            table.add_row(labels[0], column, f"{median:.1f}{spread}", *ratios, *labels[1:])
            labels = [""] * 3
    return table


def agreement_table(result: dict) -> Table:
    """Return a table of the outputs that equal PyTorch's."""
    title = f"Outputs for {result['lines']} lines of NTREX-128 that equal PyTorch in float32"
    table = Table("", "GB", "same greedy lines", "same next tokens", title=title)
    table.add_row("checkpoint", f"{result['checkpoint']['gigabytes']:.3f}")
    for quantize in ("none", "int8"):
        row = result[quantize]
        shares = (f"{row[name]:.2%}" for name in ("same lines", "same next tokens"))
        table.add_row(f"exported, {quantize}", f"{row['gigabytes']:.3f}", *shares)
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", nargs="+", choices=SYSTEMS.values(), default=list(SYSTEMS.values()), help="Systems. Default: all."
    )
    parser.add_argument("--rounds", type=int, default=3, help="Number of rounds. Default: 3.")
    parser.add_argument("--quick", action="store_true", help="Use small models and one round.")
    parser.add_argument("--memory", type=int, metavar="CALLS", help="Print the memory during this number of calls.")
    parser.add_argument("--checkpoint", help="Folder of a trained XLM-SWCM, to compare outputs.")
    parser.add_argument("--data", help="Folder with ntrex.tsv (columns split and one per language).")
    parser.add_argument(
        "--languages",
        nargs=2,
        default=["zh", "bo"],
        help="Source and target language of --checkpoint. Default: zh bo.",
    )
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        task, arguments = args.worker
        return print(json.dumps(globals()[task](**arguments)))
    if bool(args.checkpoint) != bool(args.data):
        parser.error("--checkpoint and --data need each other. Pass both.")

    systems = {name: system for name, system in SYSTEMS.items() if system in args.only}
    folder = FOLDER / "serving"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if args.memory:
        systems = {name: system for name, system in systems.items() if name.startswith("XLM-SWCM")}
        make_models(systems, folder, args.quick)
        return print_memory(systems, folder, args.memory)
    make_models(systems, folder, args.quick)
    sizes = {
        name: sum(file.stat().st_size for file in (folder / system).iterdir()) / 1e9
        for name, system in systems.items()
    }
    runs = {name: [] for name in systems}
    for _ in range(1 if args.quick else args.rounds):
        for name, system in systems.items():
            runs[name].append(run_task(decode, folder=str(folder / system), quick=args.quick))
    speeds = {name: summarise(measured) for name, measured in runs.items()}
    agreement = None
    if args.checkpoint:
        arguments = dict(checkpoint=args.checkpoint, data=args.data, languages=args.languages)
        agreement = run_task(compare_outputs, folder=str(folder), **arguments)
    shutil.rmtree(folder)
    write_report(speeds, sizes, agreement, FOLDER / f"serving{'_quick' if args.quick else ''}.json")


def write_report(speeds: dict, sizes: dict[str, float], agreement: dict | None, path: Path):
    """Print the tables, and write all figures as JSON."""
    console = Console(width=119)
    console.print(speeds_table(speeds, sizes))
    if agreement is not None:
        console.print(agreement_table(agreement))
    results = {
        "date": date.today().isoformat(),
        "machine": describe_machine(),
        "versions": {module.__name__: module.__version__ for module in (ctranslate2, openvino, torch, transformers)},
        "median, smallest and largest": speeds,
        "gigabytes": sizes,
        "agreement": agreement,
    }
    write_json(path, results)


if __name__ == "__main__":
    main()
