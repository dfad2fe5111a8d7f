"""Rows of .csv and .tsv files: quotes, tabs and line breaks inside a field, headers, and rows that cannot be used."""

import csv
import re
from pathlib import Path

import pandas
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from modeling_xlm_swcm.corpora import tables
from modeling_xlm_swcm.corpora.bad_rows import BadRows, DataError
from modeling_xlm_swcm.corpora.tables import read_table


# Characters that mean something in a table, and some that do not.
CELL = st.text("\"\t\n\r, '\\aབ\u2028\x0c", max_size=8)
QUIET = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)


def read(path: Path, content: str | None = None) -> list[list[str]]:
    """Return the cells of each row, without the header."""
    if content is not None:
        path.write_bytes(content.encode())
    bad_rows = BadRows()
    rows = [list(row.values()) for _, row in read_table(str(path), bad_rows)]
    bad_rows.report()
    return rows


def write(path: Path, rows: list[list[str]], header: list[str], **options) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, **{"delimiter": "\t", "lineterminator": "\r\n"} | options).writerows([header, *rows])
    return path.read_bytes().decode()


def are_plain_rows(content: str, columns: int) -> bool:
    """Return True if a quoted field with a line break cannot be told from several plain rows."""
    lines = content.split("\n")[1:-1]
    return columns > 1 and any(
        "\t".join(lines[start : start + 2]).count("\t") == 2 * columns - 1
        and lines[start].count("\t") == lines[start + 1].count("\t")
        for start in range(len(lines) - 1)
        if lines[start].count('"') % 2
    )


