"""Text for training: rows of files and Hub datasets, checked one by one, as examples and as an endless mixture.

A row that cannot be used is named by file and line and counted; nothing is cut off or left out in silence.
"""

import csv
import glob
import gzip
import itertools
import json
import math
import os
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from datasets import load_dataset
from transformers.utils import logging

from modeling_xlm_swcm import XLMSWCMTokenizer

from .arguments import read_yaml
from .denoising import PieceTables


logger = logging.get_logger(__name__)

# tags that are spelt out in a text are text; lengths are checked here, so that nobody need warn of them
AS_TEXT = {"split_special_tokens": True, "verbose": False, "return_attention_mask": False}
JSON, TABLES, PARQUET = (".jsonl", ".json"), (".csv", ".tsv"), (".parquet",)  # any other file is text
ROWS_AT_ONCE = 256  # that the tokenizer gets in one call
NAMED_ROWS = 5  # in a message; all are counted
TO_UTF8 = "iconv -f ENCODING -t UTF-8"


class DataError(ValueError):
    """The data cannot be used; the message is one sentence that names the place."""

    def __init__(self, message: str):
        # a DataLoader raises the error of its worker again, with the whole traceback as the message
        super().__init__(message.split(f"{__name__}.DataError: ")[-1].strip())


@dataclass
class BadRows:
    """Rows that cannot be used: named, counted, and then an error or, with `skip`, a warning with the final count."""

    skip: bool = False
    count: int = 0
    reasons: Counter = field(default_factory=Counter)
    named: list[str] = field(default_factory=list)
    last_place: str | None = None
    said: int = 0  # the count when it was last said

    def reject(self, place: str, reason: str, details: str = ""):
        """Count the row at `place`, such as `train.jsonl:7`, which `reason` describes: "is empty".

        A row that is wrong in several ways at once is one row.
        """
        self.reasons[reason] += 1
        if place == self.last_place:
            return
        self.last_place = place
        self.count += 1
        if len(self.named) < NAMED_ROWS:
            self.named.append(f"{place} {reason}{details}")

    def report(self, so_far: bool = False):
        """Say how many there were or, with `so_far`, how many there are when they are ten times as many as last said.

        Raises:
            DataError: there were some, and they are not to be skipped.
        """
        if not self.count or (so_far and self.count < 10 * self.said):
            return
        more = f"; and {self.count - len(self.named)} more" if self.count > len(self.named) else ""
        rows = "1 row" if self.count == 1 else f"{self.count} rows"
        if not self.skip:
            how = f" ({TO_UTF8} converts text)" if any("not UTF-8" in reason for reason in self.reasons) else ""
            raise DataError(
                f"{rows} cannot be used: {'; '.join(self.named)}{more}. "
                f"Correct the data{how}, or give --skip_bad_rows."
            )
        self.said = self.count
        worker = torch.utils.data.get_worker_info()
        if os.environ.get("RANK", "0") != "0" or (worker is not None and worker.id > 0):
            return  # one process of many says it
        reasons = "; ".join(f'{number} times "{reason}"' for reason, number in self.reasons.most_common())
        logger.warning(f"Skipped {rows}{' so far' if so_far else ''}: {reasons}. The first: {'; '.join(self.named)}.")


class Pair(NamedTuple):
    """A row to translate, summarise or answer; the languages are codes of the tokenizer."""

    place: str
    source: str
    target: str
    src_lang: str
    tgt_lang: str


# --- rows ---


def read_rows(path: str, bad_rows: BadRows, name: str | None = None, split: str = "train") -> Iterator[tuple]:
    """Place and fields of every row of a file, or of a Hub dataset (its `name` and `split`), read as a stream.

    The ending tells the format: .jsonl or .json (an object per line), .csv, .tsv (with a header; no quotes in .tsv),
    .parquet; anything else is text, a row per line with the one field "text". All but parquet may end in .gz, too.

    Raises:
        DataError: there is no such file or dataset.
    """
    suffix = suffix_of(path)
    if not Path(path).is_file():
        if suffix in (".txt", *JSON, *TABLES, *PARQUET) or is_gzip(path) or glob.has_magic(path):
            raise DataError(f"There is no file {path}.")
        failure = f"{path} is no file, and the dataset cannot be loaded from the Hub"
        yield from read_dataset(path, f" of {split}", failure, path, name, split=split)
    elif suffix in PARQUET:
        yield from read_dataset(path, "", f"{path} cannot be read", "parquet", data_files=path, split="train")
    elif suffix in TABLES:
        yield from read_table(path, bad_rows, "\t" if suffix == ".tsv" else ",")
    else:
        read = parse_json if suffix in JSON else lambda text: {"text": text}
        for place, text in read_lines(path, bad_rows):
            try:
                yield place, read(text)
            except (ValueError, RecursionError) as error:
                bad_rows.reject(place, "is not a JSON object", f" ({error})")


