"""The whole way on a small case: an encoder is trained, converted, taught to translate names, and compared.

    python examples/demo.py [--base HUB_ID_OR_FOLDER]

Without `--base` a small XLM-R is trained first. Text: CLDR names (`cldr.py`), Chinese into Tibetan, Uyghur, Kazakh and
Mongolian. The same encoder gets a decoder made of its own weights and one with random weights; both are trained on the
same data in the same order with the same budget. Prints a table, and writes outputs, a loss plot and checkpoints.
"""

import json
import os
import random
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import matplotlib
import torch
from cldr import Pair, read_names, read_pairs, split_pairs
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from sacrebleu.metrics import CHRF
from train_encoder import train_tokenizer
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    HfArgumentParser,
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
    set_seed,
)
from transformers.utils import logging

from modeling_xlm_swcm import XLMSWCMTokenizer
from modeling_xlm_swcm.conversion import convert
from modeling_xlm_swcm.training.arguments import has_fast_bf16


matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402 - after the choice of backend


SOURCE = "zh"
TARGETS = {"bo": "Tibetan", "ug": "Uyghur", "kk": "Kazakh", "mn": "Mongolian"}
DECODERS = {"copied": None, "random": "random"}  # how each starts; None: as a conversion does by default


@dataclass
class DemoArguments:
    base: str | None = field(
        default=None, metadata={"help": "a real encoder instead of the small one: Hub id or folder"}
    )
    output_dir: Path = field(default=Path("outputs/demo"), metadata={"help": "where everything is written"})
    encoder_steps: int = field(default=600, metadata={"help": "masked-language-modelling steps of the small encoder"})
    steps: int = field(default=1000, metadata={"help": "fine-tuning steps of each model"})
    batch_size: int = field(default=64, metadata={"help": "names in a batch"})
    learning_rate: float | None = field(default=None, metadata={"help": "peak; by default 1e-3, with --base 1e-4"})
    seed: int = field(default=0, metadata={"help": "of split, weights and data order"})

    def __post_init__(self):
        if self.learning_rate is None:
            self.learning_rate = 1e-3 if self.base is None else 1e-4


class ProgressBar(ProgressCallback):
    """The Trainer's bar without a line for each logged step: the losses go into the plot."""

    def on_log(self, *args, **kwargs):
        pass


def training_arguments(args: DemoArguments, name: str, steps: int, **options) -> dict:
    return {
        "output_dir": str(args.output_dir / name),
        "per_device_train_batch_size": args.batch_size,
        "per_device_eval_batch_size": args.batch_size,
        "max_steps": steps,
        "learning_rate": args.learning_rate,
        "warmup_steps": steps // 10,
        "lr_scheduler_type": "linear",
        "bf16": has_fast_bf16(),
        "use_cpu": not torch.cuda.is_available(),
        "logging_steps": 20,
        "save_strategy": "no",
        "report_to": "none",
        "seed": args.seed,
        "disable_tqdm": name == "random",  # its twin, which runs beside it, has the progress bar
    } | options


def run_trainer(trainer: Trainer) -> list[dict]:
    for callback in (ProgressCallback, PrinterCallback):
        trainer.pop_callback(callback)
    if not trainer.args.disable_tqdm:
        trainer.add_callback(ProgressBar)
    trainer.train()
    return trainer.state.log_history