class TestTSV:
    @pytest.mark.parametrize(
        ("written", "read_as"),
        [
            ('"He said ""hello"""', 'He said "hello"'),
            ('"""Hello"""', '"Hello"'),
            ('""', ""),
            ('""""', '"'),
            # pandas and Excel do not write these fields.
            ('"', '"'),
            ('"Hello."', '"Hello."'),
            ('"Hello, he said.', '"Hello, he said.'),
            ('He said, "Hello."', 'He said, "Hello."'),
            ('5" pipe', '5" pipe'),
            ('"Yes," he said, "no."', '"Yes," he said, "no."'),
            ('""Hello""', '""Hello""'),
            ('"a"b"', '"a"b"'),
            ('"a""', '"a""'),
            ("'a'", "'a'"),
            ("a\\tb", "a\\tb"),
        ],
    )
    @pytest.mark.parametrize("end", ["\n", "\r\n"])
    def test_a_field_is_quoted_if_pandas_or_excel_could_have_written_it(self, tmp_path, written, read_as, end):
        content = end.join(["zh\tbo", f"{written}\tx", f"x\t{written}", "y\tz", ""])
        assert read(tmp_path / "a.tsv", content) == [[read_as, "x"], ["x", read_as], ["y", "z"]]
        assert read(tmp_path / "b.tsv", end.join(["text", written, "y"])) == [[read_as], ["y"]]

    def test_commas_are_a_reason_for_quotes_in_files_of_excel(self, tmp_path):
        excel = 'zh\tbo\n"a, b"\tx\n"c"\t"d ""e"", f"\n'
        assert read(tmp_path / "a.tsv", excel) == [["a, b", "x"], ['"c"', 'd "e", f']]
        other = excel + "x\tg, h\n"
        assert read(tmp_path / "a.tsv", other) == [['"a, b"', "x"], ['"c"', 'd "e", f'], ["x", "g, h"]]

    def test_all_fields_are_quoted_if_the_header_is(self, tmp_path):
        rows = [["Hello.", 'He said "hello"'], ["a\tb", "c\nd"], ["", "e"]]
        content = write(tmp_path / "a.tsv", rows, ["zh", "bo"], quoting=csv.QUOTE_ALL)
        assert content.startswith('"zh"\t"bo"\r\n"Hello."\t"He said ""hello"""')
        assert read(tmp_path / "a.tsv") == rows

    @pytest.mark.parametrize("name", ["a.tsv", "a.tab", "a.csv"])
    @pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC])
    def test_what_pandas_writes(self, tmp_path, name, quoting):
        texts = ['He said "hello"', "one\ttab", "two\nlines", 'three\n\nlines "here"', "plain", '"', "a, b", "བོད"]
        frame = pandas.DataFrame({"zh": texts, "bo": texts[::-1]})
        separator = "," if name == "a.csv" else "\t"
        frame.to_csv(tmp_path / name, sep=separator, index=False, quoting=quoting)
        assert read(tmp_path / name) == frame.values.tolist()
        frame[["zh"]].to_csv(tmp_path / name, sep=separator, index=False, quoting=quoting)
        assert read(tmp_path / name) == frame[["zh"]].values.tolist()

    @given(st.integers(1, 3).flatmap(lambda columns: st.lists(st.lists(CELL, min_size=columns, max_size=columns))))
    @example([["a\n\nb"], ["\r"], ["\r\n"]])
    @example([["\t", "\n"], ['"\n"', '\t"']])
    @QUIET
    def test_what_csv_writes(self, tmp_path, rows):
        header = ["a", "b", "c"][: len(rows[0]) if rows else 1]
        content = write(tmp_path / "a.tsv", rows, header)
        assume(not are_plain_rows(content, len(header)))
        assert read(tmp_path / "a.tsv") == rows
        write(tmp_path / "a.tsv", rows, header, quoting=csv.QUOTE_ALL)
        assert read(tmp_path / "a.tsv") == rows
        write(tmp_path / "a.csv", rows, header, delimiter=",")
        assert read(tmp_path / "a.csv") == rows

    @given(st.lists(st.lists(st.text("\"', aབ", min_size=1, max_size=8), min_size=2, max_size=2)))
    @example([['"a', "b"], ["c", 'd"']])
    @example([["a", '"b'], ["c", 'd"']])
    @QUIET
    def test_plain_fields_keep_their_quote_marks(self, tmp_path, rows):
        assume(not any(re.fullmatch(r'"(?:[^"]|"")*"', cell) for row in rows for cell in row))
        content = "".join("\t".join(row) + "\n" for row in [["zh", "bo"], *rows])
        assert read(tmp_path / "a.tsv", content) == rows

    def test_lines_with_the_right_number_of_columns_are_rows(self, tmp_path):
        content = 'zh\tbo\na\t"Hello.\nb\tYes?\nc\tBye."\n'
        assert read(tmp_path / "a.tsv", content) == [["a", '"Hello.'], ["b", "Yes?"], ["c", 'Bye."']]

    def test_a_quote_that_is_never_closed_takes_in_no_lines(self, tmp_path, monkeypatch):
        lines = ['"open', *(f"line {number}" for number in range(9)), '"open again', 'said "so"', "end"]
        assert read(tmp_path / "a.tsv", "\n".join(["text", *lines])) == [[line] for line in lines]
        lines = [*lines[:10], 'closed"']
        assert read(tmp_path / "a.tsv", "\n".join(["text", *lines])) == [["\n".join(lines)[1:-1]]]
        monkeypatch.setattr(tables, "MAX_LINE_BYTES", 40)
        assert read(tmp_path / "a.tsv", "\n".join(["text", *lines])) == [[line] for line in lines]

    def test_a_row_of_several_lines_is_named_by_its_last(self, tmp_path):
        path = tmp_path / "a.tsv"
        path.write_text('zh\tbo\n"one\ntwo"\ta\n"a\tb"\tc\nd\n', encoding="utf-8")
        bad_rows = BadRows()
        assert list(read_table(str(path), bad_rows)) == [
            (f"{path}:3", {"zh": "one\ntwo", "bo": "a"}),
            (f"{path}:4", {"zh": "a\tb", "bo": "c"}),
        ]
        assert bad_rows.named == [f"{path}:5 has a wrong number of columns (1 instead of 2)"]


