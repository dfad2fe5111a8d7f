"""Data of fine-tuning: the options that describe it, pairs of texts from rows, and examples from pairs."""

import itertools
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from transformers.utils import logging

from modeling_xlm_swcm import XLMSWCMTokenizer
from modeling_xlm_swcm.checkpoints.languages import check_spaces

from .arguments import check_beams, check_counts
from .coverage import MAX_UNK_SHARE, Coverage, check_unk_share
from .examples import SOURCE_FRAME, TARGET_FRAME, Pair, encode_pairs, truncate
from .metrics import GenerationMetrics
from .option_help import ONE_UPLOAD
from .rows import BadRows, DataError, check_columns, check_is_table, get_text, read_rows


logger = logging.get_logger(__name__)

# metrics of each task for the log and the model card, the main one first
SCORES = {
    "summarization": ("rougeL_f", "rouge1_f", "rouge2_f", "chrf++"),
    "translation": ("chrf++", "bleu", "rougeL_f"),
    "question-answering": ("token_f1", "exact_match", "rougeL_f"),
}
# options of each task that name its columns, with the columns of the source first
COLUMNS = {
    "summarization": ("text_column", "summary_column"),
    "question-answering": ("question_column", "context_column", "answer_column"),
}


@dataclass
class FinetuneDataArguments:
    """Options that describe the data of fine-tuning."""

    unsupported: ClassVar[dict[str, str]] = {
        "generation_num_beams": "--generation_num_beams has no effect. Use --num_beams instead.",
        "generation_max_length": "--generation_max_length has no effect. Use --max_target_length instead.",
        "hub_strategy": f"--hub_strategy {ONE_UPLOAD}",
        "hub_always_push": f"--hub_always_push {ONE_UPLOAD}",
        "hub_token": "--hub_token shows the token to other users. Log in with `hf auth login` or set HF_TOKEN "
        "instead.",
    }

    task: str = field(metadata={"help": "Task to fine-tune on.", "choices": list(SCORES)})
    source_lang: str | None = field(default=None, metadata={"help": "Language code of the sources."})
    target_lang: list[str] | None = field(
        default=None,
        metadata={
            "help": "Language codes of the targets. Required for translation. Default for other tasks: the language "
            "of the source."
        },
    )
    both_directions: bool = field(default=False, metadata={"help": "Translate in both directions (translation only)."})
    lang_column: str | None = field(
        default=None,
        metadata={
            "help": "Column with the language code of each row, instead of --source_lang (not for translation)."
        },
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "Id of a Hub dataset. Cannot be combined with files."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the Hub dataset."})
    train_file: str | None = field(default=None, metadata={"help": "File of training rows, for --do_train."})
    validation_file: str | None = field(
        default=None, metadata={"help": "File of validation rows, for --do_eval and --eval_strategy."}
    )
    test_file: str | None = field(default=None, metadata={"help": "File of test rows, for --do_predict."})
    text_column: str = field(default="text", metadata={"help": "Column of the long text (summarization)."})
    summary_column: str = field(default="summary", metadata={"help": "Column of the summary (summarization)."})
    question_column: str = field(default="question", metadata={"help": "Column of the question (question-answering)."})
    context_column: str = field(
        default="context", metadata={"help": "Column of the passage with the answer (question-answering)."}
    )
    answer_column: str = field(
        default="answers",
        metadata={"help": "Column of the answer (question-answering): a text, a list, or SQuAD's answers."},
    )
    max_source_length: int = field(default=256, metadata={"help": "Maximum source length in tokens."})
    max_target_length: int = field(
        default=128, metadata={"help": "Maximum target length in tokens, for training and generation."}
    )
    truncate_sources: bool = field(
        default=False, metadata={"help": "Truncate sources that are longer than --max_source_length."}
    )
    skip_bad_rows: bool = field(
        default=False,
        metadata={"help": "Skip pairs with a bad text, with a warning. Default: stop with an error."},
    )
    max_unk_share: float = field(
        default=MAX_UNK_SHARE,
        metadata={
            "help": "Maximum share of <unk> among the tokens of a language, from 0 to 1. The run stops if "
            "the share is larger."
        },
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Maximum number of training rows. Default: all rows."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Maximum number of validation rows. Default: all rows."}
    )
    max_predict_samples: int | None = field(
        default=None, metadata={"help": "Maximum number of test rows. Default: all rows."}
    )
    num_beams: int = field(default=4, metadata={"help": "Number of beams for generation. 1 is greedy decoding."})

    def __post_init__(self):
        samples = ("max_train_samples", "max_eval_samples", "max_predict_samples")
        check_counts(self, "max_source_length", "max_target_length", *samples)
        check_beams(self.num_beams)
        # A sequence needs room for its special tokens, its tag and one token of text.
        for name, length in {"max_source_length": SOURCE_FRAME + 1, "max_target_length": TARGET_FRAME + 1}.items():
            if getattr(self, name) < length:
                raise DataError(
                    f"--{name} must be at least {length} (got {getattr(self, name)}). Use a larger number."
                )
        check_unk_share(self.max_unk_share)
        self._check_columns()
        if self.task == "translation":
            self._check_translation()
        else:
            self._check_monolingual()
        if self.dataset_name and (self.train_file or self.validation_file or self.test_file):
            raise DataError("--dataset_name cannot be combined with files. Pass either the dataset or files.")
        if self.dataset_config_name and not self.dataset_name:
            raise DataError("--dataset_config_name needs --dataset_name. Add it.")

    def _check_columns(self):
        for task, names in COLUMNS.items():
            for name in names:
                if task != self.task and getattr(self, name) != getattr(FinetuneDataArguments, name):
                    raise DataError(f"--{name} is for {task} only. Remove it.")

    def _check_translation(self):
        for name in ("source_lang", "target_lang"):
            if not getattr(self, name):
                raise DataError(f"Translation needs --{name}. Add it.")
        check_spaces("--target_lang", self.target_lang)
        if self.source_lang in self.target_lang:
            raise DataError(f"--target_lang contains the source language {self.source_lang}. Remove it.")
        if self.lang_column:
            raise DataError("Translation does not use --lang_column. Pass --source_lang and --target_lang instead.")

    def _check_monolingual(self):
        if self.both_directions:
            raise DataError("--both_directions is for translation only. Remove it.")
        if not (self.source_lang or self.lang_column):
            raise DataError("The language of the rows is not set. Pass --source_lang or --lang_column.")
        if len(self.target_lang or ()) > 1:
            raise DataError(
                f"--target_lang takes one language for {self.task} (got {' '.join(self.target_lang)}). Pass one code, "
                "or pass --lang_column instead."
            )

    def columns(self) -> dict[str, str]:
        """Return the required columns of a row, each with the option that sets its name."""
        if self.task == "translation":
            return {self.source_lang: "--source_lang"} | dict.fromkeys(self.target_lang, "--target_lang")
        names = [*COLUMNS[self.task], "lang_column"]
        return {getattr(self, name): f"--{name}" for name in names if getattr(self, name)}

    def directions(self) -> list[tuple[str, str]]:
        """Return the source and target languages of a translation run."""
        there = [(self.source_lang, code) for code in dict.fromkeys(self.target_lang)]
        return there + [(target, source) for source, target in there] if self.both_directions else there


