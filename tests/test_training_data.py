"""Rows of every format become examples; rows that cannot are named and counted; corpora become one mixture."""

import csv
import gzip
import itertools
import json
import math
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow
import pytest
import torch
import yaml
from encoders import xlm_roberta_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from modeling_xlm_swcm import XLMSWCMTokenizer
from modeling_xlm_swcm.training import rows as data
from modeling_xlm_swcm.training.denoising import PieceTables
from modeling_xlm_swcm.training.examples import Pair, cut, encode_pairs
from modeling_xlm_swcm.training.mixture import Corpus, Mixture, load_corpora
from modeling_xlm_swcm.training.rows import BadRows, DataError, read_rows


ZH = ["我们早上去了河边。", "没有风。", "河边没有我们。"]
UG = ["بىز دەريا بويىغا باردۇق.", "شامال يوق.", 'بۈگۈن "ھاۋا" ئوچۇق.']


@pytest.fixture(scope="module")
def tokenizer() -> XLMSWCMTokenizer:
    encoder = xlm_roberta_tokenizer(*"0123456789W")
    return XLMSWCMTokenizer(
        tokenizer_object=encoder.backend_tokenizer, languages=["zh", "ug", "en"], **encoder.special_tokens_map
    )


@pytest.fixture(scope="module")
def tables(tokenizer) -> PieceTables:
    return PieceTables(tokenizer)


def write_rows(path: Path, rows: list[dict]) -> str:
    """A file of the format that its name tells."""
    suffix = path.name.removesuffix(".gz").split(".")[-1]
    if suffix == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return str(path)
    with (
        gzip.open(path, "wt", encoding="utf-8") if path.suffix == ".gz" else open(path, "w", encoding="utf-8") as file
    ):
        if suffix == "jsonl":
            file.writelines(json.dumps(row) + "\n" for row in rows)
        elif suffix == "csv":
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        elif suffix == "tsv":
            file.writelines("\t".join(row) + "\n" for row in [rows[0], *(row.values() for row in rows)])
        else:
            file.writelines(row["text"] + "\n" for row in rows)
    return str(path)


def write_lines(path: Path, *lines: str | bytes) -> str:
    path.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines))
    return str(path)


def read_all(corpus: Corpus, tokenizer, tables, bad_rows=None, max_length=64) -> list[dict]:
    bad_rows = bad_rows or BadRows()
    examples = list(corpus.read(tokenizer, max_length, tables, bad_rows))
    bad_rows.report()
    return examples


