"""Pretraining of a converted model on denoising and translation (Su et al., ACL 2025)."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers import set_seed
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from modeling_xlm_swcm import XLMSWCMConfig, XLMSWCMTokenizer
from modeling_xlm_swcm.checkpoints.inspection import read_model_config
from modeling_xlm_swcm.checkpoints.loading import load_model, load_tokenizer

from .arguments import ModelArguments, TrainingArguments
from .checkpoints import METRIC_SCHEDULERS, TrainingError
from .coverage import MAX_UNK_SHARE, Coverage, check_unk_share
from .denoising import DataCollatorForDenoising
from .files import print_output
from .lora import adapt_model, save_trained
from .mixture import CorpusConfig, Mixture, load_corpora
from .option_help import HUB_OPTIONS
from .precision import choose_saved_dtype
from .results import write_results
from .resuming import find_checkpoint
from .rows import BadRows, DataError
from .trainer import XLMSWCMTrainer


# room for start token, tag, end token and some text
MIN_LENGTH = 8


@dataclass
class PretrainDataArguments:
    """Options that describe the data of pretraining."""

    unsupported: ClassVar[dict[str, str]] = (
        dict.fromkeys(
            HUB_OPTIONS,
            "Pretraining does not support --push_to_hub and its options. Push the finished folder with xlm-swcm push "
            "FOLDER REPO.",
        )
        | dict.fromkeys(
            ("predict_with_generate", "generation_num_beams", "generation_max_length"),
            "Pretraining computes only the loss of the validation data. Remove --predict_with_generate and its "
            "options.",
        )
        | dict.fromkeys(("do_train", "do_eval", "do_predict"), "")
    )

    data: str = field(metadata={"help": "YAML or JSON file that lists the corpora."})
    max_length: int = field(
        default=256,
        metadata={
            "help": "Maximum length of source and target in tokens. Longer texts are split. Longer pairs are bad rows."
        },
    )
    sampling_exponent: float = field(
        default=0.3,
        metadata={"help": "Exponent on the share of each corpus, between 0 (sample equally) and 1 (sample by size)."},
    )
    shuffle_buffer: int = field(
        default=10_000, metadata={"help": "Number of examples of each corpus that are shuffled at a time."}
    )
    mask_share: float = field(default=0.35, metadata={"help": "Share of the words that are masked, from 0 to 1."})
    span_length: float = field(default=3.5, metadata={"help": "Mean length of a masked span in words."})
    skip_bad_rows: bool = field(
        default=False, metadata={"help": "Skip bad rows, with a warning. Default: stop with an error."}
    )
    max_unk_share: float = field(
        default=MAX_UNK_SHARE,
        metadata={
            "help": "Maximum share of <unk> among the tokens of a language, from 0 to 1. Training does not start if "
            "the share is larger."
        },
    )


def pretrain(model_args: ModelArguments, data_args: PretrainDataArguments, training: TrainingArguments):
    """
    Pretrain a converted model, and write it with its card to the output folder.

    Args:
        model_args ([`ModelArguments`]):
            Model to start from.
        data_args ([`PretrainDataArguments`]):
            Corpora, lengths and noise.
        training ([`TrainingArguments`]):
            Training arguments.

    Raises:
        DataError: if an option or the data cannot be used.
        TrainingError: if the training cannot start or continue.
        ConversionError: if the model cannot be loaded.
    """
    # The Trainer divides the stream, so that each process gets a different share.
    training.accelerator_config.dispatch_batches = False
    set_seed(training.seed)
    checkpoint = find_checkpoint(training, model_args.model_name_or_path)
    config = read_model_config(model_args.model_name_or_path)
    tokenizer = load_tokenizer(model_args.model_name_or_path, config.vocab_size)
    try:
        collator = DataCollatorForDenoising(tokenizer, data_args.mask_share, data_args.span_length, seed=training.seed)
    except ValueError as error:
        raise DataError(str(error)) from error
    model = load_model(model_args.model_name_or_path, dtype=torch.float32)
    check_pretraining(data_args, training, model.config)
    corpora = load_corpora(data_args.data)
    mixture = make_mixture(data_args, training, corpora["train"], tokenizer)
    held_out = read_validation(data_args, corpora.get("validation", []), mixture)
    if not held_out:
        training.eval_strategy = IntervalStrategy.NO
        check_without_evaluation(training, "Add a list under validation: to the corpora file.")
    if training.process_index == 0:
        print_mixture(mixture, training)
    trainer = XLMSWCMTrainer(
        adapt_model(model, model_args, tokenizer),
        training,
        train_dataset=mixture,
        eval_dataset=held_out or None,
        data_collator=collator,
        processing_class=tokenizer,
    )
    trainer.settings = vars(model_args) | vars(data_args)
    trainer.saved_dtype = choose_saved_dtype(model_args)
    trainer.train(resume_from_checkpoint=checkpoint)
    save_trained(trainer, model_args)
    results = {"loss": round(trainer.evaluate()["eval_loss"], 4)} if held_out else {}
    dataset = ", ".join(dict.fromkeys(corpus.title for corpus in corpora.get("validation", corpora["train"])))
    write_results(trainer, model_args, None, dataset, results, describe_mixture(data_args, mixture))
    print_output(training)


def check_pretraining(args: PretrainDataArguments, training: TrainingArguments, config: XLMSWCMConfig):
    """
    Check the options against each other and against the model.

    Raises:
        DataError: if a number is out of range.
        TrainingError: if `push_to_hub` is set.
    """
    check_unk_share(args.max_unk_share)
    if args.shuffle_buffer < 1:
        raise DataError(f"--shuffle_buffer must be at least 1 (got {args.shuffle_buffer}). Use a larger number.")
    check_exponent(args.sampling_exponent)
    if training.max_steps <= 0 and training.num_train_epochs <= 0:
        raise DataError("There are no training steps. Pass --max_steps or --num_train_epochs.")
    if not MIN_LENGTH <= args.max_length <= config.longest_input:
        raise DataError(
            f"--max_length must be between {MIN_LENGTH} and {config.longest_input} for this model (got "
            f"{args.max_length}). Use another number."
        )
    if training.push_to_hub:
        raise TrainingError(args.unsupported["push_to_hub"])


def check_exponent(exponent: float):
    """Raise a [`DataError`] if the exponent on the shares of corpora or languages is not between 0 and 1."""
    if not 0 <= exponent <= 1:
        raise DataError(f"--sampling_exponent must be between 0 and 1 (got {exponent}). Use, for example, 0.3.")


def check_without_evaluation(training: transformers.TrainingArguments, advice: str):
    """
    Check that no option needs validation data.

    Raises:
        DataError: if an option needs it. The message ends with `advice`.
    """
    needs = {
        "--load_best_model_at_end": training.load_best_model_at_end,
        "--save_strategy best": training.save_strategy == SaveStrategy.BEST,
        f"--lr_scheduler_type {training.lr_scheduler_type.value}": training.lr_scheduler_type in METRIC_SCHEDULERS,
    }
    if option := next((option for option, is_set in needs.items() if is_set), None):
        raise DataError(f"{option} needs validation data. {advice}")


def make_mixture(
    args: PretrainDataArguments,
    training: TrainingArguments,
    corpora: list[CorpusConfig],
    tokenizer: XLMSWCMTokenizer,
) -> Mixture:
    """Make the mixture of the training corpora, and convert epochs into steps."""
    batch = training.train_batch_size * training.gradient_accumulation_steps * training.world_size
    mixture = Mixture(
        corpora,
        tokenizer,
        max_length=args.max_length,
        batch_size=batch,
        exponent=args.sampling_exponent,
        shuffle_buffer=args.shuffle_buffer,
        seed=training.seed if training.data_seed is None else training.data_seed,
        skip_bad_rows=args.skip_bad_rows,
        max_unk_share=args.max_unk_share,
    )
    if training.max_steps <= 0:
        training.max_steps = math.ceil(training.num_train_epochs * mixture.examples.sum() / batch)
    return mixture


def read_validation(args: PretrainDataArguments, corpora: list[CorpusConfig], mixture: Mixture) -> list[dict]:
    """Read the examples of the validation corpora. Each corpus must have examples."""
    held_out = []
    for corpus in corpora:
        bad_rows = BadRows(args.skip_bad_rows)
        coverage = Coverage(mixture.tokenizer, args.max_unk_share)
        examples = list(corpus.read(mixture.tokenizer, args.max_length, mixture.tables, bad_rows, coverage))
        bad_rows.report()
        coverage.report()
        if not examples:
            raise DataError(f"The validation corpus {corpus.title} has no usable row. Check its text and columns.")
        held_out += examples
    return held_out


def print_mixture(mixture: Mixture, training: TrainingArguments):
    """Print size and sampling probability of each corpus."""
    table = Table("corpus", "language", "examples", "share", "sampled")
    for corpus, examples, probability in zip(mixture.corpora, mixture.examples, mixture.probabilities, strict=True):
        share = examples / mixture.examples.sum()
        table.add_row(corpus.title, languages_of(corpus), f"{examples:,}", f"{share:.1%}", f"{probability:.1%}")
    Console(markup=False, emoji=False).print(table, f"{training.max_steps:,} steps of {mixture.batch_size} examples.")


def languages_of(corpus: CorpusConfig) -> str:
    """Return the language of a corpus, or its two languages joined by a dash."""
    return corpus.language or " - ".join(corpus.languages)


def describe_mixture(args: PretrainDataArguments, mixture: Mixture) -> dict:
    """Return facts about the training data for the model card."""
    parts = zip(mixture.corpora, mixture.examples, mixture.probabilities, strict=True)
    return {
        "training data": "; ".join(
            f"{corpus.title} ({languages_of(corpus)}, {examples:,} examples, sampled {probability:.1%})"
            for corpus, examples, probability in parts
        ),
        "max_length": args.max_length,
        "sampling_exponent": args.sampling_exponent,
        "mask_share": args.mask_share,
        "span_length": args.span_length,
    } | mixture.coverage.describe()