HEADERS = {
    "b\xffc": "is not UTF-8. Convert the file with iconv",
    "a\0b": "contains NUL bytes. Convert the file with iconv",
    "": "is empty. Write the names of the columns in the first line.",
    " , ": "is empty. Write the names of the columns in the first line.",
    'zh,"bo': "is not valid CSV: unexpected end of data. Correct the first line.",
    "zh,bo\rx,y": "is not valid CSV: new-line character seen in unquoted field",
}


@pytest.mark.parametrize("content", HEADERS)
def test_a_header_that_cannot_be_used(tmp_path, content):
    (tmp_path / "a.csv").write_bytes(content.encode("latin-1") + b"\nx,y\n")
    with pytest.raises(DataError, match=re.escape(f"The header of {tmp_path / 'a.csv'} {HEADERS[content]}")):
        read(tmp_path / "a.csv")


def test_a_header_of_an_old_mac(tmp_path):
    with pytest.raises(DataError, match=r"The header of .*a\.tsv contains a carriage return inside the line\."):
        read(tmp_path / "a.tsv", "zh\tbo\rx\ty\r")


@pytest.mark.parametrize(("name", "content"), [("a.csv", "a,b,a\nx,y,z\n"), ("a.tsv", '"a, b"\t"a, b"\n')])
def test_two_columns_of_one_name(tmp_path, name, content):
    with pytest.raises(DataError, match=f"{name} has two columns named a.*\\. Rename one of them\\."):
        read(tmp_path / name, content)


@pytest.mark.parametrize("content", ["", "\ufeff", "a,b\n"])
def test_a_table_without_rows(tmp_path, content):
    assert read(tmp_path / "a.csv", content) == []


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("a.csv", "a,b\nx,y\nx\nx,y,z\nx,y\n", ["3 has a wrong number of columns (1 instead of 2)", "4 has a wrong"]),
        ("a.csv", "a,b\nx,y\n\nx,y\n", ["3 is empty"]),
        ("a.tsv", "a\tb\nx\ty\n\nx\ty\n", ["3 is empty"]),
        ("a.tsv", "a\tb\nx\ty\nx\ry\tz\nx\ty\n", ["3 contains a carriage return inside the line"]),
        # A row with a line that is not UTF-8 is not whole.
        ("a.csv", 'a,b\nx,y\n"x\n\udcff\nz",y\nx,y\n', ["4 is not UTF-8"]),
    ],
)
def test_rows_that_cannot_be_used(tmp_path, name, content, named):
    path = tmp_path / name
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    bad_rows = BadRows()
    rows = [list(row.values()) for _, row in read_table(str(path), bad_rows)]
    assert rows == [["x", "y"], ["x", "y"]]
    assert len(bad_rows.named) == len(named)
    assert all(found.startswith(f"{path}:{place}") for found, place in zip(bad_rows.named, named, strict=True))


def test_a_field_that_never_ends_takes_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MAX_LINE_BYTES", 1000)
    path = tmp_path / "a.csv"
    path.write_text('text\n"open\n' + "line\n" * 1000 + "end\n")
    bad_rows = BadRows()
    rows = list(read_table(str(path), bad_rows))
    assert bad_rows.count == 1 and "field larger than field limit (1000)" in bad_rows.named[0]
    assert len(rows) > 700


@pytest.mark.parametrize(
    ("name", "header", "message"),
    [
        ("a.csv", "zh;bo", 'seems to be a semicolon (header: "zh;bo"). Save the file with a comma between'),
        ("a.csv", "zh\tbo", "seems to be a tab "),
        ("a.tsv", "zh,bo", 'seems to be a comma (header: "zh,bo"). Save the file with a tab between'),
    ],
)
def test_another_separator_is_named(tmp_path, name, header, message):
    with pytest.raises(DataError, match=re.escape(message)):
        read(tmp_path / name, f"{header}\n")


def test_a_column_with_a_semicolon_beside_another_column_is_a_name(tmp_path):
    assert read(tmp_path / "a.csv", "zh;bo,text\nx,y\n") == [["x", "y"]]
