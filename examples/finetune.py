"""Fine-tunes a model for summarisation, translation or reading comprehension, into one language or several.

    python examples/finetune.py --task translation --model_name_or_path outputs/demo/copied \
        --source_lang zh --target_lang bo kk --train_file train.tsv --validation_file dev.tsv --test_file test.tsv \
        --max_source_length 126 --max_target_length 126 --output_dir outputs/zh-bo-kk \
        --do_train --do_eval --do_predict --predict_with_generate
    python examples/finetune.py settings.yaml

It takes the main options of Transformers' run_summarization.py and run_translation.py (`--help` lists them); a JSON or
YAML file may hold them instead. Files: .jsonl, .csv, .tsv, .parquet, each also .gz. Every row has its own language
tags, in training as in evaluation, and scores are given for each language and for all.
"""

import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import DataCollatorForSeq2Seq, set_seed
from transformers.utils import logging

from modeling_xlm_swcm import XLMSWCMTokenizer
from modeling_xlm_swcm.checkpoints import loading
from modeling_xlm_swcm.checkpoints.encoders import require_license
from modeling_xlm_swcm.checkpoints.errors import ConversionError
from modeling_xlm_swcm.checkpoints.inspection import read_model_config
from modeling_xlm_swcm.checkpoints.reading import find_file, read_json
from modeling_xlm_swcm.hub import push
from modeling_xlm_swcm.hub.upload import check_repo_id, check_token
from modeling_xlm_swcm.training.arguments import ModelArguments, TrainingArguments, check_counts, parse_arguments
from modeling_xlm_swcm.training.checkpoints import TrainingError, check_output_dir, find_checkpoint
from modeling_xlm_swcm.training.examples import Pair, cut_off, encode_pairs
from modeling_xlm_swcm.training.metrics import GenerationMetrics
from modeling_xlm_swcm.training.results import save_merged, write_results, write_whole
from modeling_xlm_swcm.training.rows import BadRows, DataError, check_columns, get_text, read_rows
from modeling_xlm_swcm.training.trainer import XLMSWCMTrainer, prepare_model


logger = logging.get_logger("finetune")

# the scores that are logged and put on the card, the most telling one first
SCORES = {
    "summarization": ("rougeL_f", "rouge1_f", "rouge2_f", "chrf++"),
    "translation": ("chrf++", "bleu", "rougeL_f"),
    "question-answering": ("token_f1", "exact_match", "rougeL_f"),
}


@dataclass
class DataArguments:
    task: str = field(metadata={"help": "what a row is", "choices": list(SCORES)})
    source_lang: str | None = field(default=None, metadata={"help": "language of the sources"})
    target_lang: list[str] | None = field(
        default=None, metadata={"help": "languages of the targets; by default the source's"}
    )
    both_directions: bool = field(default=False, metadata={"help": "translate back, too"})
    lang_column: str | None = field(
        default=None, metadata={"help": "column with the language of the row, in place of --source_lang"}
    )
    dataset_name: str | None = field(default=None, metadata={"help": "a dataset on the Hub, in place of files"})
    dataset_config_name: str | None = field(default=None, metadata={"help": "its configuration"})
    train_file: str | None = field(default=None, metadata={"help": "rows to train on, for --do_train"})
    validation_file: str | None = field(default=None, metadata={"help": "rows for --do_eval and --eval_strategy"})
    test_file: str | None = field(default=None, metadata={"help": "rows for --do_predict"})
    text_column: str = field(default="text", metadata={"help": "summarization: the long text"})
    summary_column: str = field(default="summary", metadata={"help": "summarization: the short one"})
    question_column: str = field(default="question", metadata={"help": "question-answering"})
    context_column: str = field(default="context", metadata={"help": "question-answering: what holds the answer"})
    answer_column: str = field(default="answers", metadata={"help": "question-answering: text, or SQuAD's answers"})
    max_source_length: int = field(default=256, metadata={"help": "in tokens"})
    max_target_length: int = field(default=128, metadata={"help": "in tokens, also of what is generated"})
    truncate_sources: bool = field(default=False, metadata={"help": "cut off sources that are too long"})
    skip_bad_rows: bool = field(default=False, metadata={"help": "leave out rows that cannot be used, and count them"})
    max_train_samples: int | None = field(default=None, metadata={"help": "rows to use of the training data"})
    max_eval_samples: int | None = field(default=None, metadata={"help": "rows to use of the validation data"})
    max_predict_samples: int | None = field(default=None, metadata={"help": "rows to use of the test data"})
    num_beams: int = field(default=4, metadata={"help": "of the beam search"})

    def __post_init__(self):
        samples = ("max_train_samples", "max_eval_samples", "max_predict_samples")
        check_counts(self, "max_source_length", "max_target_length", "num_beams", *samples)
        if self.task == "translation" and not (self.source_lang and self.target_lang):
            raise DataError("Translation needs --source_lang and --target_lang.")
        if self.task == "translation" and self.source_lang in self.target_lang:
            raise DataError(f"A translation is into another language: {self.source_lang} cannot be in --target_lang.")
        if self.task == "translation" and self.lang_column:
            raise DataError("The languages of a translation are --source_lang and --target_lang, not --lang_column.")
        if self.task != "translation" and self.both_directions:
            raise DataError("Only a translation can go in --both_directions.")
        if self.task != "translation" and not (self.source_lang or self.lang_column):
            raise DataError("Give the language of the rows, --source_lang, or the column that has it, --lang_column.")
        if self.task != "translation" and len(self.target_lang or ()) > 1:
            raise DataError(f"Rows for {self.task} have one target each: give their languages as --lang_column.")
        if self.dataset_name and (self.train_file or self.validation_file or self.test_file):
            raise DataError("Give either --dataset_name or files.")

    def columns(self) -> dict[str, str]:
        """What a row must have, each column with the option that names it."""
        if self.task == "translation":
            return {self.source_lang: "--source_lang"} | dict.fromkeys(self.target_lang, "--target_lang")
        names = {
            "summarization": ["text_column", "summary_column"],
            "question-answering": ["question_column", "context_column", "answer_column"],
        }[self.task]
        return {getattr(self, name): f"--{name}" for name in [*names, "lang_column"] if getattr(self, name)}

    def directions(self) -> list[tuple[str, str]]:
        """Source and target languages of a translation run."""
        there = [(self.source_lang, code) for code in dict.fromkeys(self.target_lang)]
        return there + [(target, source) for source, target in there] if self.both_directions else there


