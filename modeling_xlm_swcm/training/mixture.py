"""Corpora from a YAML file, and an endless mixture of their examples."""

import glob
import itertools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from transformers.utils import logging

from modeling_xlm_swcm import XLMSWCMTokenizer

from .arguments import QUOTE_TEXT, read_yaml
from .coverage import MAX_UNK_SHARE, SAMPLED_EXAMPLES, Coverage
from .denoising import TokenTables
from .examples import Pair, encode_pairs, encode_texts
from .rows import (
    BadRows,
    DataError,
    check_columns,
    get_text,
    is_plain_text,
    known_languages,
    read_aligned,
    read_rows,
)


@dataclass
class CorpusConfig:
    r"""
    An entry of the corpora file: monolingual text for denoising, or parallel text for translation.

    Args:
        path (`str` or `list[str]`):
            File, files or patterns (example: `bo/*.jsonl.gz`), or the id of one Hub dataset.
        language (`str`, *optional*):
            Language code of monolingual text.
        languages (`list[str]`, *optional*):
            Two language codes of parallel text, which is translated in both directions. Plain text needs two files,
            the first one in the first language.
        column (`str`, *optional*, defaults to "text"):
            Column of monolingual text.
        columns (`list[str]`, *optional*, defaults to `languages`):
            Two columns of parallel text. They can be inside the column "translation".
        name (`str`, *optional*):
            Configuration of a Hub dataset.
        split (`str`, *optional*, defaults to "train"):
            Split of a Hub dataset.
        weight (`float`, *optional*, defaults to 1.0):
            Factor on the sampling probability of the corpus.
        examples (`int`, *optional*):
            Number of examples. By default the corpus is read once and counted before training.

    Raises:
        DataError: if a field has a wrong value.
    """

    path: str | list[str]
    language: str | None = None
    languages: list[str] | None = None
    column: str = "text"
    columns: list[str] | None = None
    name: str | None = None
    split: str = "train"
    weight: float = 1.0
    examples: int | None = None

    def __post_init__(self):
        patterns = [self.path] if isinstance(self.path, str) else self.path
        self._check_fields(patterns)
        if (self.language is None) == (self.languages is None):
            raise DataError(
                f"Corpus {self.path} must have either language or languages. Write language: bo for plain text, or "
                "languages: [zh, bo] for pairs."
            )
        self.files = [file for pattern in patterns for file in sorted(glob.glob(pattern)) or [pattern]]
        self.columns = self.columns or self.languages

    def _check_fields(self, patterns: list):
        is_parallel = self.languages is not None
        rules = {
            "path": (are_texts(patterns) and patterns != [], "a path or a list of paths"),
            "language": (self.language is None or isinstance(self.language, str), "a language code"),
            "languages": (
                not is_parallel or (are_texts(self.languages, 2) and len(set(self.languages)) == 2),
                "a list of two different language codes",
            ),
            "column": (
                isinstance(self.column, str) and (self.column == CorpusConfig.column or not is_parallel),
                "a column of monolingual text",
            ),
            "columns": (
                self.columns is None or (are_texts(self.columns, 2) and len(set(self.columns)) == 2 and is_parallel),
                "a list of two different columns of parallel text",
            ),
            "name": (self.name is None or isinstance(self.name, str), "the configuration of a Hub dataset"),
            "split": (isinstance(self.split, str), "the split of a Hub dataset"),
            "weight": (is_number(self.weight, (int, float)) and 0 < self.weight < math.inf, "a number above 0"),
            "examples": (
                self.examples is None or (is_number(self.examples, int) and self.examples > 0),
                "a whole number above 0",
            ),
        }
        for name, (is_right, expected) in rules.items():
            if not is_right:
                value = getattr(self, name)
                values = value if isinstance(value, list) else [value]
                is_text = name in ("weight", "examples") or all(isinstance(item, str | dict | None) for item in values)
                hint = "" if is_text else f" {QUOTE_TEXT}"
                raise DataError(f"Corpus {self.path}: {name} cannot be {value!r}. Give {expected}.{hint}")

    @property
    def title(self) -> str:
        """The Hub id, or the file names without their folders."""
        paths = [self.path] if isinstance(self.path, str) else self.path
        return ", ".join(path if self._is_on_hub() else Path(path).name for path in paths)

    def read(
        self,
        tokenizer: XLMSWCMTokenizer,
        max_length: int,
        tables: TokenTables,
        bad_rows: BadRows,
        coverage: Coverage | None = None,
    ) -> Iterator[dict]:
        """
        Stream the examples of the corpus in the order of its files.

        Args:
            tokenizer ([`XLMSWCMTokenizer`]):
                Tokenizer of the model.
            max_length (`int`):
                Maximum length of source and target in tokens.
            tables ([`TokenTables`]):
                Word and sentence tables of the vocabulary.
            bad_rows ([`BadRows`]):
                Collects the rows that cannot be used.
            coverage ([`Coverage`], *optional*):
                Counts the unknown tokens.

        Returns:
            `Iterator[dict]`: examples with `input_ids`, and `labels` if the text is parallel.

        Raises:
            DataError: if a language has no tag, or a file cannot be read.
        """
        for code in self.languages or [self.language]:
            if code not in tokenizer.languages:
                raise DataError(
                    f'{self.title} is in "{code}", which has no language tag. {known_languages(tokenizer)}'
                )
        if self.language is not None:
            texts = (get_text(place, row, self.column, bad_rows) for place, row in self._rows(bad_rows))
            return encode_texts(filter(None, texts), tokenizer, self.language, max_length, tables, coverage)
        return self._both_directions(tokenizer, max_length, bad_rows, coverage)

    def _both_directions(
        self, tokenizer: XLMSWCMTokenizer, max_length: int, bad_rows: BadRows, coverage: Coverage | None
    ) -> Iterator[dict]:
        # A source is `<s>` plus a target, so the reverse pair needs no second tokenization.
        for pair in encode_pairs(self._pairs(bad_rows), tokenizer, max_length, max_length - 1, bad_rows, coverage):
            yield pair
            yield {"input_ids": [tokenizer.bos_token_id, *pair["labels"]], "labels": pair["input_ids"][1:]}

    def _rows(self, bad_rows: BadRows) -> Iterator[tuple[str, dict]]:
        if self.languages and self._is_plain_text():
            if len(self.files) != 2:
                raise DataError(
                    f"Parallel plain text needs two files (got {len(self.files)} for {self.path}). "
                    "List one file per language."
                )
            for place, lines in read_aligned(self.files, bad_rows):
                yield place, dict(zip(self.columns, lines, strict=True))
            return
        if self.language is not None:
            columns = {self.column: "the field column"}
        else:
            columns = dict.fromkeys(self.columns, "the field columns")
        for file in self.files:
            yield from check_columns(file, read_rows(file, bad_rows, self.name, self.split), columns)

    def _is_on_hub(self) -> bool:
        return not Path(self.files[0]).is_file()

    def _is_plain_text(self) -> bool:
        return not self._is_on_hub() and is_plain_text(self.files[0])

    def _pairs(self, bad_rows: BadRows) -> Iterator[Pair]:
        for place, row in self._rows(bad_rows):
            texts = [get_text(place, row, column, bad_rows) for column in self.columns]
            if None not in texts:
                yield Pair(place, *texts, *self.languages)


