"""Rows of JSON files: one value per line, or an array that is read as a stream."""

import codecs
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, TextIO

from .bad_rows import EMPTY, TO_UTF8, BadRows, DataError
from .files import MAX_LINE_BYTES, number_lines, open_file, split_lines


DELIMITER = re.compile(r"[ \t\r\n,\]]")
WHITESPACE = re.compile(r"[ \t\r\n]*")
CHUNK = 2**16


class RepeatedKey:
    """A JSON object that has a key twice."""

    def __init__(self, key: str):
        self.key = key


def make_object(pairs: list[tuple[str, Any]]) -> dict | RepeatedKey:
    """Return the fields of a JSON object, or a [`RepeatedKey`] if a key occurs twice."""
    fields = dict(pairs)
    if len(fields) == len(pairs):
        return fields
    return RepeatedKey(Counter(key for key, _ in pairs).most_common(1)[0][0])


DECODER = json.JSONDecoder(object_pairs_hook=make_object)


def as_row(value: Any) -> dict:
    """
    Return a JSON value as the fields of a row. A string is a text.

    Raises:
        ValueError: if the value is not a row. The message continues the sentence "The line ...".
    """
    if isinstance(value, RepeatedKey):
        raise ValueError(f'has the key "{value.key}" twice')
    if isinstance(value, str):
        return {"text": value}
    if not isinstance(value, dict):
        raise ValueError(f"is not a JSON object (found type {type(value).__name__})")
    return value


def holds_object(line: str) -> bool:
    """Return True if a line of text is a JSON object with fields."""
    try:
        return line.lstrip().startswith('{"') and bool(json.loads(line))
    except (ValueError, RecursionError):
        return False


def read_json_rows(path: str, bad_rows: BadRows) -> Iterator[tuple[str, dict]]:
    """Stream the place and fields of each row of a JSON file. The place is the line that the row starts in."""
    with open_file(path) as file:
        head = file.peek(CHUNK).removeprefix(codecs.BOM_UTF8)
        is_array = head.lstrip().startswith(b"[")
        values = read_array(path, file) if is_array else read_values(path, file, bad_rows)
        for number, value in values:
            try:
                yield f"{path}:{number}", as_row(value)
            except ValueError as error:
                bad_rows.reject(f"{path}:{number}", str(error))


def read_values(path: str, file: io.BufferedReader, bad_rows: BadRows) -> Iterator[tuple[int, Any]]:
    """Stream the line number and value of each line."""
    for number, line in number_lines(path, split_lines(file), bad_rows):
        if not line.strip():
            if bad_rows.allow_empty:
                yield number, {}
            bad_rows.reject(f"{path}:{number}", EMPTY)
            continue
        try:
            value = DECODER.decode(line)
        except (ValueError, RecursionError) as error:
            bad_rows.reject(f"{path}:{number}", "is not a JSON object", f" ({getattr(error, 'msg', error)})")
        else:
            yield number, value


def read_array(path: str, file: io.BufferedReader) -> Iterator[tuple[int, Any]]:
    """
    Stream the line number and value of each item of a JSON array.

    Raises:
        DataError: if the file is not UTF-8, or is not one JSON array.
    """
    reader = ArrayReader(io.TextIOWrapper(file, encoding="utf-8-sig", newline="\n"))
    try:
        yield from reader.read_items()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 after line {reader.line}. Convert the file with {TO_UTF8}.") from error
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", error)
        raise DataError(
            f"{path}:{reader.line} is not valid in a JSON array ({reason}). Write one array, or one object per line."
        ) from error


class ArrayReader:
    """Read a JSON array item by item.

    Attributes:
        line (`int`): number of the line that the last item starts in.
    """

    def __init__(self, file: TextIO):
        self.file, self.text, self.position, self.line = file, "", 0, 1

    def read_items(self) -> Iterator[tuple[int, Any]]:
        """
        Yield the line number and value of each item.

        Raises:
            ValueError: if the text is not one JSON array.
        """
        self._take("[")
        if self._peek() == "]":
            self._take("]")
        else:
            separator = ","
            while separator == ",":
                self._peek()
                start = self.line
                item = self._take_item()
                separator = self._take(",]")
                yield start, item
        if character := self._peek():
            raise ValueError(f"found {character!r} after the array")

    def _read(self) -> bool:
        more = self.file.read(max(CHUNK, len(self.text) - self.position))
        self.text, self.position = self.text[self.position :] + more, 0
        return bool(more)

    def _move_to(self, position: int):
        self.line += self.text.count("\n", self.position, position)
        self.position = position

    def _peek(self) -> str:
        """Return the next character that is not white space, or an empty string at the end."""
        while True:
            self._move_to(WHITESPACE.match(self.text, self.position).end())  # type: ignore[union-attr]
            if self.position < len(self.text):
                return self.text[self.position]
            if not self._read():
                return ""

    def _take(self, characters: str) -> str:
        character = self._peek()
        if not character or character not in characters:
            expected = " or ".join(map(repr, characters))
            raise ValueError(f"expected {expected}, found {repr(character) if character else 'the end of the file'}")
        self.position += 1
        return character

    def _take_item(self) -> Any:
        while True:
            is_last_try = len(self.text) - self.position > MAX_LINE_BYTES
            try:
                item, end = DECODER.raw_decode(self.text, self.position)
                # More digits of a number may follow.
                if is_last_try or DELIMITER.match(self.text, end) or not self._read():
                    self._move_to(end)
                    return item
            except json.JSONDecodeError as error:
                if is_last_try or not self._read():
                    self._move_to(error.pos)
                    raise