def first_answer(value):
    """SQuAD's `{"text": [...]}`, a list or a text: the first or only text."""
    value = value.get("text") if isinstance(value, dict) else value
    return value[0] if isinstance(value, list) and value else value


def row_pairs(place: str, row: dict, args: DataArguments, bad_rows: BadRows) -> Iterator[Pair]:
    """What a row asks of the model; the source of a question is a pair of texts, question and context."""
    if args.task == "translation":
        codes = dict.fromkeys([args.source_lang, *args.target_lang])
        texts = {code: get_text(place, row, code, bad_rows) for code in codes}
        for source, target in args.directions():
            if texts[source] and texts[target]:
                yield Pair(place, texts[source], texts[target], source, target)
        return
    if args.task == "summarization":
        columns = [args.text_column, args.summary_column]
    else:
        columns = [args.question_column, args.context_column, args.answer_column]
        row = {name: first_answer(value) if name == args.answer_column else value for name, value in row.items()}
    *source, target = texts = [get_text(place, row, column, bad_rows) for column in columns]
    source_lang = get_text(place, row, args.lang_column, bad_rows) if args.lang_column else args.source_lang
    target_lang = args.target_lang[0] if args.target_lang else source_lang
    if None not in (*texts, source_lang):
        yield Pair(place, source[0] if len(source) == 1 else tuple(source), target, source_lang, target_lang)


def group_of(pair: Pair, task: str) -> str:
    """The name under which a pair is scored: its language, or its two languages."""
    return f"{pair.src_lang}-{pair.tgt_lang}" if task == "translation" else pair.tgt_lang


def read_pairs(args: DataArguments, splits: Iterable[str]) -> dict[str, list[Pair]]:
    """Everything that the rows of `splits` ("train", "validation", "test") ask of the model."""
    limits = {"train": args.max_train_samples, "validation": args.max_eval_samples, "test": args.max_predict_samples}
    bad_rows = BadRows(args.skip_bad_rows)
    pairs = {}
    for split in splits:
        path = args.dataset_name or getattr(args, f"{split}_file")
        if path is None:
            raise DataError(f"There is no {split} data: give --{split}_file or --dataset_name.")
        rows = itertools.islice(read_rows(path, bad_rows, args.dataset_config_name, split), limits[split])
        rows = check_columns(path, rows, args.columns())
        pairs[split] = [pair for place, row in rows for pair in row_pairs(place, row, args, bad_rows)]
    bad_rows.report()
    return pairs