class TestFormats:
    NAMES = ["a.jsonl", "a.jsonl.gz", "a.csv", "a.csv.gz", "a.tsv", "a.parquet"]

    @pytest.mark.parametrize("name", [*NAMES, "a.txt", "a.txt.gz"])
    def test_monolingual_text(self, tmp_path, tokenizer, tables, name):
        path = write_rows(tmp_path / name, [{"text": text} for text in UG])
        tokenizer.src_lang = "ug"
        expected = [{"input_ids": ids} for ids in tokenizer(UG)["input_ids"]]
        assert read_all(Corpus(path, language="ug"), tokenizer, tables) == expected

    @pytest.mark.parametrize("name", NAMES)
    def test_pairs_in_both_directions(self, tmp_path, tokenizer, tables, name):
        path = write_rows(tmp_path / name, [{"zh": zh, "ug": ug} for zh, ug in zip(ZH, UG, strict=True)])
        examples = read_all(Corpus(path, languages=["zh", "ug"]), tokenizer, tables)
        self.assert_both_directions(examples, tokenizer)

    def test_pairs_in_two_text_files(self, tmp_path, tokenizer, tables):
        paths = [write_lines(tmp_path / "a.zh", *ZH), write_rows(tmp_path / "a.ug.gz", [{"text": ug} for ug in UG])]
        examples = read_all(Corpus(paths, languages=["zh", "ug"]), tokenizer, tables)
        self.assert_both_directions(examples, tokenizer)

    def test_pairs_nested_as_on_the_hub(self, tmp_path, tokenizer, tables):
        rows = [{"translation": {"zh": zh, "ug": ug}} for zh, ug in zip(ZH, UG, strict=True)]
        path = write_rows(tmp_path / "a.jsonl", rows)
        self.assert_both_directions(read_all(Corpus(path, languages=["zh", "ug"]), tokenizer, tables), tokenizer)

    def assert_both_directions(self, examples, tokenizer):
        expected = []
        for zh, ug in zip(ZH, UG, strict=True):
            for (source, src_lang), (target, tgt_lang) in itertools.permutations([(zh, "zh"), (ug, "ug")]):
                tokenizer.src_lang, tokenizer.tgt_lang = src_lang, tgt_lang
                expected.append(dict(tokenizer(source, text_target=target, return_attention_mask=False)))
        assert examples == expected

    def test_a_dataset_by_its_id(self, tmp_path, tokenizer, tables, monkeypatch):
        (tmp_path / "somebody" / "corpus").mkdir(parents=True)
        write_rows(tmp_path / "somebody" / "corpus" / "train.jsonl", [{"text": text} for text in UG])
        monkeypatch.chdir(tmp_path)
        assert len(read_all(Corpus("somebody/corpus", language="ug"), tokenizer, tables)) == 3

    def test_a_dataset_of_the_hub(self, hub, client, tmp_path):
        rows = [{"translation": {"zh": zh, "ug": ug}} for zh, ug in zip(ZH, UG, strict=True)]
        for split, part in {"train": rows, "validation": rows[:1]}.items():
            write_rows(tmp_path / f"{split}.jsonl", part)
        hub.add("somebody/corpus", tmp_path)
        code = "from modeling_xlm_swcm.training.rows import BadRows, read_rows\n"
        code += "print(list(read_rows('somebody/{}', BadRows(), split='{}')))"
        expected = [(f"somebody/corpus, row {number} of train,", row) for number, row in enumerate(rows, 1)]
        assert eval(client.run(code.format("corpus", "train"))["printed"]) == expected
        assert len(eval(client.run(code.format("corpus", "validation"))["printed"])) == 1
        failure = "DataError: somebody/{} is no file, and the dataset cannot be loaded from the Hub: "
        for name, split, reason in (("corpus", "test", "Bad split: test"), ("nothing", "train", "Dataset ")):
            assert failure.format(name) + reason in client.run(code.format(name, split))["error"]

    def test_patterns_are_read_in_order(self, tmp_path):
        for number in (2, 1, 3):
            write_lines(tmp_path / f"{number}.txt", "a")
        assert Corpus(str(tmp_path / "*.txt"), language="ug").files == [str(tmp_path / f"{n}.txt") for n in (1, 2, 3)]

    def test_what_is_beside_the_nesting_counts_first(self):
        row = {"text": "a", "translation": {"text": "b", "en": "c"}}
        assert [data.get_text("", row, column, BadRows()) for column in ("text", "en")] == ["a", "c"]

    def test_a_column_may_have_the_name_of_the_nesting(self, tmp_path, tokenizer, tables):
        path = write_rows(tmp_path / "a.csv", [{"translation": text} for text in UG])
        assert len(read_all(Corpus(path, language="ug", column="translation"), tokenizer, tables)) == 3

    def test_a_row_of_several_lines_is_named_by_its_last(self, tmp_path):
        path = write_lines(tmp_path / "a.csv", "text", '"one', 'two"', "three")
        assert list(read_rows(path, BadRows())) == [
            (f"{path}:3", {"text": "one\ntwo"}),
            (f"{path}:4", {"text": "three"}),
        ]

    def test_a_byte_order_mark_is_no_text(self, tmp_path):
        path = write_lines(tmp_path / "a.csv", b"\xef\xbb\xbftext", "one")
        assert list(read_rows(path, BadRows())) == [(f"{path}:2", {"text": "one"})]


