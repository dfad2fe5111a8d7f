"""Rows of .csv and .tsv files."""

import csv
import itertools
import re
from collections import Counter, deque
from collections.abc import Iterator

from .bad_rows import EMPTY, TO_UTF8, BadRows, DataError
from .files import MAX_LINE_BYTES, decode_line, number_lines, open_lines, strip_line_break, suffix_of


QUOTED = re.compile(r'"([^"]*(?:""[^"]*)*)"')
FIELD = rf'(?:{QUOTED.pattern}|[^"\t\r\n]*)'
RECORD = re.compile(rf"{FIELD}(?:\t{FIELD})*")
FIELDS = re.compile(rf"(?:(?<=\t)|\A){FIELD}")
# A line with a quoted last field that continues in the next line.
OPEN = re.compile(rf'(?:{FIELD}\t)*"[^"]*(?:""[^"]*)*')
# pandas and Excel quote a field that is empty or has one of these characters. Excel also quotes commas.
REASONS = re.compile(r'["\t\r\n]|\A\Z')
EXCEL_REASONS = re.compile(r'["\t\r\n,]|\A\Z')

SEPARATORS = {"\t": "a tab", ",": "a comma", ";": "a semicolon", "|": "a vertical bar"}

Line = tuple[int, str]
Record = tuple[int, list[str]]


def read_table(path: str, bad_rows: BadRows) -> Iterator[tuple[str, dict[str, str]]]:
    """
    Stream the place and fields of each row of a .csv or .tsv file.

    The place of a row is its last line. A .csv file is read as Excel and pandas write it. In a .tsv file, a quote mark
    is text, unless Excel or pandas could have written the field:
    - The field starts and ends with a quote mark, and all quote marks inside are doubled.
    - The field has a reason for quotes: it is empty, or it has a tab, line break or quote mark inside. A comma is also
      a reason if all fields of the file with a comma are quoted, as Excel writes them.

    If all names in the header of a .tsv file are quoted, the file is read as a .csv file with tabs.

    Raises:
        DataError: if the header cannot be used, or the file cannot be read.
    """
    raw = open_lines(path)
    first = next(raw, None)
    if first is None:
        return
    try:
        line = decode_line(first, is_first=True)
    except ValueError as error:
        raise DataError(f"The header of {path} {error}. Convert the file with {TO_UTF8}.") from error
    if not line:  # only a byte order mark
        return
    lines = itertools.chain([(1, line)], number_lines(path, raw, bad_rows, start=2))
    is_tsv = suffix_of(path) != ".csv"
    if is_tsv and not all(map(QUOTED.fullmatch, split_tabs(line))):
        records = read_tsv(path, lines, bad_rows)
    else:
        records = read_csv(path, lines, bad_rows, "\t" if is_tsv else ",")
    header: list[str] = []
    for number, fields in records:
        if not header:
            header = check_header(path, fields)
            check_separator(path, header, "\t" if is_tsv else ",")
        elif len(fields) == len(header):
            yield f"{path}:{number}", dict(zip(header, fields, strict=True))
        elif not any(fields):
            if bad_rows.allow_empty:
                yield f"{path}:{number}", dict.fromkeys(header, "")
            bad_rows.reject(f"{path}:{number}", EMPTY)
        else:
            counts = f" ({len(fields)} instead of {len(header)})"
            bad_rows.reject(f"{path}:{number}", "has a wrong number of columns", counts)


def check_header(path: str, names: list[str]) -> list[str]:
    """Return the column names of a table. Raise a [`DataError`] if a table has no names or equal names."""
    if not any(name.strip() for name in names):
        raise DataError(f"The header of {path} is empty. Write the names of the columns in the first line.")
    if repeated := [name for name, count in Counter(names).items() if name and count > 1]:
        raise DataError(f"{path} has two columns named {repeated[0]}. Rename one of them.")
    return names


def check_separator(path: str, names: list[str], expected: str):
    """Raise a [`DataError`] if the only name in a header seems to be several names with another separator."""
    found = next((mark for mark in SEPARATORS if mark != expected and mark in names[0]), None)
    if len(names) == 1 and found:
        raise DataError(
            f'The separator of {path} seems to be {SEPARATORS[found]} (header: "{names[0]}"). Save the file with '
            f"{SEPARATORS[expected]} between the columns."
        )