@dataclass
class Encoder:
    """Pairs -> examples; sources that are too long are cut off, and counted, where that was asked for."""

    tokenizer: XLMSWCMTokenizer
    args: DataArguments
    bad_rows: BadRows
    num_cut: int = 0

    def __call__(self, pairs: Iterable[Pair], target_limit: int) -> Iterator[dict[str, list[int]]]:
        limit = self.args.max_source_length
        source_limit = sys.maxsize if self.args.truncate_sources else limit
        for example in encode_pairs(pairs, self.tokenizer, source_limit, target_limit, self.bad_rows):
            self.num_cut += len(example["input_ids"]) > limit
            example["input_ids"] = cut_off(example["input_ids"], limit)
            yield example

    def report(self):
        if self.num_cut:
            logger.warning(f"Cut {self.num_cut} sources to {self.args.max_source_length} tokens.")
        self.bad_rows.report()


def encode_for_evaluation(pairs: list[Pair], encoder: Encoder) -> tuple[list[dict], GenerationMetrics]:
    """
    Examples, and what scores them: against the targets as they were read, and for each language apart.

    No target is too long for that; the loss is of the tokens up to the limit.
    """
    examples, references, groups = [], [], []
    for pair in pairs:
        # one by one, to know which of them can be used
        for example in encoder([pair], target_limit=sys.maxsize):
            examples.append(example | {"labels": example["labels"][: encoder.args.max_target_length]})
            references.append(pair.target)
            groups.append(group_of(pair, encoder.args.task))
    return examples, GenerationMetrics(encoder.tokenizer, references, groups, SCORES[encoder.args.task])


def load_tokenizer(model_args: ModelArguments, args: DataArguments) -> XLMSWCMTokenizer:
    """The model's tokenizer.

    Raises:
        DataError: what `args` ask for is more than the model has.
    """
    config = read_model_config(model_args.model_name_or_path)
    limit = config.longest_input
    for name in ("max_source_length", "max_target_length"):
        if getattr(args, name) > limit:
            raise DataError(
                f"--{name} is {getattr(args, name)}, and the model has room for {limit} tokens; give that or less."
            )
    tokenizer = loading.load_tokenizer(model_args.model_name_or_path, config.vocab_size)
    for code in filter(None, [args.source_lang, *(args.target_lang or ())]):
        if code not in tokenizer.languages:
            raise DataError(f'The model has no language "{code}"; it has: {", ".join(tokenizer.languages)}.')
    return tokenizer


def run(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: TrainingArguments,
    tokenizer: XLMSWCMTokenizer,
    pairs: dict[str, list[Pair]],
) -> dict[str, dict[str, float]]:
    """Train on `pairs["train"]`, evaluate on `pairs["validation"]` and `pairs["test"]`, as far as they are there.

    Writes the model with its card, and for the test set what was written and all scores.

    Returns:
        metric -> language -> score, of the test set, or else of the validation set.
    """
    check_evaluation(args)
    args.generation_num_beams = data_args.num_beams
    args.generation_max_length = data_args.max_target_length + 1  # the start token is no part of a label
    if "train" in pairs:
        checkpoint = find_checkpoint(args, model_args.model_name_or_path)
    else:
        check_output_dir(args)
    set_seed(args.seed)
    encoder = Encoder(tokenizer, data_args, BadRows(data_args.skip_bad_rows))
    examples = {"train": list(encoder(pairs["train"], data_args.max_target_length))} if "train" in pairs else {}
    metrics = {}
    for split in pairs.keys() - {"train"}:
        examples[split], metrics[split] = encode_for_evaluation(pairs[split], encoder)
    encoder.report()
    if empty := [split for split in examples if not examples[split]]:
        raise DataError(f"The {empty[0]} data has no row that can be used.")
    datasets = {split: Dataset.from_list(rows) for split, rows in examples.items()}
    model = loading.load_model(model_args.model_name_or_path)
    trainer = XLMSWCMTrainer(
        prepare_model(model, model_args),
        args,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        train_dataset=datasets.get("train"),
        eval_dataset=datasets.get("validation"),
        processing_class=tokenizer,
        compute_metrics=metrics.get("validation") if args.predict_with_generate else None,
    )
    trainer.settings = vars(model_args) | vars(data_args)
    if "train" in datasets:
        trainer.train(resume_from_checkpoint=checkpoint)
        save_merged(trainer)
    results = {}
    if "validation" in datasets:
        loss = trainer.evaluate()["eval_loss"]
        results = save_scores(metrics["validation"], trainer, "eval", loss)
    if "test" in datasets:
        trainer.compute_metrics = metrics["test"]
        loss = trainer.predict(datasets["test"]).metrics["test_loss"]
        results = save_scores(metrics["test"], trainer, "predict", loss)
        if trainer.is_world_process_zero():
            lines = "".join(" ".join(text.splitlines()) + "\n" for text in metrics["test"].written)
            write_whole(Path(args.output_dir) / "generated_predictions.txt", lines)
    if "train" in datasets:
        files = [data_args.test_file, data_args.validation_file, data_args.train_file]
        dataset = data_args.dataset_name or Path(next(filter(None, files))).name
        scored = metrics.get("test") or metrics.get("validation")
        data = describe_data(data_args, pairs["train"], len(examples["train"])) | (scored.signatures if scored else {})
        example = {"src_lang": pairs["train"][0].src_lang, "tgt_lang": pairs["train"][0].tgt_lang}
        write_results(trainer, model_args, data_args.task, dataset, results, data, example)
    return results


