"""Rows of JSON files: lines, and arrays that are read as a stream."""

import io
import json
import re
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_xlm_swcm.corpora import json_rows
from modeling_xlm_swcm.corpora.bad_rows import BadRows, DataError
from modeling_xlm_swcm.corpora.json_rows import ArrayReader, read_json_rows


ROWS = [{"text": 'བོད "a" [b], {c}\n'}, {"text": "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")}]


def read(path, content: str | bytes, bad_rows: BadRows | None = None) -> list[tuple[str, dict]]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    collected = bad_rows or BadRows()
    rows = [(place.removeprefix(f"{path}:"), row) for place, row in read_json_rows(str(path), collected)]
    if bad_rows is None:
        collected.report()
    return rows


@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_objects_as_lines_and_as_arrays(tmp_path, ascii_only, mark, name):
    lines = "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in ROWS)
    assert read(tmp_path / name, mark + lines) == list(zip("12", ROWS, strict=True))
    for indent, places in ((None, "11"), (1, "25")):
        array = json.dumps(ROWS, ensure_ascii=ascii_only, indent=indent)
        assert read(tmp_path / name, f"{mark}{array}\n") == list(zip(places, ROWS, strict=True))


def test_strings_are_texts(tmp_path):
    assert read(tmp_path / "a.json", '["one",\n "two"]') == [("1", {"text": "one"}), ("2", {"text": "two"})]
    assert read(tmp_path / "a.jsonl", '"one"\n{"bo": "two"}\n') == [("1", {"text": "one"}), ("2", {"bo": "two"})]


@pytest.mark.parametrize("content", ["", "[]", "[ ]\n"])
def test_a_file_without_rows(tmp_path, content):
    assert read(tmp_path / "a.json", content, BadRows(allow_empty=True)) == []


def test_a_blank_line_is_an_empty_row(tmp_path):
    rows = read(tmp_path / "a.jsonl", '{"bo": "a"}\n \n{"bo": "b"}\n', BadRows(allow_empty=True))
    assert rows == [("1", {"bo": "a"}), ("2", {}), ("3", {"bo": "b"})]


BAD_ITEMS = {
    "3": "is not a JSON object (found type int)",
    "null": "is not a JSON object (found type NoneType)",
    "[1]": "is not a JSON object (found type list)",
    '{"text": "a", "b": 1, "text": "c"}': 'has the key "text" twice',
}


@pytest.mark.parametrize("item", BAD_ITEMS)
@pytest.mark.parametrize("as_array", [False, True])
def test_items_that_are_no_rows_are_named(tmp_path, item, as_array):
    path = tmp_path / "a.json"
    items = ['{"text": "x"}', item, '{"text": "y"}']
    bad_rows = BadRows(skip=True)
    rows = read(path, "[" + ",\n".join(items) + "]" if as_array else "\n".join(items), bad_rows)
    assert [row["text"] for _, row in rows] == ["x", "y"]
    assert bad_rows.named == [f"{path}:2 {BAD_ITEMS[item]}"]


@pytest.mark.parametrize("line", ['{"text": ', "text", "{'text': 'a'}", "[" * 10_000, '{"a": "\t"}', "9" * 5000])
def test_lines_that_are_not_json_are_named(tmp_path, line):
    bad_rows = BadRows(skip=True)
    assert len(read(tmp_path / "a.jsonl", f'{{"text": "x"}}\n{line}\n{{"text": "y"}}', bad_rows)) == 2
    assert bad_rows.named[0].startswith(f"{tmp_path / 'a.jsonl'}:2 is not a JSON object (")


def test_an_empty_line_is_an_empty_row(tmp_path):
    with pytest.raises(DataError, match=r"a\.jsonl:2 is empty\."):
        read(tmp_path / "a.jsonl", '{"text": "x"}\n\n{"text": "y"}\n')


@pytest.mark.parametrize(
    ("content", "place", "reason"),
    [
        ('["a"\n "b"]', 2, "expected ',' or ']', found '\"'"),
        ('["a",\n]', 2, "Expecting value"),
        ('["a",\n', 2, "Expecting value"),
        ('["a"\n', 2, "expected ',' or ']', found the end of the file"),
        ('["a"]\n["b"]', 2, "found '[' after the array"),
        ('[\n{"a": "b",\n "c" "d"}]', 3, "Expecting ':' delimiter"),
        ("[" * 10_000, 1, ""),
    ],
)
def test_an_array_that_is_damaged(tmp_path, content, place, reason):
    message = f"{tmp_path / 'a.json'}:{place} is not valid in a JSON array ({reason}"
    with pytest.raises(DataError, match=re.escape(message)):
        read(tmp_path / "a.json", content)


def test_an_array_that_is_not_utf_8(tmp_path):
    with pytest.raises(DataError, match=r"a\.json is not UTF-8 after line 1\. Convert the file with iconv"):
        read(tmp_path / "a.json", b'["caf\xe9"]')


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
    lambda children: st.lists(children) | st.dictionaries(st.text(st.characters(codec="utf-8")), children),
    max_leaves=8,
)


@given(st.lists(JSON_VALUES), st.integers(1, 20), st.sampled_from([None, 0, 2]))
def test_every_array_is_read_as_json_reads_it(values, chunk, indent):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rows, "CHUNK", chunk)
        text = json.dumps(values, indent=indent, ensure_ascii=False)
        items = list(ArrayReader(io.StringIO(text, newline="\n")).read_items())
    assert [item for _, item in items] == values
    if indent is None:
        assert {line for line, _ in items} <= {1}


def test_a_large_array_is_not_held(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": "a" * 1000}] * 8000))
    tracemalloc.start()
    assert sum(1 for _ in read_json_rows(str(path), BadRows())) == 8000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