def list_answers(value) -> list:
    """Return the answers of a text, a list, or SQuAD's `{"text": [...]}`."""
    value = value.get("text") if isinstance(value, dict) else value
    return value if isinstance(value, list) and value else [value]


def pairs_of_row(place: str, row: dict, args: FinetuneDataArguments, bad_rows: BadRows) -> Iterator[Pair]:
    """
    Make the pairs of a row. The source of a question is a pair of texts: question and context.

    Args:
        place (`str`):
            Place of the row, for messages.
        row (`dict`):
            Fields of the row.
        args ([`FinetuneDataArguments`]):
            Task, columns and languages.
        bad_rows ([`BadRows`]):
            Collects rows without the required texts.

    Returns:
        `Iterator[Pair]`: one pair, or one for each translation direction.
    """
    if args.task == "translation":
        codes = dict.fromkeys([args.source_lang, *args.target_lang])
        texts = {code: get_text(place, row, code, bad_rows) for code in codes}
        for source, target in args.directions():
            if texts[source] and texts[target]:
                yield Pair(place, texts[source], texts[target], source, target)
        return
    columns = [getattr(args, name) for name in COLUMNS[args.task]]
    others: list = []
    if args.task == "question-answering" and args.answer_column in row:
        answer, *others = list_answers(row[args.answer_column])
        row = row | {args.answer_column: answer}
    *source, target = texts = [get_text(place, row, column, bad_rows) for column in columns]
    source_lang = get_text(place, row, args.lang_column, bad_rows) if args.lang_column else args.source_lang
    target_lang = args.target_lang[0] if args.target_lang else source_lang
    if None not in (*texts, source_lang):
        others = [text for text in others if isinstance(text, str) and text.strip()]
        source = source[0] if len(source) == 1 else tuple(source)
        yield Pair(place, source, target, source_lang, target_lang, tuple(others))


def group_of(pair: Pair, task: str) -> str:
    """Return the name under which a pair is scored: its target language, or both languages of a translation."""
    return f"{pair.src_lang}-{pair.tgt_lang}" if task == "translation" else pair.tgt_lang