def is_gzip(path: str) -> bool:
    return path.lower().endswith(".gz")


def suffix_of(path: str) -> str:
    """What tells the format: of `train.jsonl.gz` it is `.jsonl`."""
    return Path(path[:-3] if is_gzip(path) else path).suffix.lower()


def read_dataset(path: str, part: str, failure: str, *arguments, **options) -> Iterator[tuple]:
    try:
        rows = load_dataset(*arguments, **options, streaming=True)
        yield from ((f"{path}, row {number}{part},", row) for number, row in enumerate(rows, 1))
    except Exception as error:  # those of the Hub's client and of the formats' readers are of many kinds
        raise DataError(f"{failure}: {' '.join(str(error).split())}") from error


def open_lines(path: str) -> Iterator[bytes]:
    try:
        with gzip.open(path) if is_gzip(path) else open(path, "rb") as file:
            yield from file
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error


def decode(line: bytes) -> str:
    """
    Raises:
        ValueError: what is wrong with it.
    """
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError("is not UTF-8") from error
    if "\0" in text:
        raise ValueError("holds NUL bytes")
    return text.rstrip("\r\n")


def read_lines(path: str, bad_rows: BadRows) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(open_lines(path), 1):
        try:
            text = decode(line)
        except ValueError as error:
            bad_rows.reject(f"{path}:{number}", str(error))
        else:
            yield f"{path}:{number}", text


def read_table(path: str, bad_rows: BadRows, delimiter: str) -> Iterator[tuple[str, dict]]:
    csv.field_size_limit(sys.maxsize)
    place_before = last_place = path

    def texts() -> Iterator[str]:
        nonlocal last_place
        for number, (last_place, text) in enumerate(read_lines(path, bad_rows), 1):
            if number == 1 and last_place != f"{path}:1":
                raise DataError(f"The header of {path} is not UTF-8; convert the file with {TO_UTF8}.")
            yield text + "\n"

    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    # strict, because otherwise a quote that nobody closes takes in all rows behind it
    rows = csv.reader(texts(), delimiter=delimiter, quoting=quoting, strict=True)
    header = None
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            bad_rows.reject(last_place, "ends a row that is not CSV", f" ({error}; it begins after {place_before})")
        else:
            if header is None:
                header = check_header(path, row)
            elif len(row) == len(header):
                yield last_place, dict(zip(header, row, strict=True))
            else:
                counts = f" ({len(row)}, not {len(header)})"
                bad_rows.reject(last_place, "has not as many columns as the header", counts)
        place_before = last_place


def check_header(path: str, names: list[str]) -> list[str]:
    if twice := [name for name, count in Counter(names).items() if name and count > 1]:
        raise DataError(f"{path} has two columns of the name {twice[0]}; rename one.")
    return names


def parse_json(text: str) -> dict:
    row = json.loads(text)
    if not isinstance(row, dict):
        raise ValueError(f"but a {type(row).__name__}")
    return row


def read_aligned(paths: list[str], bad_rows: BadRows) -> Iterator[tuple[str, list[str]]]:
    """The lines of text files that are translations of each other, line by line; the place is that in the first."""
    for number, lines in enumerate(itertools.zip_longest(*map(open_lines, paths)), 1):
        present = [path for path, line in zip(paths, lines, strict=True) if line is not None]
        if len(present) < len(paths):
            missing = ", ".join(path for path in paths if path not in present)
            bad_rows.reject(f"{present[0]}:{number}", "has no partner", f" ({missing} has ended)")
            continue
        faults = [(path, fault) for path, line in zip(paths, lines, strict=True) if (fault := find_fault(line))]
        if faults:
            path, fault = faults[0]
            bad_rows.reject(f"{path}:{number}", fault)
        else:
            yield f"{paths[0]}:{number}", [decode(line) for line in lines]


def find_fault(line: bytes) -> str | None:
    try:
        return None if decode(line).strip() else "is empty"
    except ValueError as error:
        return str(error)


def unnested(row: dict) -> dict:
    """The fields of a row and those inside "translation", where many datasets have their texts."""
    nested = row.get("translation")
    return nested | row if isinstance(nested, dict) else row


