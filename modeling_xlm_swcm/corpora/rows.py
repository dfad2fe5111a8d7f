"""Rows of text files and Hub datasets, read as a stream and checked one by one.

Each row that cannot be used is named by file and line, and counted. Nothing is truncated or skipped silently.
"""

import glob
import itertools
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .bad_rows import EMPTY, BadRows, DataError
from .files import (
    JSON,
    PARQUET,
    TABLES,
    check_format,
    check_regular,
    decode_line,
    find_files,
    is_compressed,
    is_plain_text,
    open_file,
    open_lines,
    read_plain_text,
    strip_line_break,
    suffix_of,
)
from .json_rows import holds_object, read_json_rows
from .tables import check_header, read_table


# column of monolingual text
TEXT = "text"

# Number of rows of a .parquet file that are in memory at a time.
PARQUET_ROWS = 256

# Number of columns that an error message lists.
LISTED_COLUMNS = 20


def read_rows(path: str, bad_rows: BadRows, name: str | None = None, split: str = "train") -> Iterator[tuple]:
    """
    Stream the rows of a file, of all files of a pattern, or of a Hub dataset.

    The ending of the file selects the format: .jsonl, .json, .csv, .tsv or .parquet. A JSON file has one object or
    string per line, or an array of objects or strings. A table has a header. Most other files are plain text: each
    line is a row with the field "text". Each format may be compressed (.gz, .bz2 or .xz).

    Args:
        path (`str`):
            File, pattern (example: `bo/*.jsonl.gz`), or id of a Hub dataset.
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
    files = find_files(path)
    if files:
        for file in files:
            yield from read_file(file, bad_rows)
    else:
        check_dataset(path)
        yield from read_dataset(path, name, split)


def read_file(path: str, bad_rows: BadRows) -> Iterator[tuple[str, dict]]:
    """Stream the rows of one file."""
    suffix = suffix_of(path)
    if suffix in PARQUET:
        yield from read_parquet(path)
    elif suffix in TABLES:
        yield from read_table(path, bad_rows)
    elif suffix in JSON:
        yield from read_json_rows(path, bad_rows)
    else:
        for number, (place, text) in enumerate(read_plain_text(path, open_lines(path), bad_rows)):
            if number == 0 and holds_object(text):
                raise DataError(f"{path} holds JSON, not text. Give it a name that ends in .jsonl.")
            yield place, {TEXT: text}


def check_dataset(path: str):
    """Raise a [`DataError`] if a path without files is not meant as a Hub dataset."""
    if not Path(path).is_dir():
        check_regular(path)
    check_format(path)
    is_file_name = suffix_of(path) in (".txt", *JSON, *TABLES, *PARQUET) or is_compressed(path)
    if not Path(path).exists() and (is_file_name or glob.has_magic(path)):
        raise DataError(f"{path} does not exist. Check the path.")


def read_dataset(path: str, name: str | None, split: str) -> Iterator[tuple[str, dict]]:
    """Stream the rows of a Hub dataset, and raise errors of `datasets` as a [`DataError`]."""
    try:
        from datasets import load_dataset

        rows = load_dataset(path, name, split=split, streaming=True)
        yield from ((f"{path}, row {number} of {split},", row) for number, row in enumerate(rows, 1))
    except Exception as error:  # The Hub client and the format readers raise errors of many types.
        failure = f"{path} is not a file, and no such Hub dataset can be loaded"
        cause = " ".join(str(error).split()).rstrip(".")
        raise DataError(f"{failure}: {cause}. Check the path, the id of the dataset and the connection.") from error


def read_parquet(path: str) -> Iterator[tuple[str, dict]]:
    """Stream the rows of a .parquet file."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise DataError(f"{path} needs pyarrow. Install it with pip install pyarrow.") from error
    with open_file(path) as file, tempfile.TemporaryFile() as seekable:
        if is_compressed(path):
            shutil.copyfileobj(file, seekable)
        try:
            table = ParquetFile(seekable if is_compressed(path) else path)
            check_header(path, table.schema_arrow.names)
            batches = table.iter_batches(PARQUET_ROWS)
            rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
            yield from ((f"{path}, row {number},", row) for number, row in enumerate(rows, 1))
        except (ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"{path} cannot be read: {' '.join(str(error).split()).rstrip('.')}. Check the file."
            ) from error