def describe_data(args: DataArguments, train: list[Pair], examples: int) -> dict:
    """What the card says of the training data."""
    return {
        "training data": args.dataset_name or Path(args.train_file).name,
        "languages": ", ".join(dict.fromkeys(group_of(pair, args.task) for pair in train)),
        "examples": examples,
        "max_source_length": args.max_source_length,
        "max_target_length": args.max_target_length,
        "num_beams": args.num_beams,
    }


def save_scores(
    metrics: GenerationMetrics, trainer: XLMSWCMTrainer, name: str, loss: float
) -> dict[str, dict[str, float]]:
    """
    Write the loss and, where texts were generated, all scores and signatures to `<name>_results.json`, and print them.

    Returns:
        metric -> language -> score, for the card.
    """
    scores = metrics.scores or {"all": {}}
    names = metrics.names if metrics.scores else ["loss"]
    scores["all"]["loss"] = round(loss, 4)
    results = {name: {group: round(of[name], 2) for group, of in scores.items()} for name in names}
    if trainer.is_world_process_zero():
        path = Path(trainer.args.output_dir) / f"{name}_results.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(scores, indent=1, ensure_ascii=False) + "\n")
        print_scores(str(path), results, metrics.signatures)
    return results


def check_push(model_args: ModelArguments, args: TrainingArguments):
    """Find out before the training what would stop the push after it."""
    if args.hub_model_id is None:
        raise DataError("--push_to_hub needs --hub_model_id, such as owner/name.")
    check_repo_id(args.hub_model_id)
    if args.hub_token is not None:
        raise DataError("A token is no argument, which others can read: log in with `hf auth login`, or set HF_TOKEN.")
    check_token()
    report = find_file(model_args.model_name_or_path, "conversion_report.json")
    known = read_json(report).get("license") if report else None
    require_license(model_args.license or known, model_args.model_name_or_path)


def check_evaluation(args: TrainingArguments):
    """Refuse what would be overwritten, and what leaves the metrics without the texts of a whole split."""
    for name, ours in {"generation_num_beams": "num_beams", "generation_max_length": "max_target_length"}.items():
        if getattr(args, name) is not None:
            raise DataError(f"--{name} is --{ours} here.")
    in_parts = args.batch_eval_metrics or args.prediction_loss_only or not args.eval_do_concat_batches
    if args.predict_with_generate and in_parts:
        raise DataError(
            "--predict_with_generate scores the texts of a whole split: leave out --batch_eval_metrics, "
            "--prediction_loss_only and --eval_do_concat_batches."
        )


def print_scores(title: str, results: dict[str, dict[str, float]], signatures: dict[str, str]):
    table = Table("", *results, title=title)
    for group in next(iter(results.values())):
        table.add_row(group, *(f"{scores[group]:.2f}" for scores in results.values()))
    console = Console()
    console.print(table)
    for name, signature in signatures.items():
        console.print(f"{name}: {signature}", soft_wrap=True, highlight=False)


def main():
    try:
        model_args, data_args, args = parse_arguments(ModelArguments, DataArguments, TrainingArguments)
        wanted = {"train": args.do_train, "validation": args.do_eval, "test": args.do_predict}
        splits = [split for split, is_wanted in wanted.items() if is_wanted]
        if not splits:
            raise DataError("Nothing to do: give --do_train, --do_eval or --do_predict.")
        if args.do_predict and not args.predict_with_generate:
            raise DataError("--do_predict writes texts, so it needs --predict_with_generate.")
        wants_push, args.push_to_hub = args.push_to_hub, False  # once, at the end, with its card
        if wants_push:
            check_push(model_args, args)
        tokenizer = load_tokenizer(model_args, data_args)
        run(model_args, data_args, args, tokenizer, read_pairs(data_args, splits))
        if wants_push and args.process_index == 0:
            url = push(
                args.output_dir, args.hub_model_id, license=model_args.license, private=bool(args.hub_private_repo)
            )
            Console().print(f"Pushed: {url}")
    except (DataError, ConversionError, TrainingError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