def is_number(value, kind: type | tuple[type, ...]) -> bool:
    """Return True if `value` is a number of the type `kind` and not a boolean."""
    return isinstance(value, kind) and not isinstance(value, bool)


def are_texts(value, count: int | None = None) -> bool:
    """Return True if `value` is a list of strings, and of `count` strings if given."""
    return isinstance(value, list) and all(isinstance(text, str) for text in value) and count in (None, len(value))


def load_corpora(path: str) -> dict[str, list[CorpusConfig]]:
    """
    Load the corpora file of a pretraining.

    Args:
        path (`str`):
            YAML or JSON file with a list of corpora under `train` and optionally one under `validation`.

    Returns:
        `dict[str, list[CorpusConfig]]`: the corpora of each list.

    Raises:
        DataError: if the file cannot be read or an entry is wrong.
    """
    try:
        content = read_yaml(path)
    except ValueError as error:
        raise DataError(str(error)) from error
    names = {"train", "validation"}
    if not isinstance(content, dict) or "train" not in content or not content.keys() <= names or not content["train"]:
        raise DataError(
            f"{path} needs a list of corpora under train:. A list under validation: is optional. Remove all other "
            "keys."
        )
    for name, entries in content.items():
        if not isinstance(entries or [], list):
            raise DataError(f"{name}: in {path} must be a list. Put `- ` in front of each corpus.")
    return {name: [make_corpus(path, entry) for entry in entries or []] for name, entries in content.items()}


def make_corpus(path: str, entry: dict) -> CorpusConfig:
    """Make a corpus of an entry of the corpora file `path`."""
    known = [option.name for option in fields(CorpusConfig)]
    if not isinstance(entry, dict) or "path" not in entry:
        raise DataError(f"A corpus in {path} has no path: {entry}. Add `path: FILE`.")
    if unknown := sorted(map(str, entry.keys() - known)):
        raise DataError(f"{path} has a corpus with the unknown field {unknown[0]}. Known fields: {', '.join(known)}.")
    return CorpusConfig(**entry)


