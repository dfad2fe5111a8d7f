"""Run the whole method on a small case: train an encoder, convert it, fine-tune it to translate names, and compare.

    python examples/demo.py [--base HUB_ID_OR_FOLDER]

Without `--base` a small XLM-R is trained first. The text is names from CLDR, Chinese into Tibetan, Uyghur, Kazakh and
Mongolian. The same encoder gets a decoder that is copied from its weights, and a random decoder. Both models are
trained on the same data in the same order with the same budget. The script prints a table, and writes outputs, a loss
plot and checkpoints.
"""

import os
import random
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from cldr import NamePair, read_name_pairs, read_names, split_pairs
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from sacrebleu.metrics import CHRF
from small_tokenizer import train_tokenizer
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
from modeling_xlm_swcm.checkpoints.plots import make_figure, save_figure
from modeling_xlm_swcm.conversion import convert
from modeling_xlm_swcm.training.arguments import has_fast_bf16
from modeling_xlm_swcm.training.files import write_json


SOURCE = "zh"
TARGETS = {"bo": "Tibetan", "ug": "Uyghur", "kk": "Kazakh", "mn": "Mongolian"}
# `decoder_init` of each model, where None is the default of the conversion
DECODERS = {"copied": None, "random": "random"}


@dataclass
class DemoArguments:
    base: str | None = field(
        default=None, metadata={"help": "Encoder to start from: a folder or Hub id. Default: train a small one."}
    )
    output_dir: Path = field(default=Path("outputs/demo"), metadata={"help": "Folder for all output."})
    encoder_steps: int = field(default=600, metadata={"help": "Training steps of the small encoder."})
    steps: int = field(default=1000, metadata={"help": "Fine-tuning steps of each model."})
    batch_size: int = field(default=64, metadata={"help": "Names per batch."})
    learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate. Default: 1e-3, or 1e-4 with --base."}
    )
    seed: int = field(default=0, metadata={"help": "Random seed of data split, weights and data order."})

    def __post_init__(self):
        if self.learning_rate is None:
            self.learning_rate = 1e-3 if self.base is None else 1e-4


class ProgressBar(ProgressCallback):
    """A progress bar without a line for each logged step. The losses go into the plot."""

    def on_log(self, *args, **kwargs):
        pass


def training_options(args: DemoArguments, name: str, steps: int, **options) -> dict:
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
        # The copied model runs at the same time and shows the progress bar.
        "disable_tqdm": name == "random",
    } | options


def run_trainer(trainer: Trainer) -> list[dict]:
    """Train, and return the training log."""
    for callback in (ProgressCallback, PrinterCallback):
        trainer.pop_callback(callback)
    if not trainer.args.disable_tqdm:
        trainer.add_callback(ProgressBar)
    trainer.train()
    return trainer.state.log_history