def check_columns(path: str, rows: Iterable[tuple], columns: dict[str, str]) -> Iterator[tuple]:
    """`rows`, those of `path`.

    Args:
        columns: what they must have, each column with the option or field that names it.

    Raises:
        DataError: the first row lacks a column; or all rows do, of JSON, where each has columns of its own.
    """
    missing, names = list(columns), {}
    rows_differ = suffix_of(path) in JSON
    for place, row in rows:
        if missing:
            names |= unnested(row)
            missing = [column for column in missing if column not in names]
            if missing and not rows_differ:
                break
        yield place, row
    if missing and names:
        raise DataError(
            f'{path} has no column "{missing[0]}" (it has: {", ".join(map(str, names))}); '
            f"name another with {columns[missing[0]]}."
        )


def get_text(place: str, row: dict, column: str, bad_rows: BadRows) -> str | None:
    """The text of a column; None, and the row counted as bad, where there is none."""
    fields = unnested(row)
    text = fields.get(column)
    if column not in fields:
        bad_rows.reject(place, f'has no column "{column}"', f" (it has: {', '.join(map(str, fields))})")
    elif text is not None and not isinstance(text, str):
        bad_rows.reject(place, f'has no text in the column "{column}"', f" but a value of type {type(text).__name__}")
    elif not text or not text.strip():
        bad_rows.reject(place, f'is empty in the column "{column}"')
    else:
        try:
            text.encode("utf-8")
            return text
        except UnicodeEncodeError as error:  # JSON can spell out half a character
            half = ascii(text[error.start])
            bad_rows.reject(place, f'has no UTF-8 text in the column "{column}"', f" but the lone surrogate {half}")
    return None


# --- examples ---


def batched(rows: Iterable, size: int = ROWS_AT_ONCE) -> Iterator[list]:
    rows = iter(rows)
    while batch := list(itertools.islice(rows, size)):
        yield batch


def cut_off(ids: list[int], limit: int) -> list[int]:
    """A source of at most `limit` tokens, the last one its end."""
    return ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]]


def encode_pairs(
    pairs: Iterable[Pair],
    tokenizer: XLMSWCMTokenizer,
    max_source_length: int,
    max_target_length: int,
    bad_rows: BadRows,
) -> Iterator[dict[str, list[int]]]:
    """`input_ids` and `labels` of each pair, with the tags of its languages; lengths in tokens, special ones included.

    A pair that is too long, or whose language the tokenizer does not know, is a bad row. Tags and special tokens that
    are spelt out in a text are read as text.
    """
    for batch in batched(pairs):
        for (src_lang, tgt_lang), group in itertools.groupby(batch, key=lambda pair: (pair.src_lang, pair.tgt_lang)):
            group = list(group)
            if unknown := [code for code in (src_lang, tgt_lang) if code not in tokenizer.languages]:
                known = ", ".join(tokenizer.languages)
                for pair in group:
                    bad_rows.reject(pair.place, f'is in the unknown language "{unknown[0]}"', f" (known: {known})")
                continue
            before = tokenizer.src_lang, tokenizer.tgt_lang
            tokenizer.src_lang, tokenizer.tgt_lang = src_lang, tgt_lang
            sources, targets = [pair.source for pair in group], [pair.target for pair in group]
            encoded = tokenizer(sources, text_target=targets, **AS_TEXT)
            tokenizer.src_lang, tokenizer.tgt_lang = before
            for pair, source, target in zip(group, encoded["input_ids"], encoded["labels"], strict=True):
                if len(source) > max_source_length:
                    bad_rows.reject(pair.place, f"has a source of more than {max_source_length} tokens")
                elif len(target) > max_target_length:
                    bad_rows.reject(pair.place, f"has a target of more than {max_target_length} tokens")
                else:
                    yield {"input_ids": source, "labels": target}


def encode_texts(
    texts: Iterable[str], tokenizer: XLMSWCMTokenizer, language: str, max_length: int, tables: PieceTables
) -> Iterator[dict[str, list[int]]]:
    """`input_ids` of each text, or of its pieces where it is longer, cut between sentences or else between words."""
    head, eos = [tokenizer.bos_token_id, tokenizer.get_lang_id(language)], [tokenizer.eos_token_id]
    for batch in batched(texts):
        encoded = tokenizer(batch, add_special_tokens=False, **AS_TEXT)
        for ids in encoded["input_ids"]:
            for piece in cut(np.array(ids), max_length - 3, tables):
                yield {"input_ids": head + piece.tolist() + eos}


def cut(ids: np.ndarray, limit: int, tables: PieceTables) -> Iterator[np.ndarray]:
    """`ids` in pieces of at most `limit`, cut where the last sentence of the second half starts, or else a word."""
    while len(ids) > limit:
        words = tables.word_starts(ids[: limit + 1])
        sentences = words[tables.sentence_starts(ids[: limit + 1], words)]
        end = max(sentences[-1] if sentences[-1] > limit // 2 else words[-1], 0) or limit
        yield ids[:end]
        ids = ids[end:]
    yield ids


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
