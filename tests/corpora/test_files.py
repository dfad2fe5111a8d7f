"""Formats by their endings, compression, and lines that are not text."""

import bz2
import gzip
import io
import lzma
import os
import re
import tracemalloc

import pytest

from modeling_xlm_swcm.corpora import files
from modeling_xlm_swcm.corpora.bad_rows import BadRows, DataError
from modeling_xlm_swcm.corpora.files import REFUSED, find_files, open_file, open_lines, read_plain_text, split_lines


def read(path) -> list[str]:
    bad_rows = BadRows()
    texts = [text for _, text in read_plain_text(str(path), open_lines(str(path)), bad_rows)]
    bad_rows.report()
    return texts


@pytest.mark.parametrize(
    ("name", "compress"),
    [("a.txt", bytes), ("a.txt.gz", gzip.compress), ("a.BZ2", bz2.compress), ("a.txt.xz", lzma.compress)],
)
def test_lines_of_a_compressed_file(tmp_path, name, compress):
    path = tmp_path / name
    path.write_bytes(compress("\ufeffone\r\n\n two \nབོད\u2028\x0c\x85\n\ufeffend".encode()))
    assert read(path) == ["one", "", " two ", "བོད\u2028\x0c\x85", "\ufeffend"]


@pytest.mark.parametrize("name", ["a.txt.gz", "a.bz2", "a.xz"])
@pytest.mark.parametrize("content", [b"plain text\n", b""], ids=["plain", "empty"])
def test_a_file_that_is_not_compressed_as_its_name_says(tmp_path, name, content):
    (tmp_path / name).write_bytes(content or gzip.compress(b"a" * 99)[:20])
    with pytest.raises(DataError, match=f"{re.escape(name)} cannot be read: .*[^.]\\. Check the file\\.$"):
        read(tmp_path / name)


@pytest.mark.parametrize("suffix", [suffix for suffixes in REFUSED.values() for suffix in suffixes])
def test_a_format_that_is_not_supported_is_refused_by_name(tmp_path, suffix):
    path = tmp_path / f"a{suffix.upper()}"
    path.write_text("text\n")
    message = f"{path} cannot be read, because {suffix} files are not supported. "
    with pytest.raises(DataError, match=f"^{re.escape(message)}(Decompress|Convert) it"):
        read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text\n".encode("utf-16"), "is UTF-16, not UTF-8. Convert the file with iconv -f UTF-16 -t UTF-8."),
        (b"\xfe\xff" + "text\n".encode("utf-16-be"), "is UTF-16, not UTF-8."),
        ("text\n".encode("utf-32"), "is UTF-32, not UTF-8. Convert the file with iconv -f UTF-32 -t UTF-8."),
        (gzip.compress(b"text\n", mtime=0), "holds .gz data, not text. Rename or convert the file."),
        (bz2.compress(b"text\n"), "holds .bz2 data, not text."),
        (lzma.compress(b"text\n"), "holds .xz data, not text."),
        (b"\x28\xb5\x2f\xfd\x04", "holds .zst data, not text."),
        (b"PK\3\4\x14\0", "holds .zip data, not text."),
        (b"PAR1\x15\x04", "holds .parquet data, not text."),
        (b"%PDF-1.4\n", "holds .pdf data, not text."),
        (b'<?xml version="1.0"?>\n', "holds .xml data, not text."),
        (b"<!DOCTYPE html>\n", "holds .html data, not text."),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl.gz"])
def test_a_file_that_holds_something_else_is_named(tmp_path, content, message, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(DataError, match=f"^{re.escape(f'{path} {message}')}"):
        read(path)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"caf\xe9", "is not UTF-8"),
        (b"a\0b", "contains NUL bytes"),
        (b"one\rtwo", "contains a carriage return inside the line"),
        (b"a" * 101, "is longer than 16 MiB"),
    ],
)
def test_a_line_that_is_not_text_is_named(tmp_path, monkeypatch, line, reason):
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 100)
    path = tmp_path / "a.txt"
    path.write_bytes(b"first\n" + line + b"\n" + b"b" * 99 + b"\n")
    with pytest.raises(DataError, match=f"^1 row cannot be used: {path}:2 {reason}\\. Correct the data"):
        read(path)
    bad_rows = BadRows(skip=True)
    places = [place for place, _ in read_plain_text(str(path), open_lines(str(path)), bad_rows)]
    assert (places, bad_rows.count) == ([f"{path}:1", f"{path}:3"], 1)


def test_an_endless_line_takes_no_memory(monkeypatch):
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 2**16)

    class Endless(io.RawIOBase):
        left = 2**24

        def readable(self):
            return True

        def readinto(self, buffer):
            count = min(len(buffer), self.left)
            buffer[:count] = b"a" * count
            self.left -= count
            return count

    tracemalloc.start()
    lines = [len(line) for line in split_lines(io.BufferedReader(Endless()))]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert lines == [2**16 + 1] and peak < 2**19


def test_patterns_name_files_in_order(tmp_path):
    for name in ("b.txt", "a.txt", "[c].txt"):
        (tmp_path / name).write_text("")
    (tmp_path / "d.txt").mkdir()
    assert find_files(f"{tmp_path}/*.txt") == [f"{tmp_path}/{name}" for name in ("[c].txt", "a.txt", "b.txt")]
    assert find_files(f"{tmp_path}/[c].txt") == [f"{tmp_path}/[c].txt"]
    assert find_files(f"{tmp_path}/*.jsonl") == []


def test_a_path_that_the_system_refuses():
    with pytest.raises(DataError, match=f"^{'a' * 100} cannot be read: File name too long"):
        find_files("a" * 300)
    assert find_files("a\0b") == []


def test_a_file_without_permission(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setitem(files.COMPRESSED, ".gz", refuse)
    with (
        pytest.raises(DataError, match=r"a\.gz cannot be read: Permission denied\. Check the file\."),
        open_file(str(tmp_path / "a.gz")),
    ):
        pass
