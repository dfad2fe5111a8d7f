"""Text for training: rows of files and Hub datasets, checked one by one, as examples and as an endless mixture.

A row that cannot be used is named by file and line and counted; nothing is cut off or left out in silence.
"""

import csv
import glob
import gzip
import itertools
import json
import os
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import load_dataset
from transformers.utils import logging


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