def read_aligned(paths: list[str], bad_rows: BadRows) -> Iterator[tuple[str, list[str]]]:
    """
    Stream the lines of parallel text files. The place of a row is its line in the first file.

    Raises:
        DataError: if a file is not plain text or cannot be read, or if a line has no parallel line. Such lines are
            never skipped, because a line that is missing in the middle of a file shifts all lines after it.
    """
    for path in paths:
        if not is_plain_text(path):
            raise DataError(f"{path} is not plain text. Pass two text files with one text per line for parallel text.")
        check_regular(path)
    for number, lines in enumerate(itertools.zip_longest(*map(open_lines, paths)), 1):
        present = [path for path, line in zip(paths, lines, strict=True) if line is not None]
        if len(present) < len(paths):
            missing = ", ".join(path for path in paths if path not in present)
            raise DataError(
                f"{present[0]}:{number} has no parallel line ({missing} has fewer lines). Pass files with the same "
                "number of lines. An empty line is a row without a text."
            )
        texts = []
        for path, line in zip(paths, lines, strict=True):
            try:
                texts.append(strip_line_break(decode_line(line, number == 1)))
                if not texts[-1].strip():
                    raise ValueError(EMPTY)
            except ValueError as error:
                bad_rows.reject(f"{path}:{number}", str(error))
                break
        else:
            yield f"{paths[0]}:{number}", texts


def stream_texts(
    path: str, language: str, bad_rows: BadRows, advice: str = "Rename the column of the text."
) -> Iterator[tuple[str, str | None]]:
    """
    Stream the texts of a file in one language: the column with the name of the language, or else "text".

    Args:
        path (`str`):
            File.
        language (`str`):
            Language code.
        bad_rows ([`BadRows`]):
            Collects the rows without a text.
        advice (`str`, *optional*):
            Sentence for the error about missing columns.

    Returns:
        `Iterator[tuple[str, str | None]]`: the place and text of each row, `None` for a row without a text.

    Raises:
        DataError: if both columns are missing, or the file cannot be read.
    """
    if Path(path).is_dir():
        raise DataError(f"{path} is a folder. Pass a file, or a pattern such as {path.rstrip('/')}/*.txt.")
    if not Path(path).exists() and not find_files(path):
        raise DataError(f"{path} does not exist. Check the path.")
    names: dict[str, None] = {}
    is_found = False
    for place, row in itertools.chain.from_iterable(read_file(file, bad_rows) for file in find_files(path) or [path]):
        fields = unnest(row)
        column = language if language in fields else TEXT
        if not is_found:
            is_found = column in fields
            names |= dict.fromkeys(fields)
            if not is_found and suffix_of(path) not in JSON:
                break
        yield place, get_text(place, row, column, bad_rows)
    if names and not is_found:
        raise DataError(f'{path} has no column "{language}" or "{TEXT}" (columns: {list_columns(names)}). {advice}')


def unnest(row: dict) -> dict:
    """Return the fields of a row, with the fields inside "translation". Many datasets keep their texts there."""
    nested = row.get("translation")
    return nested | row if isinstance(nested, dict) else row


def list_columns(names: Iterable) -> str:
    """Return column names for a message."""
    listed = [str(name) if len(str(name)) <= 40 else f"{str(name)[:40]}..." for name in names]
    return ", ".join(listed[:LISTED_COLUMNS] + ["..."] * (len(listed) > LISTED_COLUMNS))


def check_is_table(path: str, columns: Iterable[str]):
    """Raise a [`DataError`] if a file that must have named columns is plain text or cannot be read."""
    files = find_files(path)
    for file in files:
        check_format(file)
    if any(map(is_plain_text, files)):
        names = " and ".join(columns)
        raise DataError(f"{path} is plain text. Pass a TSV, CSV or JSON Lines file with the columns {names}.")


def check_columns(path: str, rows: Iterable[tuple], columns: dict[str, str]) -> Iterator[tuple]:
    """
    Yield the rows of `path` unchanged, and check that they have the required columns.

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
    missing = list(columns)
    names: dict[str, Any] = {}
    rows_differ = suffix_of(path) in JSON
    for place, row in rows:
        if missing:
            names |= unnest(row)
            missing = [column for column in missing if column not in names]
            if missing and not rows_differ:
                break
        yield place, row
    if missing and names:
        source = f"The folder {path}" if Path(path).is_dir() else path
        raise DataError(
            f'{source} has no column "{missing[0]}" (columns: {list_columns(names)}). Rename a column to '
            f'"{missing[0]}", or change {columns[missing[0]]}.'
        )


def get_text(place: str, row: dict, column: str, bad_rows: BadRows) -> str | None:
    """Return the text of a column, or None after rejecting a row that has no text there."""
    fields = unnest(row)
    text = fields.get(column)
    if not fields:
        bad_rows.reject(place, EMPTY)
    elif column not in fields:
        bad_rows.reject(place, f'has no column "{column}"', f" (columns: {list_columns(fields)})")
    elif text is not None and not isinstance(text, str):
        bad_rows.reject(place, f'has no text in the column "{column}"', f" (found type {type(text).__name__})")
    elif not text or not text.strip():
        bad_rows.reject(place, f'{EMPTY} in the column "{column}"')
    elif "\0" in text:
        bad_rows.reject(place, f'contains NUL bytes in the column "{column}"')
    else:
        try:
            text.encode("utf-8")
            return text
        except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair.
            half = ascii(text[error.start])
            bad_rows.reject(place, f'has invalid Unicode in the column "{column}"', f" (lone surrogate {half})")
    return None