BAD_ROWS = {
    "no column": ("a.jsonl", ['{"title": "x"}'], 2, 'has no column "text" (it has: title)'),
    "null": ("a.jsonl", ['{"text": null}'], 2, 'is empty in the column "text"'),
    "no text": ("a.jsonl", ['{"text": 3}'], 2, 'has no text in the column "text" but a value of type int'),
    "half a character": ("a.jsonl", [r'{"text": "\ud800 a"}'], 2, 'has no UTF-8 text in the column "text" but the '),
    "no JSON": ("a.jsonl", ['{"text": '], 2, "is not a JSON object"),
    "no object": ("a.jsonl", ["[1]"], 2, "is not a JSON object"),
    "empty": ("a.txt", [""], 2, 'is empty in the column "text"'),
    "blank": ("a.txt", ["  "], 2, 'is empty in the column "text"'),
    "no UTF-8": ("a.txt", [b"caf\xe9"], 2, "is not UTF-8"),
    "NUL bytes": ("a.txt", [b"a\0b"], 2, "holds NUL bytes"),
    "JSON that never ends": ("a.jsonl", [b"[" * 100_000], 2, "is not a JSON object"),
    "no UTF-8 in a table": ("a.csv", [b"caf\xe9"], 3, "is not UTF-8"),
    "a quote inside": ("a.csv", ['"one" two'], 3, "ends a row that is not CSV (',' expected after '\"'"),
    "a carriage return inside": ("a.csv", ["one\rtwo"], 3, "ends a row that is not CSV (new-line character"),
    "too many columns": ("a.csv", ["one,two"], 3, "has not as many columns as the header (2, not 1)"),
}