def read_csv(path: str, lines: Iterator[Line], bad_rows: BadRows, delimiter: str) -> Iterator[Record]:
    """Stream the fields of each row with the number of its last line."""
    csv.field_size_limit(MAX_LINE_BYTES)
    numbers: list[int] = []

    def texts() -> Iterator[str]:
        for number, text in lines:
            numbers.append(number)
            yield text

    # Without strict, all rows after an unclosed quote become part of its field.
    rows = csv.reader(texts(), delimiter=delimiter, strict=True)
    before = 0
    while True:
        numbers.clear()
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            if not before:
                raise DataError(f"The header of {path} is not valid CSV: {error}. Correct the first line.") from error
            if str(error) == "unexpected end of data":
                raise DataError(
                    f"{path}: the row after line {before} has a quote mark that is not closed until the end of the "
                    'file. Close it, or write a quote mark of the text as two inside quotes ("").'
                ) from error
            lost = numbers[-1] - before
            details = f" ({error}; it has {lost} lines and starts after {path}:{before})"
            bad_rows.reject(f"{path}:{numbers[-1]}", "ends a row that is not valid CSV", details)
        else:
            # A line inside the row that is not text was rejected, so the row is not whole.
            if numbers[-1] - numbers[0] + 1 == len(numbers):
                yield numbers[-1], row
        before = numbers[-1]


def split_tabs(line: str) -> list[str]:
    """Return the fields of a line without its line break."""
    return line.rstrip("\r\n").split("\t")


def read_tsv(path: str, lines: Iterator[Line], bad_rows: BadRows) -> Iterator[Record]:
    """Stream the fields of each row with the number of its last line, and decide for each field if it is quoted."""
    reasons: re.Pattern | None = None
    for index, (number, fields) in enumerate(split_records(lines)):
        try:
            if reasons is None and any(QUOTED.fullmatch(field) for field in fields):
                reasons = EXCEL_REASONS if quotes_commas(path) else REASONS
            yield number, [unquote(field, reasons) for field in fields]
        except ValueError as error:
            if index == 0:
                raise DataError(f"The header of {path} {error}. Correct the first line.") from error
            bad_rows.reject(f"{path}:{number}", str(error))


def quotes_commas(path: str) -> bool:
    """Return True if all fields of a .tsv file with a comma are quoted, as Excel writes them."""
    records = split_records(number_lines(path, open_lines(path), BadRows(skip=True)))
    return not any("," in field and field[0] != '"' for _, fields in records for field in fields)


def unquote(field: str, reasons: re.Pattern | None) -> str:
    """Return the text of a field of a .tsv file: without quotes if something inside it is a reason for quotes."""
    if reasons and (quoted := QUOTED.fullmatch(field)) and reasons.search(quoted[1]):
        return quoted[1].replace('""', '"')
    return strip_line_break(field)


def split_records(lines: Iterator[Line]) -> Iterator[Record]:
    """Stream the fields of each row of a .tsv file as they are written, with the number of its last line."""
    ahead: deque[Line] = deque()
    columns = 0
    while line := ahead.popleft() if ahead else next(lines, None):
        record = None
        if columns and '"' in line[1]:
            record = complete_record(line, lines, ahead, columns)
        number, fields = record or (line[0], split_tabs(line[1]))
        columns = columns or len(fields)
        yield number, fields


def complete_record(line: Line, lines: Iterator[Line], ahead: deque[Line], columns: int) -> Record | None:
    """
    Return the row that starts in a line if its quoted fields contain tabs or line breaks, or else `None`.

    Lines that are read to decide it and are not part of the row stay in `ahead`.
    """
    parts = [line]
    if is_odd(line[1]):
        if not OPEN.fullmatch(line[1]):
            return None
        parts += find_end(line, lines, ahead)
    are_rows = all(len(split_tabs(text)) == columns for _, text in parts)
    record = "".join(text for _, text in parts).rstrip("\r\n")
    if (are_rows and (columns > 1 or len(parts) == 1)) or not RECORD.fullmatch(record):
        return None
    fields = [match[0] for match in FIELDS.finditer(record)]
    if len(fields) != columns:
        return None
    for _ in parts[1:]:
        ahead.popleft()
    return parts[-1][0], fields


def is_odd(text: str) -> bool:
    """Return True if a quoted field starts in `text` and does not end there."""
    return text.count('"') % 2 == 1


def find_end(line: Line, lines: Iterator[Line], ahead: deque[Line]) -> list[Line]:
    """Return the lines up to the next one with an odd number of quote marks, or an empty list if there is none."""
    number, size, parts = line[0], len(line[1]), []
    for following in itertools.chain(list(ahead), copy_to(ahead, lines)):
        number, size = number + 1, size + len(following[1])
        if following[0] != number or size > MAX_LINE_BYTES:
            break
        parts.append(following)
        if is_odd(following[1]):
            return parts
    return []


def copy_to(ahead: deque[Line], lines: Iterator[Line]) -> Iterator[Line]:
    """Yield lines, and append each line to `ahead`."""
    for line in lines:
        ahead.append(line)
        yield line
