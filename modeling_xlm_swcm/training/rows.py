"""Rows of text files and Hub datasets, read as a stream and checked one by one.

Each row that cannot be used is named by file and line, and counted. Nothing is truncated or skipped silently.
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

# Tokenizer options: language tags inside a text are ordinary text, and this package checks the lengths itself.
AS_TEXT = {"split_special_tokens": True, "verbose": False, "return_attention_mask": False}

# All other file endings are plain text.
JSON, TABLES, PARQUET = (".jsonl", ".json"), (".csv", ".tsv"), (".parquet",)

# rows in one call of the tokenizer
ROWS_AT_ONCE = 256

# rows that an error message names
NAMED_ROWS = 5

TO_UTF8 = "iconv -f ENCODING -t UTF-8"


class DataError(ValueError):
    """Data or data options that cannot be used. The message names the place and says what to do."""

    def __init__(self, message: str):
        # A DataLoader raises the error of its worker again with the whole traceback as the message.
        super().__init__(message.split(f"{__name__}.DataError: ")[-1].strip())


@dataclass
class BadRows:
    """
    Collect rows that cannot be used, and report them as an error or as a warning.

    Args:
        skip (`bool`, *optional*, defaults to `False`):
            Whether to skip such rows with a warning instead of raising a [`DataError`].
    """

    skip: bool = False
    count: int = 0
    reasons: Counter = field(default_factory=Counter)
    named: list[str] = field(default_factory=list)
    last_place: str | None = None
    reported: int = 0  # rows at the last report

    def reject(self, place: str, reason: str, details: str = ""):
        """Count the row at `place` (example: `train.jsonl:7`) for a `reason` (example: "is empty").

        A row with several faults is counted once.
        """
        self.reasons[reason] += 1
        if place == self.last_place:
            return
        self.last_place = place
        self.count += 1
        if len(self.named) < NAMED_ROWS:
            self.named.append(f"{place} {reason}{details}")

    def report(self, so_far: bool = False):
        """
        Raise an error or log a warning if rows were rejected.

        Args:
            so_far (`bool`, *optional*, defaults to `False`):
                Report only if there are ten times as many rows as at the last report.

        Raises:
            DataError: if rows were rejected and must not be skipped.
        """
        if not self.count or (so_far and self.count < 10 * self.reported):
            return
        more = f"; and {self.count - len(self.named)} more" if self.count > len(self.named) else ""
        rows = "1 row" if self.count == 1 else f"{self.count} rows"
        if not self.skip:
            how = f" (convert text with {TO_UTF8})" if any("not UTF-8" in reason for reason in self.reasons) else ""
            raise DataError(
                f"{rows} cannot be used: {'; '.join(self.named)}{more}. "
                f"Correct the data{how}, or pass --skip_bad_rows."
            )
        self.reported = self.count
        worker = torch.utils.data.get_worker_info()
        # Only one process and one worker reports.
        if os.environ.get("RANK", "0") != "0" or (worker is not None and worker.id > 0):
            return
        reasons = "; ".join(f"{number} x {reason}" for reason, number in self.reasons.most_common())
        logger.warning(f"Skipped {rows}{' so far' if so_far else ''}: {reasons}. First rows: {'; '.join(self.named)}.")


def read_rows(path: str, bad_rows: BadRows, name: str | None = None, split: str = "train") -> Iterator[tuple]:
    """
    Stream the rows of a file or Hub dataset.

    The ending of the file selects the format: .jsonl or .json (one object per line), .csv, .tsv (with a header, and
    without quotes in .tsv) or .parquet. All other files are plain text: each line is a row with the field "text".
    Each format but .parquet may be compressed (.gz).

    Args:
        path (`str`):
            File, or id of a Hub dataset.
        bad_rows ([`BadRows`]):
            Collects the rows that cannot be read.
        name (`str`, *optional*):
            Configuration of a Hub dataset.
        split (`str`, *optional*, defaults to "train"):
            Split of a Hub dataset.

    Returns:
        `Iterator[tuple[str, dict]]`: the place (example: `train.tsv:12`) and the fields of each row.

    Raises:
        DataError: if the file or dataset does not exist or cannot be read.
    """
    suffix = suffix_of(path)
    if not Path(path).is_file():
        if suffix in (".txt", *JSON, *TABLES, *PARQUET) or is_gzip(path) or glob.has_magic(path):
            raise DataError(f"{path} does not exist. Check the path.")
        failure = f"{path} is not a file, and no such Hub dataset can be loaded"
        yield from read_dataset(path, f" of {split}", failure, path, name, split=split)
    elif suffix in PARQUET:
        yield from read_dataset(path, "", f"{path} cannot be read", "parquet", data_files=path, split="train")
    elif suffix in TABLES:
        yield from read_table(path, bad_rows, "\t" if suffix == ".tsv" else ",")
    else:
        parse = parse_json if suffix in JSON else lambda text: {"text": text}
        for place, text in read_lines(path, bad_rows):
            try:
                yield place, parse(text)
            except (ValueError, RecursionError) as error:
                bad_rows.reject(place, "is not a JSON object", f" ({error})")


def is_gzip(path: str) -> bool:
    return path.lower().endswith(".gz")


def suffix_of(path: str) -> str:
    """Return the ending that selects the format: `.jsonl` for `train.jsonl.gz`."""
    return Path(path[:-3] if is_gzip(path) else path).suffix.lower()


def read_dataset(path: str, part: str, failure: str, *arguments, **options) -> Iterator[tuple]:
    """Stream the rows of `datasets.load_dataset`, and raise its errors as a [`DataError`]."""
    try:
        rows = load_dataset(*arguments, **options, streaming=True)
        yield from ((f"{path}, row {number}{part},", row) for number, row in enumerate(rows, 1))
    except Exception as error:  # The Hub client and the format readers raise errors of many types.
        raise DataError(f"{failure}: {' '.join(str(error).split())}") from error


def open_lines(path: str) -> Iterator[bytes]:
    """Stream the lines of a file as bytes, decompressed if the file ends in .gz."""
    try:
        with gzip.open(path) if is_gzip(path) else open(path, "rb") as file:
            yield from file
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error


def decode_line(line: bytes, encoding: str = "utf-8-sig") -> str:
    """
    Decode a line of UTF-8 and strip its line break.

    Args:
        line (`bytes`):
            Line of a file.
        encoding (`str`, *optional*, defaults to "utf-8-sig"):
            "utf-8-sig" strips a byte order mark, "utf-8" keeps it.

    Raises:
        ValueError: if the line is not text. The message is a predicate, for example "is not UTF-8".
    """
    try:
        text = line.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError("is not UTF-8") from error
    if "\0" in text:
        raise ValueError("contains NUL bytes")
    return text.rstrip("\r\n")


def read_lines(path: str, bad_rows: BadRows) -> Iterator[tuple[str, str]]:
    """Stream the place and text of each line. Lines that are not text go to `bad_rows`."""
    for number, line in enumerate(open_lines(path), 1):
        try:
            text = decode_line(line)
        except ValueError as error:
            bad_rows.reject(f"{path}:{number}", str(error))
        else:
            yield f"{path}:{number}", text


def read_table(path: str, bad_rows: BadRows, delimiter: str) -> Iterator[tuple[str, dict]]:
    """Stream the rows of a .csv or .tsv file. The place of a row of several lines is its last line."""
    csv.field_size_limit(sys.maxsize)
    place_before = last_place = path

    def texts() -> Iterator[str]:
        nonlocal last_place
        for number, (last_place, text) in enumerate(read_lines(path, bad_rows), 1):
            if number == 1 and last_place != f"{path}:1":
                raise DataError(f"The header of {path} is not UTF-8. Convert the file with {TO_UTF8}.")
            yield text + "\n"

    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    # Without strict, an unclosed quote swallows all rows behind it.
    rows = csv.reader(texts(), delimiter=delimiter, quoting=quoting, strict=True)
    header = None
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            details = f" ({error}; the row starts after {place_before})"
            bad_rows.reject(last_place, "ends a row that is not valid CSV", details)
        else:
            if header is None:
                header = check_header(path, row)
            elif len(row) == len(header):
                yield last_place, dict(zip(header, row, strict=True))
            else:
                counts = f" ({len(row)} instead of {len(header)})"
                bad_rows.reject(last_place, "has a wrong number of columns", counts)
        place_before = last_place


def check_header(path: str, names: list[str]) -> list[str]:
    """Return the column names of a table. Raise a [`DataError`] if two are equal."""
    if repeated := [name for name, count in Counter(names).items() if name and count > 1]:
        raise DataError(f"{path} has two columns named {repeated[0]}. Rename one of them.")
    return names


def parse_json(text: str) -> dict:
    row = json.loads(text)
    if not isinstance(row, dict):
        raise ValueError(f"found a {type(row).__name__}")
    return row


def read_aligned(paths: list[str], bad_rows: BadRows) -> Iterator[tuple[str, list[str]]]:
    """Stream the lines of parallel text files. The place of a row is its line in the first file."""
    for number, lines in enumerate(itertools.zip_longest(*map(open_lines, paths)), 1):
        present = [path for path, line in zip(paths, lines, strict=True) if line is not None]
        if len(present) < len(paths):
            missing = ", ".join(path for path in paths if path not in present)
            bad_rows.reject(f"{present[0]}:{number}", "has no parallel line", f" ({missing} has fewer lines)")
            continue
        faults = [(path, fault) for path, line in zip(paths, lines, strict=True) if (fault := find_fault(line))]
        if faults:
            path, fault = faults[0]
            bad_rows.reject(f"{path}:{number}", fault)
        else:
            yield f"{paths[0]}:{number}", [decode_line(line) for line in lines]


def find_fault(line: bytes) -> str | None:
    """Return why a line cannot be used, or None."""
    try:
        return None if decode_line(line).strip() else "is empty"
    except ValueError as error:
        return str(error)


def unnest(row: dict) -> dict:
    """Return the fields of a row, with those inside "translation", where many datasets keep their texts."""
    nested = row.get("translation")
    return nested | row if isinstance(nested, dict) else row


def check_columns(path: str, rows: Iterable[tuple], columns: dict[str, str]) -> Iterator[tuple]:
    """
    Pass on the rows of `path`, and check that they have the required columns.

    Args:
        path (`str`):
            File or dataset, for the message.
        rows (`Iterable[tuple]`):
            Places and fields of its rows.
        columns (`dict[str, str]`):
            Required columns, each with the option or field that sets its name.

    Raises:
        DataError: if the first row lacks a column. In JSON, where rows differ, if all rows lack it.
    """
    missing, names = list(columns), {}
    rows_differ = suffix_of(path) in JSON
    for place, row in rows:
        if missing:
            names |= unnest(row)
            missing = [column for column in missing if column not in names]
            if missing and not rows_differ:
                break
        yield place, row
    if missing and names:
        raise DataError(
            f'{path} has no column "{missing[0]}" (columns: {", ".join(map(str, names))}). '
            f"Set the column with {columns[missing[0]]}."
        )


def get_text(place: str, row: dict, column: str, bad_rows: BadRows) -> str | None:
    """Return the text of a column, or None after rejecting a row that has no text there."""
    fields = unnest(row)
    text = fields.get(column)
    if column not in fields:
        bad_rows.reject(place, f'has no column "{column}"', f" (columns: {', '.join(map(str, fields))})")
    elif text is not None and not isinstance(text, str):
        bad_rows.reject(place, f'has no text in the column "{column}"', f" (found type {type(text).__name__})")
    elif not text or not text.strip():
        bad_rows.reject(place, f'is empty in the column "{column}"')
    else:
        try:
            text.encode("utf-8")
            return text
        except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair.
            half = ascii(text[error.start])
            bad_rows.reject(place, f'has invalid Unicode in the column "{column}"', f" (lone surrogate {half})")
    return None