class TestBadRows:
    @pytest.fixture(params=BAD_ROWS.values(), ids=BAD_ROWS.keys())
    def bad(self, request, tmp_path) -> tuple[str, str]:
        """A file with one bad row between two good ones, and what is to be said of it."""
        name, lines, number, reason = request.param
        good = '{"text": "A boat."}' if name.endswith("jsonl") else "A boat."
        header = ["text"] if name.endswith("csv") else []
        path = write_lines(tmp_path / name, *header, good, *lines, good)
        return path, f"{path}:{number} {reason}"

    def test_they_are_named(self, bad, tokenizer, tables):
        path, message = bad
        with pytest.raises(DataError, match=re.escape(f"1 row cannot be used: {message}")):
            read_all(Corpus(path, language="en"), tokenizer, tables)

    def test_they_are_skipped_and_counted(self, bad, tokenizer, tables, caplog):
        path, message = bad
        data.logger.addHandler(caplog.handler)
        assert len(read_all(Corpus(path, language="en"), tokenizer, tables, BadRows(skip=True))) == 2
        data.logger.removeHandler(caplog.handler)
        assert "Skipped 1 row: 1 times" in caplog.text and message in caplog.text

    @pytest.mark.parametrize(("rank", "worker", "says"), [("0", 0, True), ("1", 0, False), ("0", 1, False)])
    def test_one_process_of_many_says_what_is_skipped(self, monkeypatch, caplog, rank, worker, says):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: SimpleNamespace(id=worker))
        bad_rows = BadRows(skip=True)
        bad_rows.reject("a.txt:1", "is empty")
        bad_rows.report()
        assert ("Skipped 1 row" in caplog.text) == says

    def test_all_are_counted_and_the_first_named(self, tmp_path, tokenizer, tables):
        path = write_lines(tmp_path / "a.txt", *[""] * 12)
        with pytest.raises(DataError) as error:
            read_all(Corpus(path, language="en"), tokenizer, tables)
        assert str(error.value).startswith("12 rows cannot be used: ") and "; and 7 more." in str(error.value)
        assert [f"{path}:{number} " in str(error.value) for number in (1, 5, 6)] == [True, True, False]

    def test_a_quote_that_nobody_closes_takes_in_no_rows_in_silence(self, tmp_path, tokenizer, tables):
        path = write_lines(tmp_path / "a.csv", "text", "one", '"two', "three")
        reason = f"ends a row that is not CSV (unexpected end of data; it begins after {path}:2)"
        with pytest.raises(DataError, match=re.escape(f"1 row cannot be used: {path}:4 {reason}")):
            read_all(Corpus(path, language="en"), tokenizer, tables)

    @pytest.mark.parametrize("skip", [False, True])
    @pytest.mark.parametrize("name", ["a.tsv", "a.parquet", "a.jsonl.gz"])
    def test_a_column_that_no_row_has_is_said_of_the_file(self, tmp_path, tokenizer, tables, name, skip):
        path = write_rows(tmp_path / name, [{"zh": zh, "ug": ug} for zh, ug in zip(ZH, UG, strict=True)])
        for options, column in (
            (dict(language="ug"), "column"),
            (dict(languages=["zh", "ug"], columns=["zh", "text"]), "columns"),
        ):
            message = (
                f'{path} has no column "text" (it has: zh, ug); name another with the field {column} of the corpus.'
            )
            with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
                read_all(Corpus(path, **options), tokenizer, tables, BadRows(skip))

    def test_a_column_that_the_first_row_of_json_lacks_may_come(self, tmp_path, tokenizer, tables):
        path = write_rows(tmp_path / "a.jsonl", [{"title": "x"}, {"text": "A boat."}, {"title": "y"}])
        bad_rows = BadRows(skip=True)
        assert len(read_all(Corpus(path, language="en"), tokenizer, tables, bad_rows)) == 1 and bad_rows.count == 2

    def test_text_that_is_not_utf8_is_told_how_to_become_it(self, tmp_path, tokenizer, tables):
        path = write_lines(tmp_path / "a.txt", b"caf\xe9")
        with pytest.raises(DataError, match=r"Correct the data \(iconv -f ENCODING -t UTF-8 converts text\), or give"):
            read_all(Corpus(path, language="en"), tokenizer, tables)
        path = write_lines(tmp_path / "a.tsv", b"text\tcaf\xe9", "one\ttwo")
        with pytest.raises(DataError, match=r"The header of .*a\.tsv is not UTF-8; convert the file with iconv -f "):
            read_all(Corpus(path, language="en"), tokenizer, tables, BadRows(skip=True))

    def test_two_columns_of_one_name_are_refused(self, tmp_path, tokenizer, tables):
        path = write_lines(tmp_path / "a.tsv", "text\ttext", "one\ttwo")
        with pytest.raises(DataError, match="a.tsv has two columns of the name text"):
            read_all(Corpus(path, language="en"), tokenizer, tables)

    @pytest.mark.parametrize("change", ["cut", "damaged"])
    def test_a_gzip_file_that_is_not_whole(self, tmp_path, tokenizer, tables, change):
        path = write_lines(tmp_path / "a.txt.gz", *(f"A boat of {number} men." for number in range(999)))
        content = bytearray(Path(path).read_bytes())
        content[200:220] = b"" if change == "cut" else bytes(255 - byte for byte in content[200:220])
        Path(path).write_bytes(content)
        with pytest.raises(DataError, match=r"a\.txt\.gz cannot be read: "):
            read_all(Corpus(path, language="en"), tokenizer, tables)

    def test_a_parquet_file_that_is_none(self, tmp_path, tokenizer, tables):
        path = write_lines(tmp_path / "a.parquet", "text")
        with pytest.raises(DataError, match=r"a\.parquet cannot be read: "):
            read_all(Corpus(path, language="en"), tokenizer, tables)

    def test_a_row_that_is_wrong_twice_is_one_row(self, tmp_path, tokenizer, tables):
        path = write_rows(tmp_path / "a.jsonl", [{"en": "a", "ug": "b"}, {"en": "", "ug": ""}])
        with pytest.raises(DataError, match=re.escape(f'1 row cannot be used: {path}:2 is empty in the column "en".')):
            read_all(Corpus(path, languages=["en", "ug"]), tokenizer, tables)

    @pytest.mark.parametrize(("first", "second", "line"), [(ZH, UG[:2], 3), (ZH[:1], UG, 2)])
    def test_files_of_unequal_length(self, tmp_path, tokenizer, tables, first, second, line):
        paths = [write_lines(tmp_path / "a.zh", *first), write_lines(tmp_path / "a.ug", *second)]
        longer, shorter = sorted(paths, key=lambda path: -len(Path(path).read_text().splitlines()))
        corpus = Corpus(paths, languages=["zh", "ug"])
        with pytest.raises(DataError, match=re.escape(f"{longer}:{line} has no partner ({shorter} has ended)")):
            read_all(corpus, tokenizer, tables)
        bad_rows = BadRows(skip=True)
        assert len(read_all(corpus, tokenizer, tables, bad_rows)) == 2 * (line - 1)
        assert bad_rows.count == abs(len(first) - len(second))

    def test_a_line_that_is_not_utf8_does_not_shift_its_neighbours(self, tmp_path, tokenizer, tables):
        paths = [write_lines(tmp_path / "a.zh", ZH[0], b"\xff", ZH[2]), write_lines(tmp_path / "a.ug", *UG)]
        corpus = Corpus(paths, languages=["zh", "ug"])
        examples = read_all(corpus, tokenizer, tables, BadRows(skip=True))
        tokenizer.tgt_lang = "ug"
        assert [e["labels"] for e in examples[::2]] == tokenizer(text_target=[UG[0], UG[2]])["input_ids"]

    @pytest.mark.parametrize(("line", "reason"), [(b"\xff", "is not UTF-8"), (" ", "is empty")])
    @pytest.mark.parametrize("bad", [["a.zh"], ["a.ug"], ["a.zh", "a.ug"]], ids=" ".join)
    def test_a_bad_line_is_named_in_the_file_that_has_it(self, tmp_path, tokenizer, tables, bad, line, reason):
        files = {"a.zh": ZH, "a.ug": UG}
        paths = [
            write_lines(tmp_path / name, lines[0], line if name in bad else lines[1], lines[2])
            for name, lines in files.items()
        ]
        with pytest.raises(DataError, match=re.escape(f"1 row cannot be used: {tmp_path / bad[0]}:2 {reason}.")):
            read_all(Corpus(paths, languages=["zh", "ug"]), tokenizer, tables)

    def test_a_pair_is_too_long(self, tmp_path, tokenizer, tables):
        path = write_rows(tmp_path / "a.jsonl", [{"en": "a boat", "ug": "a b"}, {"en": "a " * 99, "ug": "a b"}])
        with pytest.raises(
            DataError, match=re.escape(f"1 row cannot be used: {path}:2 has a source of more than 64 ")
        ):
            read_all(Corpus(path, languages=["en", "ug"]), tokenizer, tables)
        with pytest.raises(DataError, match=re.escape(f"{path}:2 has a target of more than 63 ")):
            read_all(Corpus(path, languages=["ug", "en"]), tokenizer, tables)

    @pytest.mark.parametrize("limit", [5, 6, 7])
    def test_limits_are_of_all_tokens(self, tokenizer, limit):
        pair = Pair("here", "a b c", "a b c", "en", "ug")
        (expected,) = encode_pairs([pair], tokenizer, 99, 99, BadRows())
        bad_rows = BadRows(skip=True)
        for source, target in itertools.product((-1, 0), repeat=2):
            lengths = len(expected["input_ids"]) + source, len(expected["labels"]) + target
            examples = list(encode_pairs([pair], tokenizer, *lengths, bad_rows))
            assert examples == ([] if -1 in (source, target) else [expected])

    def test_a_language_is_unknown(self, tokenizer):
        bad_rows = BadRows()
        pairs = [
            Pair("a:1", "x", "y", "en", "ug"),
            Pair("a:2", "x", "y", "en", "fr"),
            Pair("a:3", "x", "y", "ug", "en"),
        ]
        assert len(list(encode_pairs(pairs, tokenizer, 9, 9, bad_rows))) == 2
        with pytest.raises(DataError, match='a:2 is in the unknown language "fr" \\(known: zh, ug, en\\)'):
            bad_rows.report()

    def test_pairs_of_several_languages_get_their_own_tags(self, tokenizer):
        languages = [("en", "ug"), ("en", "ug"), ("zh", "ug"), ("en", "zh"), ("en", "ug")]
        pairs = [Pair("", "a boat", "a boat", *codes) for codes in languages]
        tokenizer.src_lang, tokenizer.tgt_lang = "zh", None
        examples = list(encode_pairs(pairs, tokenizer, 99, 99, BadRows()))
        tags = [(example["input_ids"][1], example["labels"][0]) for example in examples]
        assert tags == [tuple(map(tokenizer.get_lang_id, codes)) for codes in languages]
        assert (tokenizer.src_lang, tokenizer.tgt_lang) == ("zh", None)

    def test_tags_in_a_text_are_text(self, tokenizer, tables, tmp_path):
        pair = Pair("", "a <zh> boat", "a <zh> boat", "en", "ug")
        (example,) = encode_pairs([pair], tokenizer, 99, 99, BadRows())
        path = write_lines(tmp_path / "a.txt", pair.source)
        (text,) = read_all(Corpus(path, language="en"), tokenizer, tables)
        for ids in (example["input_ids"], example["labels"], text["input_ids"]):
            assert tokenizer.get_lang_id("zh") not in ids


