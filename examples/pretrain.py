"""Pretraining: a converted model learns to write, by denoising text and translating pairs (Su et al., ACL 2025).

    python examples/pretrain.py examples/presets/one_gpu.yaml --model_name_or_path MODEL --data corpora.yaml \
        --output_dir OUTPUT

The file of corpora has lists under `train` and `validation`, with the fields of
[`~modeling_xlm_swcm.training.data.Corpus`]:

    train:
      - {path: bo/*.txt.gz, language: bo}
      - {path: pairs.zh-bo.tsv, languages: [zh, bo]}
    validation:
      - {path: bo.held_out.txt, language: bo}
"""

import math
import sys
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table
from transformers import set_seed
from transformers.trainer_utils import IntervalStrategy

from modeling_xlm_swcm import XLMSWCMConfig, XLMSWCMTokenizer
from modeling_xlm_swcm.checkpoints.errors import ConversionError
from modeling_xlm_swcm.checkpoints.inspection import read_model_config
from modeling_xlm_swcm.checkpoints.loading import load_model, load_tokenizer
from modeling_xlm_swcm.training.arguments import ModelArguments, TrainingArguments, parse_arguments
from modeling_xlm_swcm.training.checkpoints import TrainingError, find_checkpoint
from modeling_xlm_swcm.training.denoising import DataCollatorForDenoising
from modeling_xlm_swcm.training.mixture import Corpus, Mixture, load_corpora
from modeling_xlm_swcm.training.results import save_merged, write_results
from modeling_xlm_swcm.training.rows import BadRows, DataError
from modeling_xlm_swcm.training.trainer import XLMSWCMTrainer, prepare_model


MIN_LENGTH = 8  # of start, tag and end, and of something to write


@dataclass
class DataArguments:
    data: str = field(metadata={"help": "YAML or JSON file with the corpora"})
    max_length: int = field(default=256, metadata={"help": "of source and target, in tokens; longer texts are cut up"})
    sampling_exponent: float = field(
        default=0.3, metadata={"help": "corpora are drawn by their share of the examples to the power of this"}
    )
    shuffle_buffer: int = field(
        default=10_000, metadata={"help": "examples of each corpus among which the next one is drawn"}
    )
    mask_share: float = field(default=0.35, metadata={"help": "share of the words that are masked"})
    span_length: float = field(default=3.5, metadata={"help": "mean length of a masked span in words"})
    skip_bad_rows: bool = field(
        default=False, metadata={"help": "count rows that cannot be used, instead of stopping at them"}
    )


def check(args: DataArguments, training: TrainingArguments, config: XLMSWCMConfig):
    if args.shuffle_buffer < 1:
        raise DataError(f"--shuffle_buffer must be at least 1; got {args.shuffle_buffer}.")
    if not 0 <= args.sampling_exponent <= 1:
        raise DataError(f"--sampling_exponent must be between 0 and 1; got {args.sampling_exponent}.")
    if training.max_steps <= 0 and training.num_train_epochs <= 0:
        raise DataError("There are no steps to train: give --max_steps or --num_train_epochs.")
    if args.max_length > config.longest_input:
        raise DataError(
            f"The model reads at most {config.longest_input} tokens: --max_length {args.max_length} is too much."
        )
    if args.max_length < MIN_LENGTH:
        raise DataError(f"--max_length {args.max_length} leaves no room for text; give at least {MIN_LENGTH}.")
    if training.push_to_hub:
        raise TrainingError("Pretraining pushes nothing: push the finished folder with xlm-swcm push FOLDER REPO.")


def make_mixture(
    args: DataArguments, training: TrainingArguments, corpora: list[Corpus], tokenizer: XLMSWCMTokenizer
) -> Mixture:
    batch = training.train_batch_size * training.gradient_accumulation_steps * training.world_size
    mixture = Mixture(
        corpora,
        tokenizer,
        max_length=args.max_length,
        batch_size=batch,
        exponent=args.sampling_exponent,
        shuffle_buffer=args.shuffle_buffer,
        seed=training.seed,
        skip_bad_rows=args.skip_bad_rows,
    )
    if training.max_steps <= 0:
        training.max_steps = math.ceil(training.num_train_epochs * mixture.examples.sum() / batch)
    return mixture


def print_mixture(mixture: Mixture, training: TrainingArguments):
    table = Table("corpus", "language", "examples", "share of them", "drawn")
    for corpus, examples, probability in zip(mixture.corpora, mixture.examples, mixture.probabilities, strict=True):
        share = examples / mixture.examples.sum()
        table.add_row(corpus.title, language_of(corpus), f"{examples:,}", f"{share:.1%}", f"{probability:.1%}")
    Console().print(table, f"{training.max_steps:,} steps of {mixture.batch_size} examples.")


def language_of(corpus: Corpus) -> str:
    return corpus.language or " - ".join(corpus.languages)


def describe_data(args: DataArguments, mixture: Mixture) -> dict:
    """What the card says of the training data."""
    parts = zip(mixture.corpora, mixture.examples, mixture.probabilities, strict=True)
    return {
        "training data": "; ".join(
            f"{corpus.title} ({language_of(corpus)}, {examples:,} examples, {probability:.1%} of those drawn)"
            for corpus, examples, probability in parts
        ),
        "max_length": args.max_length,
        "sampling_exponent": args.sampling_exponent,
        "mask_share": args.mask_share,
        "span_length": args.span_length,
    }


def main(argv: list[str] | None = None):
    model_args, data_args, training = parse_arguments(ModelArguments, DataArguments, TrainingArguments, argv=argv)
    # the stream is cut into shares by the Trainer, so that each process gets its own
    training.accelerator_config.dispatch_batches = False
    set_seed(training.seed)
    checkpoint = find_checkpoint(training, model_args.model_name_or_path)
    config = read_model_config(model_args.model_name_or_path)
    tokenizer = load_tokenizer(model_args.model_name_or_path, config.vocab_size)
    try:
        collator = DataCollatorForDenoising(tokenizer, data_args.mask_share, data_args.span_length, seed=training.seed)
    except ValueError as error:
        raise DataError(str(error)) from error
    model = load_model(model_args.model_name_or_path)
    check(data_args, training, model.config)
    corpora = load_corpora(data_args.data)
    mixture = make_mixture(data_args, training, corpora["train"], tokenizer)
    bad_rows = BadRows(data_args.skip_bad_rows)
    held_out = []
    for corpus in corpora.get("validation", []):
        examples = list(corpus.read(tokenizer, data_args.max_length, mixture.tables, bad_rows))
        bad_rows.report()
        if not examples:
            raise DataError(f"The validation data has no row that can be used in {corpus.title}.")
        held_out += examples
    if not held_out:
        training.eval_strategy = IntervalStrategy.NO
    if training.process_index == 0:
        print_mixture(mixture, training)
    trainer = XLMSWCMTrainer(
        prepare_model(model, model_args),
        training,
        train_dataset=mixture,
        eval_dataset=held_out or None,
        data_collator=collator,
        processing_class=tokenizer,
    )
    trainer.settings = vars(model_args) | vars(data_args)
    trainer.train(resume_from_checkpoint=checkpoint)
    save_merged(trainer)
    results = {"loss": round(trainer.evaluate()["eval_loss"], 4)} if held_out else {}
    dataset = ", ".join(dict.fromkeys(corpus.title for corpus in corpora.get("validation", corpora["train"])))
    write_results(trainer, model_args, None, dataset, results, describe_data(data_args, mixture))


if __name__ == "__main__":
    try:
        main()
    except (ConversionError, DataError, TrainingError) as error:
        sys.exit(f"error: {error}")
