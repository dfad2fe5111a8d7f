"""Rows of files in every format: the same rows, the same errors, and the column of a language."""

import gzip
import json
import os
import re
import sys

import pyarrow
import pytest
from pyarrow import parquet
from support.corpus_files import write_lines, write_rows

from modeling_xlm_swcm.corpora.bad_rows import BadRows, DataError
from modeling_xlm_swcm.corpora.rows import check_columns, get_text, read_aligned, read_rows, stream_texts


ROWS = [{"zh": "我们", "bo": 'ང་ཚོ "a"'}, {"zh": "河边", "bo": "ཞོགས་པ"}, {"zh": "没有风", "bo": "b"}]
NAMES = ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet"]


def write(path, rows=ROWS) -> str:
    """Write rows in the format of the name, also as an array and compressed."""
    inner = path.with_name(path.name.removesuffix(".gz"))
    if inner.suffix == ".json":
        inner.write_text(json.dumps(rows, indent=1))
    else:
        write_rows(inner, rows)
    if path != inner:
        path.write_bytes(gzip.compress(inner.read_bytes()))
        inner.unlink()
    return str(path)


def read(path: str, **options) -> list[dict]:
    bad_rows = BadRows()
    rows = [row for _, row in read_rows(path, bad_rows, **options)]
    bad_rows.report()
    return rows


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("name", NAMES)
def test_every_format_has_the_same_rows(tmp_path, name, suffix):
    path = write(tmp_path / f"{name}{suffix}")
    assert read(path) == ROWS
    for language in ("zh", "bo"):
        assert [text for _, text in stream_texts(path, language, BadRows())] == [row[language] for row in ROWS]


@pytest.mark.parametrize("name", NAMES)
def test_the_column_text_is_of_any_language(tmp_path, name):
    path = write(tmp_path / name, [{"text": "a", "kk": "b"}])
    assert [[text for _, text in stream_texts(path, code, BadRows())] for code in ("bo", "kk")] == [["a"], ["b"]]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_without_the_column_lists_its_columns(tmp_path, name):
    path = write(tmp_path / name)
    message = f'{path} has no column "ug" or "text" (columns: zh, bo). Rename the column of the text.'
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        list(stream_texts(path, "ug", BadRows(skip=True)))


@pytest.mark.parametrize("name", ["bo.txt", "bo", "bo.txt.gz"])
def test_json_under_the_name_of_a_text_is_not_read_as_text(tmp_path, name):
    lines = tmp_path / "a.jsonl"
    write(lines)
    content = lines.read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(DataError, match=f"{name} holds JSON, not text. Give it a name that ends in .jsonl.$"):
        read(str(tmp_path / name))


@pytest.mark.parametrize("text", ["{}", '{"a"', "{a: 1}", "[1]", '"a"'])
def test_text_with_braces_is_text(tmp_path, text):
    assert read(write_lines(tmp_path / "a.txt", text)) == [{"text": text}]


def test_columns_may_be_nested_as_on_the_hub(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"translation": row} for row in ROWS])
    assert [text for _, text in stream_texts(path, "bo", BadRows())] == [row["bo"] for row in ROWS]


def test_a_pattern_names_all_its_files(tmp_path):
    for name, row in zip(("b.jsonl", "a.jsonl"), ROWS, strict=False):
        write(tmp_path / name, [row])
    assert read(f"{tmp_path}/*.jsonl") == [ROWS[1], ROWS[0]]
    with pytest.raises(DataError, match=re.escape(f"{tmp_path}/*.csv does not exist. Check the path.")):
        read(f"{tmp_path}/*.csv")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json.gz", "a.tsv", "a.parquet", "a.bz2"])
def test_a_file_that_is_missing(tmp_path, name):
    path = str(tmp_path / name)
    for rows in (read_rows(path, BadRows()), stream_texts(path, "bo", BadRows())):
        with pytest.raises(DataError, match=f"^{re.escape(path)} does not exist. Check the path.$"):
            list(rows)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "queue.txt")
    with pytest.raises(DataError, match=r"queue\.txt is not a regular file\. Pass a file\."):
        read(str(tmp_path / "queue.txt"))
    with pytest.raises(DataError, match=f"{tmp_path} is a folder. Pass a file, or a pattern such as {tmp_path}/\\*"):
        list(stream_texts(str(tmp_path), "bo", BadRows()))
    with pytest.raises(DataError, match="a.xlsx cannot be read, because .xlsx files are not supported"):
        read("a.xlsx")