def train_small_encoder(args: DemoArguments, texts: list[str], folder: Path) -> list[dict]:
    """Train a small XLM-R on `texts` by masked language modelling, save it, and return the training log."""
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
        TrainingArguments(**training_options(args, "encoder", args.encoder_steps)),
        train_dataset=Dataset.from_dict(tokenizer(texts)),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3),
    )
    log = run_trainer(trainer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return log


def make_dataset(pairs: list[NamePair], tokenizer: XLMSWCMTokenizer) -> Dataset:
    """Encode pairs with the tags of their languages."""
    tokenizer.src_lang = SOURCE
    rows = []
    for pair in pairs:
        tokenizer.tgt_lang = pair.language
        row = dict(tokenizer(pair.source, text_target=pair.target, truncation=True))
        rows.append(row | {"length": len(row["input_ids"]) + len(row["labels"])})
    return Dataset.from_list(rows)


def finetune_on_names(args: DemoArguments, folder: Path, train: list[NamePair], test: list[NamePair]) -> list[dict]:
    """Fine-tune the converted model in `folder`, save it there, and return the training log."""
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    options = training_options(
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
    """Translate texts into a language with beam search."""
    tokenizer.src_lang = SOURCE
    outputs = []
    for start in range(0, len(texts), 64):
        inputs = tokenizer(texts[start : start + 64], padding=True, return_tensors="pt").to(model.device)
        generated = model.generate(
            **inputs, forced_bos_token_id=tokenizer.get_lang_id(language), max_new_tokens=48, num_beams=4
        )
        outputs += tokenizer.batch_decode(generated, skip_special_tokens=True)
    return outputs


def evaluate(folder: Path, test: list[NamePair]) -> tuple[dict[str, float], dict[NamePair, str]]:
    """Return chrF for each language and for all, and the output for each pair."""
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
    args: DemoArguments, encoder: str | Path, train: list[NamePair], test: list[NamePair], name: str
) -> tuple[str, list[dict], dict[str, float], dict[NamePair, str]]:
    """Convert, fine-tune and evaluate. Return counts of tensors, the training log, the scores and the outputs."""
    set_up_process(args)
    folder, languages = args.output_dir / name, [SOURCE, *TARGETS]
    report = convert(encoder, folder, overwrite=True, languages=languages, decoder_init=DECODERS[name], seed=args.seed)
    log = finetune_on_names(args, folder, train, test)
    return f"{len(report.copied)} tensors copied from the encoder, {len(report.new)} new", log, *evaluate(folder, test)


def set_up_process(args: DemoArguments):
    """Set seed, threads and verbosity of this process."""
    logging.set_verbosity_error()
    set_seed(args.seed)
    if args.base is None:
        # A model this small is slower with several threads.
        torch.set_num_threads(1)


def plot_losses(logs: dict[str, list[dict]], path: Path):
    """Plot the losses of the encoder and of both decoders."""
    figure, axes = make_figure(1, 2, size=(10, 4))
    encoder, decoder = axes[0]
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
    save_figure(figure, path)


def print_results(
    console: Console, test: list[NamePair], scores: dict[str, dict], written: dict[str, dict], seed: int
):
    """Print a table of scores, and ten outputs."""
    table = Table("language", "names", "copied decoder", "random decoder", title="chrF on held-out names")
    for language, name in (TARGETS | {"all": "all"}).items():
        count = sum(language in (pair.language, "all") for pair in test)
        table.add_row(name, str(count), f"{scores['copied'][language]:.1f}", f"{scores['random'][language]:.1f}")
    console.print(table)
    samples = Table("Chinese", "into", "reference", "copied decoder", title="Ten held-out names")
    for pair in random.Random(seed).sample(test, 10):
        samples.add_row(pair.source, TARGETS[pair.language], pair.target, written["copied"][pair])
    console.print(samples)


def collect_texts(test: list[NamePair]) -> list[str]:
    """Return all names for the encoder, without the names of the test."""
    test_keys = {pair.key for pair in test}
    return sorted(
        {name for code in (SOURCE, *TARGETS) for key, name in read_names(code).items() if key not in test_keys}
        - {text for pair in test for text in (pair.source, pair.target)}
    )


def write_outputs(test: list[NamePair], scores: dict, written: dict[str, dict], seconds: float, path: Path):
    """Write scores and outputs as JSON."""
    outputs = [
        {"key": list(pair.key), "language": pair.language, "source": pair.source, "reference": pair.target}
        | {name: texts[pair] for name, texts in written.items()}
        for pair in test
    ]
    write_json(path, {"chrF": scores, "seconds": round(seconds), "outputs": outputs})


def main():
    (args,) = HfArgumentParser(DemoArguments).parse_args_into_dataclasses()
    start = time.time()
    console = Console()
    set_up_process(args)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    train, test = split_pairs(read_name_pairs(SOURCE, list(TARGETS)), test_share=0.1, seed=args.seed)
    languages = ", ".join(TARGETS.values())
    console.print(f"{len(train)} training pairs and {len(test)} held-out pairs, Chinese into {languages}.")

    logs, scores, written = {}, {}, {}
    encoder = args.base
    if encoder is None:
        console.rule("1. A small XLM-R")
        encoder = args.output_dir / "encoder"
        logs["encoder"] = train_small_encoder(args, collect_texts(test), encoder)

    console.rule("2. The same encoder with a copied and with a random decoder")
    # Threads that wait must not spin: on two cores that makes a step ten times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Small models train at the same time, one per core. Larger models train one after the other.
    with ProcessPoolExecutor(max_workers=2 if args.base is None else 1, mp_context=get_context("spawn")) as pool:
        run = partial(train_and_score, args, encoder, train, test)
        for name, result in zip(DECODERS, pool.map(run, DECODERS), strict=True):
            copied, logs[name], scores[name], written[name] = result
            console.print(f"{name} decoder: {copied}.")

    console.rule("3. Results")
    print_results(console, test, scores, written, args.seed)
    plot_losses(logs, args.output_dir / "loss.png")
    write_outputs(test, scores, written, time.time() - start, args.output_dir / "results.json")
    console.print(
        f"Checkpoints (copied/, random/), loss.png and results.json are in {args.output_dir}/. "
        f"Took {time.time() - start:.0f} seconds."
    )


if __name__ == "__main__":
    main()