class TestCutting:
    @given(st.lists(st.integers(5, 120), max_size=120), st.integers(2, 40))
    def test_nothing_is_lost_and_no_piece_is_too_long(self, tables, ids, limit):
        pieces = list(cut(np.array(ids, dtype=np.int64), limit, tables))
        assert [token for piece in pieces for token in piece.tolist()] == ids
        assert all(len(piece) <= limit for piece in pieces)
        assert all(len(piece) for piece in pieces[:-1])

    def test_between_sentences_or_else_words(self, tokenizer, tables, tmp_path):
        text = " ".join(["We left early."] * 8)
        path = write_lines(tmp_path / "a.txt", text, "a" * 50 + " " + "b" * 50)
        for example in read_all(Corpus(path, language="en"), tokenizer, tables, max_length=40):
            assert len(example["input_ids"]) <= 40
            written = tokenizer.decode(example["input_ids"], skip_special_tokens=True)
            assert re.fullmatch(r"(We left early\. ?)+|a+|b+", written), written


def numbered_corpus(folder: Path, name: str, count: int, start: int = 0) -> Corpus:
    """Rows of one, two or three letters and a number of like-long figures."""
    lines = [f"{'abc'[: 1 + number % 3]} {start + number}" for number in range(count)]
    return Corpus(write_lines(folder / name, *lines), language="en")