class TestParquet:
    def write(self, path, table: pyarrow.Table) -> str:
        parquet.write_table(table, path)
        return str(path)

    def test_two_columns_of_one_name(self, tmp_path):
        table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
        with pytest.raises(DataError, match="has two columns named text"):
            read(self.write(tmp_path / "a.parquet", table))

    def test_values_that_are_no_texts(self, tmp_path):
        table = pyarrow.table({"text": pyarrow.array([b"a", None], pyarrow.binary())})
        bad_rows = BadRows()
        path = self.write(tmp_path / "a.parquet", table)
        assert [get_text(*row, "text", bad_rows) for row in read_rows(path, bad_rows)] == [None, None]
        assert bad_rows.named == [
            f'{path}, row 1, has no text in the column "text" (found type bytes)',
            f'{path}, row 2, is empty in the column "text"',
        ]

    @pytest.mark.parametrize("content", [b"", b"text", b"PAR1" + b"\0" * 40 + b"PAR1"])
    @pytest.mark.parametrize("name", ["a.parquet", "a.parquet.gz"])
    def test_a_damaged_file(self, tmp_path, content, name):
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        with pytest.raises(DataError, match=f"{re.escape(name)} cannot be read: "):
            read(str(tmp_path / name))

    def test_it_needs_pyarrow(self, tmp_path, monkeypatch):
        path = write(tmp_path / "a.parquet")
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(DataError, match=r"a\.parquet needs pyarrow\. Install it with pip install pyarrow\.$"):
            read(path)


def test_texts_with_nul_bytes_are_named(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", r'{"text": "a\u0000b"}')
    bad_rows = BadRows(can_skip=False)
    assert list(stream_texts(path, "bo", bad_rows)) == [(f"{path}:1", None)]
    message = r'a\.jsonl:1 contains NUL bytes in the column "text"\. Correct the data \(.*UTF-8\)\.$'
    with pytest.raises(DataError, match=message):
        bad_rows.report()


def test_a_row_that_lacks_the_column_is_named(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", '{"bo": "a"}', '{"zh": "b"}')
    bad_rows = BadRows()
    list(stream_texts(path, "bo", bad_rows))
    assert bad_rows.named == [f'{path}:2 has no column "text" (columns: zh)']


def test_a_text_as_a_header_is_cut_in_the_message(tmp_path):
    path = write_lines(tmp_path / "a.tsv", "\t".join(f"{number} {'word ' * 20}" for number in range(30)), "\t" * 29)
    with pytest.raises(DataError) as error:
        list(check_columns(path, read_rows(path, BadRows()), {"bo": "--source_lang"}))
    assert "(columns: 0 word word word word word word word wor..., 1 word" in str(error.value)
    assert "19 word" in str(error.value) and "20 word" not in str(error.value)


def test_parallel_lines_are_of_plain_text(tmp_path):
    paths = [write_lines(tmp_path / "a.txt", "a"), write(tmp_path / "b.jsonl")]
    with pytest.raises(
        DataError, match=r"b\.jsonl is not plain text\. Pass two text files with one text per line for"
    ):
        list(read_aligned(paths, BadRows()))


def test_only_the_first_line_of_a_parallel_file_has_a_byte_order_mark(tmp_path):
    paths = [write_lines(tmp_path / name, "\ufeffa\r", "\ufeffb") for name in ("a.zh", "a.bo")]
    assert [texts for _, texts in read_aligned(paths, BadRows())] == [["a", "a"], ["\ufeffb", "\ufeffb"]]


def test_empty_rows_may_be_allowed(tmp_path):
    path = write_lines(tmp_path / "a.csv", "zh,bo", "a,", "", ",b")
    bad_rows = BadRows(allow_empty=True)
    assert [text for _, text in stream_texts(path, "bo", bad_rows)] == [None, None, "b"]
    assert bad_rows.count == 0


def test_texts_may_come_from_a_queue():
    """A shell passes `<(zcat file.gz)` as an open queue."""
    reading, writing = os.pipe()
    os.write(writing, b"one\ntwo\n")
    os.close(writing)
    assert [text for _, text in stream_texts(f"/dev/fd/{reading}", "bo", BadRows())] == ["one", "two"]
    os.close(reading)


@pytest.mark.parametrize("read_path", [read_rows, lambda path, bad_rows: stream_texts(path, "bo", bad_rows)])
@pytest.mark.timeout(20)
def test_a_queue_without_a_writer_or_a_device_is_refused(tmp_path, read_path):
    os.mkfifo(tmp_path / "queue")
    for path in (str(tmp_path / "queue"), "/dev/zero"):
        with pytest.raises(DataError, match=f"^{path} is not a regular file. Pass a file.$"):
            list(read_path(path, BadRows()))


@pytest.mark.timeout(20)
def test_parallel_files_are_regular_files(tmp_path):
    write_lines(tmp_path / "a.txt", "a")
    os.mkfifo(tmp_path / "b.txt")
    with pytest.raises(DataError, match=f"^{tmp_path / 'b.txt'} is not a regular file. Pass a file.$"):
        list(read_aligned([str(tmp_path / "a.txt"), str(tmp_path / "b.txt")], BadRows()))