def read_pairs(args: FinetuneDataArguments, splits: Iterable[str]) -> dict[str, list[Pair]]:
    """
    Read the pairs of some splits.

    Args:
        args ([`FinetuneDataArguments`]):
            Files or dataset, task, columns and limits.
        splits (`Iterable[str]`):
            Names among "train", "validation" and "test".

    Returns:
        `dict[str, list[Pair]]`: the pairs of each split.

    Raises:
        DataError: if a split has no data, or has rows that cannot be used.
    """
    limits = {"train": args.max_train_samples, "validation": args.max_eval_samples, "test": args.max_predict_samples}
    bad_rows = BadRows(args.skip_bad_rows)
    pairs = {}
    for split in splits:
        path = args.dataset_name or getattr(args, f"{split}_file")
        if path is None:
            raise DataError(f"There is no {split} data. Pass --{split}_file or --dataset_name.")
        check_is_table(path, args.columns())
        rows = itertools.islice(read_rows(path, bad_rows, args.dataset_config_name, split), limits[split])
        rows = check_columns(path, rows, args.columns())
        pairs[split] = [pair for place, row in rows for pair in pairs_of_row(place, row, args, bad_rows)]
    bad_rows.report()
    return pairs


@dataclass
class PairEncoder:
    """
    Encode pairs as examples, and count their unknown tokens.

    If `truncate_sources` is set, long sources are truncated and counted.

    Args:
        tokenizer ([`XLMSWCMTokenizer`]):
            Tokenizer of the model.
        args ([`FinetuneDataArguments`]):
            Maximum lengths in tokens.
        bad_rows ([`BadRows`]):
            Collects the pairs that cannot be used.
    """

    tokenizer: XLMSWCMTokenizer
    args: FinetuneDataArguments
    bad_rows: BadRows
    num_truncated: int = 0
    num_truncated_targets: int = 0

    def __post_init__(self):
        self.coverage = Coverage(self.tokenizer, self.args.max_unk_share)

    def __call__(self, pairs: Iterable[Pair], target_limit: int) -> Iterator[dict[str, list[int]]]:
        """Yield the example of each usable pair. Labels have at most `target_limit` tokens."""
        limit = self.args.max_source_length
        source_limit = sys.maxsize if self.args.truncate_sources else limit
        for example in encode_pairs(pairs, self.tokenizer, source_limit, target_limit, self.bad_rows, self.coverage):
            self.num_truncated += len(example["input_ids"]) > limit
            example["input_ids"] = truncate(example["input_ids"], limit)
            yield example

    def truncate_target(self, labels: list[int]) -> list[int]:
        """Return the labels of an evaluation example, truncated to `max_target_length` and counted."""
        self.num_truncated_targets += len(labels) > self.args.max_target_length
        return truncate(labels, self.args.max_target_length)

    def report(self):
        """
        Log the numbers of truncated sources and targets, and report rows that cannot be used and unknown tokens.

        Raises:
            DataError: if rows cannot be used and must not be skipped, or if a language has too many unknown tokens.
        """
        if self.num_truncated:
            logger.warning(
                f"Truncated sources: {self.num_truncated}. The maximum is {self.args.max_source_length} tokens."
            )
        if self.num_truncated_targets:
            logger.warning(
                f"Truncated targets: {self.num_truncated_targets}. The maximum is {self.args.max_target_length} "
                "tokens for the evaluation loss. The scores use the whole targets."
            )
        self.bad_rows.report()
        self.coverage.report()


def encode_for_evaluation(pairs: list[Pair], encoder: PairEncoder) -> tuple[list[dict], GenerationMetrics]:
    """
    Encode pairs for evaluation, and make the metrics that score the generated texts.

    The metrics compare generated texts with whole targets, and with all right answers to a question. For the loss,
    targets are truncated to `max_target_length` tokens.

    Args:
        pairs (`list[Pair]`):
            Pairs of a validation or test split.
        encoder ([`PairEncoder`]):
            Encoder of the run.

    Returns:
        `tuple[list[dict], GenerationMetrics]`: the examples, and the metrics for each language and for all.
    """
    examples, references, groups = [], [], []
    for pair in pairs:
        # Encoding one pair at a time shows which pairs can be used.
        for example in encoder([pair], target_limit=sys.maxsize):
            examples.append(example | {"labels": encoder.truncate_target(example["labels"])})
            references.append((pair.target, *pair.other_targets) if pair.other_targets else pair.target)
            groups.append(group_of(pair, encoder.args.task))
    return examples, GenerationMetrics(encoder.tokenizer, references, groups, SCORES[encoder.args.task])