@pytest.fixture
def corpora(tmp_path) -> list[Corpus]:
    return [numbered_corpus(tmp_path, "large.txt", 320, 1000), numbered_corpus(tmp_path, "small.txt", 20, 5000)]


def make_mixture(corpora, tokenizer, **options) -> Mixture:
    return Mixture(corpora, tokenizer, **({"max_length": 32, "batch_size": 4, "shuffle_buffer": 16} | options))


def take(mixture: Mixture, count: int) -> list[tuple]:
    """Text, epoch and ids of the first examples."""
    decode = mixture.tokenizer.decode
    return [
        (decode(e["input_ids"], skip_special_tokens=True), e["epoch"], tuple(e["input_ids"]))
        for e in itertools.islice(mixture, count)
    ]


class TestMixture:
    def test_corpora_are_drawn_by_their_share_to_the_power_of_the_exponent(self, corpora, tokenizer):
        mixture = make_mixture(corpora, tokenizer, exponent=0.3)
        assert mixture.examples.tolist() == [320, 20]
        expected = 16**0.3 / (16**0.3 + 1)
        assert mixture.probabilities == pytest.approx([expected, 1 - expected])
        drawn = Counter(int(text.split()[-1]) < 5000 for text, *_ in take(mixture, 4000))
        assert drawn[True] / 4000 == pytest.approx(expected, abs=0.02)

    def test_weights_and_given_sizes(self, corpora, tokenizer):
        corpora[0].examples, corpora[1].weight = 60, 3.0
        mixture = make_mixture(corpora, tokenizer, exponent=1.0)
        assert mixture.probabilities == pytest.approx([0.5, 0.5])

    def test_no_example_comes_twice_in_a_reading_and_none_is_left_out(self, corpora, tokenizer):
        seen = take(make_mixture(corpora, tokenizer), 4000)
        readings = Counter((text, epoch) for text, epoch, _ in seen)
        assert set(readings.values()) == {1}
        small = {text for text, *_ in seen if int(text.split()[-1]) >= 5000}
        last = max(epoch for text, epoch, _ in seen if text in small)
        assert len(small) == 20 and last > 10
        for epoch in range(last - 2):  # the last ones may still be in the buffer
            assert {text for text, number, _ in seen if number == epoch and text in small} == small

    def test_each_reading_has_its_own_order(self, corpora, tokenizer):
        mixture = make_mixture(corpora[1:], tokenizer)
        orders = [tuple(text for text, epoch, _ in take(mixture, 400) if epoch == number) for number in (0, 1)]
        assert sorted(orders[0]) == sorted(orders[1]) and orders[0] != orders[1]

    def test_the_stream_can_be_repeated(self, corpora, tokenizer):
        first = take(make_mixture(corpora, tokenizer, seed=1), 700)
        mixture = make_mixture(corpora, tokenizer, seed=1)
        assert take(mixture, 700) == first
        assert take(mixture, 700) == first
        assert take(make_mixture(corpora, tokenizer, seed=2), 700) != first

    def test_batches_have_examples_of_like_length(self, corpora, tokenizer):
        lengths = np.array([len(ids) for *_, ids in take(make_mixture(corpora, tokenizer), 800)])
        batches = lengths.reshape(-1, 4)
        assert lengths.std() > 0.5
        assert (np.ptp(batches, axis=1) > 1).mean() < 0.05
        # and batches of all lengths from the beginning
        assert abs(batches[:50].mean() - batches[150:].mean()) < 0.5

    def test_batches_are_the_same_however_they_are_divided(self, corpora, tokenizer):
        """Over processes and accumulation: only the product of all counts."""
        assert take(make_mixture(corpora, tokenizer, batch_size=8), 400) == take(
            make_mixture(corpora, tokenizer, batch_size=2 * 4), 400
        )

    def test_workers_of_a_loader_share_the_stream(self, corpora, tokenizer):
        mixture = make_mixture(corpora, tokenizer)

        def batches(workers: int) -> list:
            loader = torch.utils.data.DataLoader(mixture, batch_size=4, num_workers=workers, collate_fn=list)
            return list(itertools.islice(loader, 30))

        assert batches(2) == batches(0)

    def test_a_corpus_is_not_held_in_memory(self, corpora, tokenizer, monkeypatch):
        mixture = make_mixture(corpora[:1], tokenizer)
        read = []
        monkeypatch.setattr(data, "decode", lambda line: read.append(line) or line.decode().strip())
        monkeypatch.setattr(mixture, "batches_sorted_together", 2)
        next(iter(mixture))
        assert len(read) <= 16 + 2 * 4 + 8 + 256

    def test_bad_rows_are_an_error_before_the_training(self, corpora, tokenizer, tmp_path):
        bad = Corpus(write_lines(tmp_path / "bad.txt", "a", "", "b"), language="en")
        with pytest.raises(DataError, match=r"bad.txt:2 is empty"):
            make_mixture([*corpora, bad], tokenizer)
        mixture = make_mixture([*corpora, bad], tokenizer, skip_bad_rows=True)
        assert mixture.examples.tolist() == [320, 20, 2]

    def test_a_corpus_that_was_not_counted_is_checked_as_it_is_read(self, tokenizer, tmp_path):
        path = write_lines(tmp_path / "bad.txt", "a", "", "b")
        mixture = make_mixture([Corpus(path, language="en", examples=3)], tokenizer)
        with pytest.raises(DataError, match=r"bad.txt:2 is empty"):
            take(mixture, 4)

    @pytest.mark.parametrize(
        ("count", "said"),
        [(200, ["1 row so far"]), (2000, ["1 row so far", "101 rows so far", "101 rows"])],
        ids=["part of a reading", "two readings"],
    )
    def test_what_is_skipped_of_a_corpus_that_was_not_counted_is_said_as_it_is_read(
        self, tokenizer, tmp_path, caplog, count, said
    ):
        path = write_lines(tmp_path / "bad.txt", "", *["a"] * 600, *["", "a"] * 100)
        mixture = make_mixture([Corpus(path, language="en", examples=700)], tokenizer, skip_bad_rows=True)
        take(mixture, count)
        assert [message.split(":")[0] for message in caplog.messages] == [f"Skipped {rows}" for rows in said]

    def test_an_error_in_the_worker_of_a_loader_is_one_sentence(self, tokenizer, tmp_path):
        path = write_lines(tmp_path / "bad.txt", "a", "", "b")
        mixture = make_mixture([Corpus(path, language="en", examples=3)], tokenizer)
        messages = []
        for workers in (0, 1):
            with pytest.raises(DataError) as error:
                next(iter(torch.utils.data.DataLoader(mixture, batch_size=4, num_workers=workers)))
            messages.append(str(error.value))
        assert messages[1] == messages[0] and "Traceback" not in messages[1]

    def test_a_corpus_without_a_good_row_is_an_error(self, tokenizer, tmp_path):
        empty = Corpus(write_lines(tmp_path / "empty.txt"), language="en")
        with pytest.raises(DataError, match=r"empty.txt has no row that can be used"):
            make_mixture([empty], tokenizer)