def train_encoder(args: DemoArguments, texts: list[str], folder: Path) -> list[dict]:
    """Train a small XLM-R on `texts` by masked language modelling and save it; its training log."""
    tokenizer = train_tokenizer(texts, vocab_size=2000, max_length=126)
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=128,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    )
    model = XLMRobertaForMaskedLM(config)
    trainer = Trainer(
        model,
        TrainingArguments(**training_arguments(args, "encoder", args.encoder_steps)),
        train_dataset=Dataset.from_dict(tokenizer(texts)),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3),
    )
    log = run_trainer(trainer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return log


def make_dataset(pairs: list[Pair], tokenizer: XLMSWCMTokenizer) -> Dataset:
    tokenizer.src_lang = SOURCE
    rows = []
    for pair in pairs:
        tokenizer.tgt_lang = pair.language
        row = dict(tokenizer(pair.source, text_target=pair.target, truncation=True))
        rows.append(row | {"length": len(row["input_ids"]) + len(row["labels"])})
    return Dataset.from_list(rows)


def finetune(args: DemoArguments, folder: Path, train: list[Pair], test: list[Pair]) -> list[dict]:
    """Teach the converted model in `folder` the training pairs, save it there; its training log."""
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    options = training_arguments(
        args,
        folder.name,
        args.steps,
        train_sampling_strategy="group_by_length",
        eval_strategy="steps",
        eval_steps=100,
    )
    trainer = Seq2SeqTrainer(
        model,
        Seq2SeqTrainingArguments(**options),
        train_dataset=make_dataset(train, tokenizer),
        eval_dataset=make_dataset(test, tokenizer),
        data_collator=DataCollatorForSeq2Seq(tokenizer, model),
    )
    log = run_trainer(trainer)
    tokenizer.tgt_lang = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return log


@torch.inference_mode()
def translate(model: PreTrainedModel, tokenizer: XLMSWCMTokenizer, texts: list[str], language: str) -> list[str]:
    tokenizer.src_lang = SOURCE
    outputs = []
    for start in range(0, len(texts), 64):
        inputs = tokenizer(texts[start : start + 64], padding=True, return_tensors="pt").to(model.device)
        generated = model.generate(
            **inputs, forced_bos_token_id=tokenizer.get_lang_id(language), max_new_tokens=48, num_beams=4
        )
        outputs += tokenizer.batch_decode(generated, skip_special_tokens=True)
    return outputs


def evaluate(folder: Path, test: list[Pair]) -> tuple[dict[str, float], dict[Pair, str]]:
    """chrF per language and over all, and what was written for each pair."""
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    written = {}
    for language in TARGETS:
        pairs = [pair for pair in test if pair.language == language]
        outputs = translate(model, tokenizer, [pair.source for pair in pairs], language)
        written |= dict(zip(pairs, outputs, strict=True))
    scores = {}
    for language in [*TARGETS, "all"]:
        pairs = [pair for pair in test if language in (pair.language, "all")]
        hypotheses, references = [written[pair] for pair in pairs], [pair.target for pair in pairs]
        scores[language] = CHRF().corpus_score(hypotheses, [references]).score
    return scores, written


def train_and_score(
    args: DemoArguments, encoder: str | Path, train: list[Pair], test: list[Pair], name: str
) -> tuple[str, list[dict], dict[str, float], dict[Pair, str]]:
    """Convert, fine-tune and evaluate: what was copied, the training log, the scores and the outputs."""
    prepare_process(args)
    folder, languages = args.output_dir / name, [SOURCE, *TARGETS]
    report = convert(encoder, folder, overwrite=True, languages=languages, decoder_init=DECODERS[name], seed=args.seed)
    log = finetune(args, folder, train, test)
    return f"{len(report.copied)} tensors copied from the encoder, {len(report.new)} new", log, *evaluate(folder, test)


def prepare_process(args: DemoArguments):
    logging.set_verbosity_error()
    set_seed(args.seed)
    if args.base is None:
        torch.set_num_threads(1)  # on a model this small, threads wait for each other more than they work


def plot_losses(logs: dict[str, list[dict]], path: Path):
    figure, (encoder, decoder) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, log in logs.items():
        axis = encoder if name == "encoder" else decoder
        training = [(entry["step"], entry["loss"]) for entry in log if "loss" in entry]
        (line,) = axis.plot(
            *zip(*training, strict=True), alpha=0.5 if name != "encoder" else 1, label=f"{name}, training"
        )
        held_out = [(entry["step"], entry["eval_loss"]) for entry in log if "eval_loss" in entry]
        if held_out:
            axis.plot(*zip(*held_out, strict=True), "o-", color=line.get_color(), label=f"{name}, held out")
    encoder.set(title="Encoder: masked language modelling", xlabel="step", ylabel="loss")
    decoder.set(title="Names from Chinese: fine-tuning", xlabel="step", ylabel="loss")
    for axis in (encoder, decoder):
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
        else:
            axis.text(0.5, 0.5, "given with --base", ha="center", transform=axis.transAxes)
    figure.savefig(path, dpi=120)


def print_results(console: Console, test: list[Pair], scores: dict[str, dict], written: dict[str, dict], seed: int):
    table = Table("language", "names", "copied decoder", "random decoder", title="chrF on held-out names")
    for language, name in (TARGETS | {"all": "all"}).items():
        count = sum(language in (pair.language, "all") for pair in test)
        table.add_row(name, str(count), f"{scores['copied'][language]:.1f}", f"{scores['random'][language]:.1f}")
    console.print(table)
    samples = Table("Chinese", "into", "reference", "copied decoder", title="Ten held-out names")
    for pair in random.Random(seed).sample(test, 10):
        samples.add_row(pair.source, TARGETS[pair.language], pair.target, written["copied"][pair])
    console.print(samples)


def main():
    (args,) = HfArgumentParser(DemoArguments).parse_args_into_dataclasses()
    start = time.time()
    console = Console()
    prepare_process(args)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    pairs = read_pairs(SOURCE, list(TARGETS))
    train, test = split_pairs(pairs, test_share=0.1, seed=args.seed)
    console.print(
        f"{len(train)} training pairs and {len(test)} held-out ones, Chinese into {', '.join(TARGETS.values())}."
    )

    logs, scores, written = {}, {}, {}
    encoder = args.base
    if encoder is None:
        console.rule("1. A small XLM-R")
        test_keys = {pair.key for pair in test}
        texts = sorted(
            {name for code in (SOURCE, *TARGETS) for key, name in read_names(code).items() if key not in test_keys}
            - {text for pair in test for text in (pair.source, pair.target)}
        )
        encoder = args.output_dir / "encoder"
        logs["encoder"] = train_encoder(args, texts, encoder)

    console.rule("2. The same encoder with a copied and with a random decoder")
    # threads that wait must not spin: on two cores that made steps ten times slower
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # small models one to a core; real ones one after the other, with all cores or the GPU
    with ProcessPoolExecutor(max_workers=2 if args.base is None else 1, mp_context=get_context("spawn")) as pool:
        run = partial(train_and_score, args, encoder, train, test)
        for name, result in zip(DECODERS, pool.map(run, DECODERS), strict=True):
            copied, logs[name], scores[name], written[name] = result
            console.print(f"{name} decoder: {copied}.")

    console.rule("3. Results")
    print_results(console, test, scores, written, args.seed)
    plot_losses(logs, args.output_dir / "loss.png")
    outputs = [
        {"key": list(pair.key), "language": pair.language, "source": pair.source, "reference": pair.target}
        | {name: texts[pair] for name, texts in written.items()}
        for pair in test
    ]
    results = {"chrF": scores, "seconds": round(time.time() - start), "outputs": outputs}
    (args.output_dir / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False), encoding="utf-8")
    console.print(
        f"Checkpoints (copied/, random/), loss.png and results.json are in {args.output_dir}/. "
        f"Took {time.time() - start:.0f} seconds."
    )


if __name__ == "__main__":
    main()
