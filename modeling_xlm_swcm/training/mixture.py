"""An endless mixture of corpora."""

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

from .arguments import read_yaml
from .denoising import PieceTables
from .examples import Pair, encode_pairs, encode_texts
from .rows import (
    JSON,
    PARQUET,
    TABLES,
    BadRows,
    DataError,
    check_columns,
    get_text,
    read_aligned,
    read_rows,
    suffix_of,
)


# --- corpora ---


@dataclass
class Corpus:
    r"""
    An entry of a list of corpora.

    Args:
        path: a file, several, or patterns such as `bo/*.jsonl.gz`; or the id of one Hub dataset.
        language: of monolingual text, which is for denoising.
        languages: two, of parallel text, which is for translation in both directions. Plain text needs two files, the
            first in the first language.
        column: of monolingual text; by default "text".
        columns: two, of parallel text; by default named like the languages, inside "translation" where there is one.
        name, split: of a Hub dataset.
        weight: by which the corpus is drawn more often than its size says.
        examples: how many it has; read through and counted if not given.
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
        is_right = {
            "path": are_texts(patterns) and patterns != [],
            "language": self.language is None or isinstance(self.language, str),
            "languages": self.languages is None or (are_texts(self.languages, 2) and len(set(self.languages)) == 2),
            "column": isinstance(self.column, str) and (self.column == Corpus.column or self.languages is None),
            "columns": self.columns is None or (are_texts(self.columns, 2) and self.languages is not None),
            "weight": isinstance(self.weight, (int, float)) and 0 < self.weight < math.inf,
            "examples": self.examples is None or (isinstance(self.examples, int) and self.examples > 0),
        }
        if wrong := [name for name, right in is_right.items() if not right]:
            raise DataError(f"The corpus {self.path} cannot have {getattr(self, wrong[0])!r} as its {wrong[0]}.")
        if (self.language is None) == (self.languages is None):
            raise DataError(f"The corpus {self.path} needs either its language or its two languages.")
        self.files = [file for pattern in patterns for file in sorted(glob.glob(pattern)) or [pattern]]
        self.columns = self.columns or self.languages

    @property
    def title(self) -> str:
        """The Hub id or the names of the files, without their folders."""
        paths = [self.path] if isinstance(self.path, str) else self.path
        return ", ".join(path if self._is_on_hub() else Path(path).name for path in paths)

    def read(self, tokenizer: XLMSWCMTokenizer, max_length: int, tables: PieceTables, bad_rows: BadRows):
        """Its examples in the order of the files.

        Raises:
            DataError: a language has no tag, or a file cannot be read.
        """
        for code in self.languages or [self.language]:
            if code not in tokenizer.languages:
                known = ", ".join(tokenizer.languages)
                raise DataError(
                    f'{self.title} is in the language "{code}", which has no tag; the known ones: {known}.'
                )
        if self.language is not None:
            texts = (get_text(place, row, self.column, bad_rows) for place, row in self._rows(bad_rows))
            return encode_texts(filter(None, texts), tokenizer, self.language, max_length, tables)
        return self._both_directions(tokenizer, max_length, bad_rows)

    def _both_directions(self, tokenizer: XLMSWCMTokenizer, max_length: int, bad_rows: BadRows) -> Iterator[dict]:
        # a source is a target behind `<s>`
        for pair in encode_pairs(self._pairs(bad_rows), tokenizer, max_length, max_length - 1, bad_rows):
            yield pair
            yield {"input_ids": [tokenizer.bos_token_id, *pair["labels"]], "labels": pair["input_ids"][1:]}

    def _rows(self, bad_rows: BadRows) -> Iterator[tuple[str, dict]]:
        if self.languages and self._is_plain_text():
            if len(self.files) != 2:
                raise DataError(f"Parallel plain text needs two files, and {self.path} is {len(self.files)}.")
            for place, lines in read_aligned(self.files, bad_rows):
                yield place, dict(zip(self.columns, lines, strict=True))
            return
        if self.language is not None:
            columns = {self.column: "the field column of the corpus"}
        else:
            columns = dict.fromkeys(self.columns, "the field columns of the corpus")
        for file in self.files:
            yield from check_columns(file, read_rows(file, bad_rows, self.name, self.split), columns)

    def _is_on_hub(self) -> bool:
        return not Path(self.files[0]).is_file()

    def _is_plain_text(self) -> bool:
        return not self._is_on_hub() and suffix_of(self.files[0]) not in (*JSON, *TABLES, *PARQUET)

    def _pairs(self, bad_rows: BadRows) -> Iterator[Pair]:
        for place, row in self._rows(bad_rows):
            texts = [get_text(place, row, column, bad_rows) for column in self.columns]
            if None not in texts:
                yield Pair(place, *texts, *self.languages)


def are_texts(value, count: int | None = None) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value) and count in (None, len(value))


def load_corpora(path: str) -> dict[str, list[Corpus]]:
    """The corpora of a YAML or JSON file: lists of entries under `train` and, if there is one, `validation`."""
    try:
        content = read_yaml(path)
    except ValueError as error:
        raise DataError(str(error)) from error
    names = {"train", "validation"}
    if not isinstance(content, dict) or "train" not in content or not content.keys() <= names or not content["train"]:
        raise DataError(f"{path} must have a list of corpora under train and may have one under validation.")
    for name, entries in content.items():
        if not isinstance(entries or [], list):
            raise DataError(f"{path} must have a list under {name}, with a - in front of each corpus.")
    return {name: [make_corpus(path, entry) for entry in entries or []] for name, entries in content.items()}


def make_corpus(path: str, entry: dict) -> Corpus:
    known = [option.name for option in fields(Corpus)]
    if not isinstance(entry, dict) or "path" not in entry:
        raise DataError(f"{path} has a corpus without a path: {entry}.")
    if unknown := sorted(map(str, entry.keys() - known)):
        raise DataError(f"{path} has a corpus with the unknown field {unknown[0]}; known: {', '.join(known)}.")
    return Corpus(**entry)


class Mixture(torch.utils.data.IterableDataset):
    r"""
    An endless stream of examples of several corpora, drawn with p_i proportional to weight_i * q_i ** exponent, where
    q_i is the share of corpus i of all examples (Su et al., ACL 2025, section 3).

    Each corpus is read again and again, in another order each time: none of its examples comes twice in a reading. The
    number of the reading is the example's `epoch`. The order is a function of the arguments alone, whatever number of
    processes shares the stream, and batches have examples of like length.

    Args:
        max_length: of source and target, in tokens.
        batch_size: examples for one step of the optimizer, over all processes.
        shuffle_buffer: examples of each corpus among which the next one is drawn.

    Raises:
        DataError: a corpus has rows that cannot be used, or none that can; all are read before training, but for
            those whose number of examples is given.
    """

    batches_sorted_together = 50

    def __init__(
        self,
        corpora: list[Corpus],
        tokenizer: XLMSWCMTokenizer,
        max_length: int,
        batch_size: int,
        exponent: float = 0.3,
        shuffle_buffer: int = 10_000,
        seed: int = 0,
        skip_bad_rows: bool = False,
    ):
        self.corpora, self.tokenizer, self.max_length, self.batch_size = corpora, tokenizer, max_length, batch_size
        self.shuffle_buffer, self.seed, self.skip_bad_rows = shuffle_buffer, seed, skip_bad_rows
        self.tables = PieceTables(tokenizer)
        self.bad_rows = BadRows(skip_bad_rows)
        self.examples = np.array([corpus.examples or self._count(corpus) for corpus in corpora])
        self.bad_rows.report()
        for corpus, examples in zip(corpora, self.examples, strict=True):
            if examples == 0:
                raise DataError(f"The corpus {corpus.path} has no row that can be used.")
        weights = np.array([corpus.weight for corpus in corpora])
        probabilities = weights * (self.examples / self.examples.sum()) ** exponent
        self.probabilities = probabilities / probabilities.sum()

    def _count(self, corpus: Corpus) -> int:
        examples = corpus.read(self.tokenizer, self.max_length, self.tables, self.bad_rows)
        other_process = os.environ.get("RANK", "0") != "0"
        return sum(1 for _ in logging.tqdm(examples, f"Reading {corpus.title}", unit="", disable=other_process))

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
        """The examples of a corpus, shuffled through a buffer, reading after reading."""
        for epoch in itertools.count():
            rng = np.random.default_rng([self.seed, 2, number, epoch])
            bad_rows = BadRows(self.skip_bad_rows)
            nobody_has_counted = epoch == 0 and self.corpora[number].examples is not None
            buffer = []
            for example in self.corpora[number].read(self.tokenizer, self.max_length, self.tables, bad_rows):
                if nobody_has_counted or not self.skip_bad_rows:
                    bad_rows.report(so_far=True)
                example["epoch"] = epoch
                if len(buffer) < self.shuffle_buffer:
                    buffer.append(example)
                    continue
                place = rng.integers(self.shuffle_buffer)
                yield buffer[place]
                buffer[place] = example
            if nobody_has_counted:
                bad_rows.report()
            if not buffer:
                raise DataError(f"The corpus {self.corpora[number].path} has no row that can be used.")
            rng.shuffle(buffer)
            yield from buffer