class TestCorporaFile:
    def load(self, folder: Path, content) -> dict:
        (folder / "corpora.yaml").write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return load_corpora(str(folder / "corpora.yaml"))

    def test_lists_of_corpora(self, tmp_path):
        entries = [{"path": "a.txt", "language": "en"}, {"path": "b.tsv", "languages": ["en", "ug"], "weight": 2}]
        corpora = self.load(tmp_path, {"train": entries, "validation": entries[:1]})
        assert corpora["train"][1] == Corpus("b.tsv", languages=["en", "ug"], weight=2)
        assert corpora["validation"] == [Corpus("a.txt", language="en")]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("train: [", "corpora.yaml cannot be read"),
            ("- a", "must have a list of corpora under train"),
            ({"training": []}, "must have a list of corpora under train"),
            ({"train": [{"path": "a", "language": "en", "lang": "ug"}]}, "unknown field lang"),
            ({"train": [{"language": "en"}]}, "a corpus without a path"),
            ({"train": ["a.txt"]}, "a corpus without a path: a.txt"),
            ({"train": [{"path": "a"}]}, "The corpus a needs either its language or its two languages"),
            ({"train": [{"path": "a", "languages": ["en"]}]}, r"a cannot have \['en'\] as its languages"),
            ({"train": [{"path": "a", "languages": "en"}]}, "a cannot have 'en' as its languages"),
            ({"train": [{"path": "a", "languages": ["en", "en"]}]}, r"a cannot have \['en', 'en'\] as its languages"),
            ({"train": [{"path": "a", "language": "en", "columns": ["x", "y"]}]}, "as its columns"),
            ({"train": [{"path": "a", "languages": ["en", "ug"], "column": "x"}]}, "cannot have 'x' as its column"),
            ({"train": [{"path": [], "language": "en"}]}, r"cannot have \[\] as its path"),
            ("train: [{path: a, language: no}]", "a cannot have False as its language"),
            ({"train": [{"path": 3, "language": "en"}]}, "cannot have 3 as its path"),
            ({"train": [{"path": "a", "languages": ["en", "ug"], "columns": ["x"]}]}, "as its columns"),
            ({"train": [{"path": "a", "language": "en", "weight": 0}]}, "cannot have 0 as its weight"),
            ({"train": [{"path": "a", "language": "en", "weight": math.inf}]}, "cannot have inf as its weight"),
            ({"train": [{"path": "a", "language": "en", "examples": "3k"}]}, "cannot have '3k' as its examples"),
            ({"train": {"path": "a", "language": "en"}}, "must have a list under train"),
            ("train: [{path: a, language: en, 3: x, foo: y}]", "unknown field 3"),
            ("train: []\ntrain: [{path: a, language: en}]", "train is given twice"),
            ("train: [{path: a, path: b, language: en}]", "path is given twice"),
            ({"train": [{"path": "a", "language": "en", "languages": ["en", "ug"]}]}, "either its language"),
        ],
    )
    def test_what_is_refused(self, tmp_path, content, message):
        with pytest.raises(DataError, match=message):
            self.load(tmp_path, content)

    def test_no_such_file(self, tmp_path):
        with pytest.raises(DataError, match="nowhere.yaml cannot be read"):
            load_corpora(str(tmp_path / "nowhere.yaml"))
        with pytest.raises(DataError, match="There is no file nowhere.txt"):
            list(read_rows("nowhere.txt", BadRows()))

    def test_one_text_file_is_not_parallel(self, tmp_path, tokenizer, tables):
        path = write_lines(tmp_path / "a.txt", "a")
        with pytest.raises(DataError, match="Parallel plain text needs two files"):
            read_all(Corpus(path, languages=["en", "ug"]), tokenizer, tables)

    def test_an_unknown_language(self, tmp_path, tokenizer, tables):
        path = write_lines(tmp_path / "a.txt", "a")
        with pytest.raises(
            DataError, match='a.txt is in the language "fr", which has no tag; the known ones: zh, ug, en'
        ):
            read_all(Corpus(path, language="fr"), tokenizer, tables)


@pytest.mark.timeout(20)
def test_a_corpus_of_no_rows_whose_number_was_given_does_not_turn_for_ever(tokenizer, tmp_path):
    (tmp_path / "en.txt").write_text("")
    corpora = [Corpus(str(tmp_path / "en.txt"), language="en", examples=10)]
    mixture = Mixture(corpora, tokenizer, max_length=32, batch_size=4)
    with pytest.raises(DataError, match="en.txt has no row that can be used"):
        next(iter(mixture))


def test_a_list_of_no_corpora_is_refused(tmp_path):
    (tmp_path / "corpora.yaml").write_text("train:\n")
    with pytest.raises(DataError, match="must have a list of corpora under train"):
        load_corpora(str(tmp_path / "corpora.yaml"))