class Mixture(torch.utils.data.IterableDataset):
    r"""
    An endless stream of examples from several corpora.

    The probability of corpus i is proportional to weight_i * q_i ** exponent. q_i is the share of corpus i among all
    examples (Su et al., ACL 2025, section 3).

    Each corpus is read repeatedly, in a new order each time. A reading yields each example once. The number of the
    reading is the `epoch` of the example. The order depends only on the arguments, for any number of processes.
    Batches hold examples of similar length.

    Args:
        corpora (`list[CorpusConfig]`):
            Corpora to mix.
        tokenizer ([`XLMSWCMTokenizer`]):
            Tokenizer of the model.
        max_length (`int`):
            Maximum length of source and target in tokens.
        batch_size (`int`):
            Examples per optimizer step, over all processes.
        exponent (`float`, *optional*, defaults to 0.3):
            Exponent on the share of each corpus. 1 samples in proportion to size, 0 samples all corpora equally.
        shuffle_buffer (`int`, *optional*, defaults to 10000):
            Examples of each corpus that are shuffled at a time.
        seed (`int`, *optional*, defaults to 0):
            Random seed of the order.
        skip_bad_rows (`bool`, *optional*, defaults to `False`):
            Whether to skip bad rows, with a warning.
        max_unk_share (`float`, *optional*, defaults to 0.1):
            Maximum share of `<unk>` among the tokens of a language. If a corpus has a number of examples, only its
            first 1,000 examples are counted.

    Raises:
        DataError: if a corpus has rows that cannot be used, or no usable row, or if a language has too many unknown
            tokens. A corpus without a number of examples is checked before training. Other corpora are checked while
            they are read.
    """

    batches_sorted_together = 50

    def __init__(
        self,
        corpora: list[CorpusConfig],
        tokenizer: XLMSWCMTokenizer,
        max_length: int,
        batch_size: int,
        exponent: float = 0.3,
        shuffle_buffer: int = 10_000,
        seed: int = 0,
        skip_bad_rows: bool = False,
        max_unk_share: float = MAX_UNK_SHARE,
    ):
        self.corpora, self.tokenizer, self.max_length, self.batch_size = corpora, tokenizer, max_length, batch_size
        self.shuffle_buffer, self.seed, self.skip_bad_rows = shuffle_buffer, seed, skip_bad_rows
        self.tables = TokenTables(tokenizer)
        self.bad_rows, self.coverage = BadRows(skip_bad_rows), Coverage(tokenizer, max_unk_share)
        self.examples = np.array([self._count(corpus) for corpus in corpora])
        self.bad_rows.report()
        self.coverage.report()
        for corpus, examples in zip(corpora, self.examples, strict=True):
            if examples == 0:
                raise DataError(f"Corpus {corpus.path} has no usable row. Check its text and columns.")
        weights = np.array([corpus.weight for corpus in corpora])
        probabilities = weights * (self.examples / self.examples.sum()) ** exponent
        self.probabilities = probabilities / probabilities.sum()

    def _count(self, corpus: CorpusConfig) -> int:
        """Return the number of examples of a corpus, and count its unknown tokens."""
        bad_rows = self.bad_rows if corpus.examples is None else BadRows(skip=True)
        examples = corpus.read(self.tokenizer, self.max_length, self.tables, bad_rows, self.coverage)
        if corpus.examples is not None:
            for _ in itertools.islice(examples, SAMPLED_EXAMPLES):
                pass
            return corpus.examples
        is_other_process = os.environ.get("RANK", "0") != "0"
        return sum(1 for _ in logging.tqdm(examples, f"Reading {corpus.title}", unit="", disable=is_other_process))

    def __iter__(self) -> Iterator[dict]:
        worker = torch.utils.data.get_worker_info()
        for number, batch in enumerate(self._batches()):
            if worker is None or number % worker.num_workers == worker.id:
                yield from batch

    def _batches(self) -> Iterator[list[dict]]:
        rng = np.random.default_rng([self.seed, 1])
        mixed = self._mixed()
        while True:
            examples = list(itertools.islice(mixed, self.batches_sorted_together * self.batch_size))
            examples.sort(key=lambda example: len(example["input_ids"]) + len(example.get("labels", ())))
            for number in rng.permutation(self.batches_sorted_together):
                yield examples[number * self.batch_size : (number + 1) * self.batch_size]

    def _mixed(self) -> Iterator[dict]:
        rng = np.random.default_rng([self.seed, 0])
        streams = [self._repeated(number) for number in range(len(self.corpora))]
        while True:
            for number in rng.choice(len(streams), size=1024, p=self.probabilities):
                yield next(streams[number])

    def _repeated(self, number: int) -> Iterator[dict]:
        """Read a corpus again and again. Stream its examples, shuffled through a buffer."""
        for epoch in itertools.count():
            rng = np.random.default_rng([self.seed, 2, number, epoch])
            bad_rows = BadRows(self.skip_bad_rows)
            # A corpus with a given number of examples was not read before.
            is_first_check = epoch == 0 and self.corpora[number].examples is not None
            buffer = []
            for example in self.corpora[number].read(self.tokenizer, self.max_length, self.tables, bad_rows):
                if is_first_check or not self.skip_bad_rows:
                    bad_rows.report(so_far=True)
                example["epoch"] = epoch
                if len(buffer) < self.shuffle_buffer:
                    buffer.append(example)
                    continue
                place = rng.integers(self.shuffle_buffer)
                yield buffer[place]
                buffer[place] = example
            if is_first_check:
                bad_rows.report()
            if not buffer:
                raise DataError(f"Corpus {self.corpora[number].path} has no usable row. Check its text and columns.")
            rng.shuffle(buffer)
            yield from buffer
