"""Formats of text files by their endings, decompression, and decoding of lines."""

import bz2
import codecs
import glob
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from .bad_rows import BadRows, DataError


# All other file endings are plain text, unless REFUSED lists them.
JSON = (".jsonl", ".jsonlines", ".ndjson", ".json")
TABLES = (".csv", ".tsv", ".tab")
PARQUET = (".parquet",)
COMPRESSED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}

REFUSED = {
    "Decompress it, or compress it with gzip, bzip2 or xz.": (
        ".zst", ".zstd", ".lz4", ".br", ".lzma", ".z", ".zip", ".7z", ".rar", ".tar", ".tgz", ".tbz2", ".txz",
    ),
    "Convert it to .txt, .jsonl, .csv, .tsv or .parquet.": (
        ".xlsx", ".xls", ".ods", ".docx", ".doc", ".odt", ".rtf", ".pdf", ".epub", ".html", ".htm", ".xml", ".tmx",
        ".xlf", ".xliff", ".sgm", ".yaml", ".yml", ".arrow", ".feather", ".avro", ".orc", ".pkl", ".pickle", ".npy",
        ".npz", ".pt", ".bin", ".safetensors", ".db", ".sqlite",
    ),
}  # fmt: skip

# first bytes of files that are not UTF-8 text
SIGNATURES = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
    b"\x1f\x8b\x08": ".gz",
    b"BZh91AY&SY": ".bz2",
    b"\xfd7zXZ\0": ".xz",
    b"\x28\xb5\x2f\xfd": ".zst",
    b"PK\3\4": ".zip",
    b"PAR1\x15": ".parquet",
    b"%PDF-": ".pdf",
    b"<?xml": ".xml",
    b"<!DOCTYPE html": ".html",
}

# paths of streams that are already open
OPEN_STREAMS = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")

MAX_LINE_BYTES = 16 * 2**20
TOO_LONG = f"is longer than {MAX_LINE_BYTES // 2**20} MiB"

READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)


def is_compressed(path: str) -> bool:
    """Return True if the file has the ending of a supported compression."""
    return Path(path).suffix.lower() in COMPRESSED


def suffix_of(path: str) -> str:
    """Return the ending that selects the format: `.jsonl` for `train.jsonl.gz`."""
    name = Path(path)
    return (name.with_suffix("") if is_compressed(path) else name).suffix.lower()


def is_plain_text(path: str) -> bool:
    """Return True if the file is plain text, not JSON or a table."""
    return suffix_of(path) not in (*JSON, *TABLES, *PARQUET)


def find_files(path: str) -> list[str]:
    """
    Return the files that a path or pattern names, sorted.

    Raises:
        DataError: if the system refuses the path.
    """
    try:
        if Path(path).is_file():
            return [path]
    except OSError as error:
        raise DataError(f"{path[:100]} cannot be read: {error.strerror}. Check the path.") from error
    return [file for file in sorted(glob.glob(path)) if Path(file).is_file()]


def check_format(path: str):
    """
    Check that files with the ending of `path` can be read.

    Raises:
        DataError: if the ending is not supported.
    """
    for remedy, suffixes in REFUSED.items():
        if (suffix := suffix_of(path)) in suffixes:
            raise DataError(f"{path} cannot be read, because {suffix} files are not supported. {remedy}")


def check_regular(path: str, allow_stdin: bool = False):
    """
    Check that a path is a regular file if it exists. A FIFO or a device can make a reader wait forever.

    Args:
        path (`str`):
            Path. It may be missing.
        allow_stdin (`bool`, *optional*, defaults to `False`):
            Accept /dev/stdin and other streams that the shell has opened, for example `<(zcat bo.gz)`.

    Raises:
        DataError: if the path exists and is not a regular file.
    """
    is_open = allow_stdin and path.startswith(OPEN_STREAMS)
    if not is_open and os.path.exists(path) and not os.path.isfile(path):
        raise DataError(f"{path} is not a regular file. Pass a file.")


@contextmanager
def open_file(path: str) -> Iterator[io.BufferedReader]:
    """
    Open a file for reading as bytes, decompressed if its ending says so.

    Raises:
        DataError: if the file cannot be read, or does not hold what its ending says.
    """
    check_format(path)
    check_regular(path, allow_stdin=True)
    opener = COMPRESSED.get(Path(path).suffix.lower(), open)
    try:
        raw = opener(path, "rb")
        with raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw) as file:
            if suffix_of(path) not in PARQUET:
                check_signature(path, file.peek(16)[:16])
            yield file
    except READ_ERRORS as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be read: {str(reason).rstrip('.')}. Check the file.") from error


def check_signature(path: str, head: bytes):
    """Raise a [`DataError`] if the first bytes of a file show that it is not UTF-8 text."""
    for signature, kind in SIGNATURES.items():
        if head.startswith(signature):
            if kind.startswith("UTF"):
                raise DataError(f"{path} is {kind}, not UTF-8. Convert the file with iconv -f {kind} -t UTF-8.")
            raise DataError(f"{path} holds {kind} data, not text. Rename or convert the file.")


def split_lines(file: BinaryIO) -> Iterator[bytes]:
    """Stream the lines of a file. A line that is too long is cut after `MAX_LINE_BYTES` + 1 bytes."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        rest = line if len(line) > MAX_LINE_BYTES else b""
        while rest and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE_BYTES)
        yield line


def open_lines(path: str) -> Iterator[bytes]:
    """Stream the lines of a file as bytes, with their line breaks."""
    with open_file(path) as file:
        yield from split_lines(file)


def decode_line(line: bytes, is_first: bool = False) -> str:
    """
    Decode a line of UTF-8. A byte order mark at the start of the first line is left out.

    Raises:
        ValueError: if the line is not text. The message is a predicate, for example "is not UTF-8".
    """
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(TOO_LONG)
    try:
        text = line.decode("utf-8-sig" if is_first else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError("is not UTF-8") from error
    if "\0" in text:
        raise ValueError("contains NUL bytes")
    return text


def strip_line_break(text: str) -> str:
    """
    Return a line of plain text without its line break.

    Raises:
        ValueError: if there is a carriage return inside the line, as in files with the line breaks of old Macs.
    """
    text = text.rstrip("\r\n")
    if "\r" in text:
        raise ValueError("contains a carriage return inside the line")
    return text


def number_lines(name: str, lines: Iterable[bytes], bad_rows: BadRows, start: int = 1) -> Iterator[tuple[int, str]]:
    """Stream the number and text of each line, with its line break. Lines that are not text go to `bad_rows`."""
    for number, line in enumerate(lines, start):
        try:
            text = decode_line(line, number == 1)
        except ValueError as error:
            bad_rows.reject(f"{name}:{number}", str(error))
        else:
            if text:  # A file may hold only a byte order mark.
                yield number, text


def read_plain_text(name: str, lines: Iterable[bytes], bad_rows: BadRows) -> Iterator[tuple[str, str]]:
    """Stream the place and text of each line, without its line break."""
    for number, line in number_lines(name, lines, bad_rows):
        try:
            yield f"{name}:{number}", strip_line_break(line)
        except ValueError as error:
            bad_rows.reject(f"{name}:{number}", str(error))
