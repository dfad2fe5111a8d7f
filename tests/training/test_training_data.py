"""Training data: rows of every format, rows that cannot be used, and their examples."""

import itertools
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.corpus_files import read_all, write_lines, write_rows

from modeling_xlm_swcm.corpora import bad_rows as bad_rows_module
from modeling_xlm_swcm.training.examples import Pair, encode_pairs, split_ids
from modeling_xlm_swcm.training.mixture import CorpusConfig
from modeling_xlm_swcm.training.rows import BadRows, DataError, get_text, read_rows


ZH = ["我们早上去了河边。", "没有风。", "河边没有我们。"]
UG = ["بىز دەريا بويىغا باردۇق.", "شامال يوق.", 'بۈگۈن "ھاۋا" ئوچۇق.']


class TestFormats:
    NAMES = ["a.jsonl", "a.jsonl.gz", "a.csv", "a.csv.gz", "a.tsv", "a.parquet"]

    @pytest.mark.parametrize("name", [*NAMES, "a.txt", "a.txt.gz"])
    def test_monolingual_text(self, tmp_path, tokenizer, tables, name):
        path = write_rows(tmp_path / name, [{"text": text} for text in UG])
        tokenizer.src_lang = "ug"
        expected = [{"input_ids": ids} for ids in tokenizer(UG)["input_ids"]]
        assert read_all(CorpusConfig(path, language="ug"), tokenizer, tables) == expected

    @pytest.mark.parametrize("name", NAMES)
    def test_pairs_in_both_directions(self, tmp_path, tokenizer, tables, name):
        path = write_rows(tmp_path / name, [{"zh": zh, "ug": ug} for zh, ug in zip(ZH, UG, strict=True)])
        examples = read_all(CorpusConfig(path, languages=["zh", "ug"]), tokenizer, tables)
        self.assert_both_directions(examples, tokenizer)

    def test_pairs_in_two_text_files(self, tmp_path, tokenizer, tables):
        paths = [write_lines(tmp_path / "a.zh", *ZH), write_rows(tmp_path / "a.ug.gz", [{"text": ug} for ug in UG])]
        examples = read_all(CorpusConfig(paths, languages=["zh", "ug"]), tokenizer, tables)
        self.assert_both_directions(examples, tokenizer)

    def test_pairs_nested_as_on_the_hub(self, tmp_path, tokenizer, tables):
        rows = [{"translation": {"zh": zh, "ug": ug}} for zh, ug in zip(ZH, UG, strict=True)]
        path = write_rows(tmp_path / "a.jsonl", rows)
        self.assert_both_directions(read_all(CorpusConfig(path, languages=["zh", "ug"]), tokenizer, tables), tokenizer)

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
        assert len(read_all(CorpusConfig("somebody/corpus", language="ug"), tokenizer, tables)) == 3

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
        failure = "DataError: somebody/{} is not a file, and no such Hub dataset can be loaded: "
        for name, split, reason in (("corpus", "test", "Bad split: test"), ("nothing", "train", "Dataset ")):
            assert failure.format(name) + reason in client.run(code.format(name, split))["error"]

    def test_patterns_are_read_in_order(self, tmp_path):
        for number in (2, 1, 3):
            write_lines(tmp_path / f"{number}.txt", "a")
        assert CorpusConfig(str(tmp_path / "*.txt"), language="ug").files == [
            str(tmp_path / f"{n}.txt") for n in (1, 2, 3)
        ]

    def test_what_is_beside_the_nesting_counts_first(self):
        row = {"text": "a", "translation": {"text": "b", "en": "c"}}
        assert [get_text("", row, column, BadRows()) for column in ("text", "en")] == ["a", "c"]

    def test_a_column_may_have_the_name_of_the_nesting(self, tmp_path, tokenizer, tables):
        path = write_rows(tmp_path / "a.csv", [{"translation": text} for text in UG])
        assert len(read_all(CorpusConfig(path, language="ug", column="translation"), tokenizer, tables)) == 3

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
    "no column": ("a.jsonl", ['{"title": "x"}'], 2, 'has no column "text" (columns: title)'),
    "null": ("a.jsonl", ['{"text": null}'], 2, 'is empty in the column "text"'),
    "no text": ("a.jsonl", ['{"text": 3}'], 2, 'has no text in the column "text" (found type int)'),
    "half a character": (
        "a.jsonl",
        [r'{"text": "\ud800 a"}'],
        2,
        'has invalid Unicode in the column "text" (lone surrogate ',
    ),
    "no JSON": ("a.jsonl", ['{"text": '], 2, "is not a JSON object"),
    "no object": ("a.jsonl", ["[1]"], 2, "is not a JSON object"),
    "empty": ("a.txt", [""], 2, 'is empty in the column "text"'),
    "blank": ("a.txt", ["  "], 2, 'is empty in the column "text"'),
    "no UTF-8": ("a.txt", [b"caf\xe9"], 2, "is not UTF-8"),
    "NUL bytes": ("a.txt", [b"a\0b"], 2, "contains NUL bytes"),
    "JSON that never ends": ("a.jsonl", [b"[" * 100_000], 2, "is not a JSON object"),
    "no UTF-8 in a table": ("a.csv", [b"caf\xe9"], 3, "is not UTF-8"),
    "a quote inside": ("a.csv", ['"one" two'], 3, "ends a row that is not valid CSV (',' expected after '\"'"),
    "a carriage return inside": ("a.csv", ["one\rtwo"], 3, "ends a row that is not valid CSV (new-line character"),
    "too many columns": ("a.csv", ["one,two"], 3, "has a wrong number of columns (2 instead of 1)"),
}


class TestBadRows:
    @pytest.fixture(params=BAD_ROWS.values(), ids=BAD_ROWS.keys())
    def bad(self, request, tmp_path) -> tuple[str, str]:
        """Return a file with one bad row between two good rows, and the expected message."""
        name, lines, number, reason = request.param
        good = '{"text": "A boat."}' if name.endswith("jsonl") else "A boat."
        header = ["text"] if name.endswith("csv") else []
        path = write_lines(tmp_path / name, *header, good, *lines, good)
        return path, f"{path}:{number} {reason}"

    def test_they_are_named(self, bad, tokenizer, tables):
        path, message = bad
        with pytest.raises(DataError, match=re.escape(f"1 row cannot be used: {message}")):
            read_all(CorpusConfig(path, language="en"), tokenizer, tables)

    def test_they_are_skipped_and_counted(self, bad, tokenizer, tables, caplog):
        path, message = bad
        bad_rows_module.logger.addHandler(caplog.handler)
        assert len(read_all(CorpusConfig(path, language="en"), tokenizer, tables, BadRows(skip=True))) == 2
        bad_rows_module.logger.removeHandler(caplog.handler)
        assert "Skipped 1 row: " in caplog.text and message in caplog.text and " (1). First rows: " in caplog.text

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
            read_all(CorpusConfig(path, language="en"), tokenizer, tables)
        assert str(error.value).startswith("12 rows cannot be used: ") and "; and 7 more." in str(error.value)
        assert [f"{path}:{number} " in str(error.value) for number in (1, 5, 6)] == [True, True, False]

    def test_a_quote_that_nobody_closes_takes_in_no_rows_in_silence(self, tmp_path, tokenizer, tables):
        path = write_lines(tmp_path / "a.csv", "text", "one", '"two', "three")
        message = f"{path}: the row after line 2 has a quote mark that is not closed until the end of the file."
        with pytest.raises(DataError, match=re.escape(message)):
            read_all(CorpusConfig(path, language="en"), tokenizer, tables, BadRows(skip=True))
        write_lines(tmp_path / "a.csv", "text", "one", '"two', "three", 'four" five')
        reason = f"(',' expected after '\"'; it has 3 lines and starts after {path}:2)"
        with pytest.raises(DataError, match=re.escape(f"{path}:5 ends a row that is not valid CSV {reason}")):
            read_all(CorpusConfig(path, language="en"), tokenizer, tables)

    @pytest.mark.parametrize("skip", [False, True])
    @pytest.mark.parametrize("name", ["a.tsv", "a.parquet", "a.jsonl.gz"])
    def test_a_column_that_no_row_has_is_said_of_the_file(self, tmp_path, tokenizer, tables, name, skip):
        path = write_rows(tmp_path / name, [{"zh": zh, "ug": ug} for zh, ug in zip(ZH, UG, strict=True)])
        for options, column in (
            (dict(language="ug"), "column"),
            (dict(languages=["zh", "ug"], columns=["zh", "text"]), "columns"),
        ):
            message = (
                f'{path} has no column "text" (columns: zh, ug). Rename a column to "text", or change the field '
                f"{column}."
            )
            with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
                read_all(CorpusConfig(path, **options), tokenizer, tables, BadRows(skip))

    def test_a_column_that_the_first_row_of_json_lacks_may_come(self, tmp_path, tokenizer, tables):
        path = write_rows(tmp_path / "a.jsonl", [{"title": "x"}, {"text": "A boat."}, {"title": "y"}])
        bad_rows = BadRows(skip=True)
        assert (
            len(read_all(CorpusConfig(path, language="en"), tokenizer, tables, bad_rows)) == 1 and bad_rows.count == 2
        )

    def test_text_that_is_not_utf8_is_told_how_to_become_it(self, tmp_path, tokenizer, tables):
        path = write_lines(tmp_path / "a.txt", b"caf\xe9")
        with pytest.raises(
            DataError, match=r"Correct the data \(convert text with iconv -f ENCODING -t UTF-8\), or pass"
        ):
            read_all(CorpusConfig(path, language="en"), tokenizer, tables)
        path = write_lines(tmp_path / "a.tsv", b"text\tcaf\xe9", "one\ttwo")
        with pytest.raises(DataError, match=r"The header of .*a\.tsv is not UTF-8\. Convert the file with iconv -f "):
            read_all(CorpusConfig(path, language="en"), tokenizer, tables, BadRows(skip=True))

    def test_two_columns_of_one_name_are_refused(self, tmp_path, tokenizer, tables):
        path = write_lines(tmp_path / "a.tsv", "text\ttext", "one\ttwo")
        with pytest.raises(DataError, match="a.tsv has two columns named text. Rename one of them."):
            read_all(CorpusConfig(path, language="en"), tokenizer, tables)

    @pytest.mark.parametrize("change", ["cut", "damaged"])
    def test_a_gzip_file_that_is_not_whole(self, tmp_path, tokenizer, tables, change):
        path = write_lines(tmp_path / "a.txt.gz", *(f"A boat of {number} men." for number in range(999)))
        content = bytearray(Path(path).read_bytes())
        content[200:220] = b"" if change == "cut" else bytes(255 - byte for byte in content[200:220])
        Path(path).write_bytes(content)
        with pytest.raises(DataError, match=r"a\.txt\.gz cannot be read: "):
            read_all(CorpusConfig(path, language="en"), tokenizer, tables)

    def test_a_parquet_file_that_is_none(self, tmp_path, tokenizer, tables):
        path = write_lines(tmp_path / "a.parquet", "text")
        with pytest.raises(DataError, match=r"a\.parquet cannot be read: "):
            read_all(CorpusConfig(path, language="en"), tokenizer, tables)

    def test_a_row_that_is_wrong_twice_is_one_row(self, tmp_path, tokenizer, tables):
        path = write_rows(tmp_path / "a.jsonl", [{"en": "a", "ug": "b"}, {"en": "", "ug": ""}])
        with pytest.raises(DataError, match=re.escape(f'1 row cannot be used: {path}:2 is empty in the column "en".')):
            read_all(CorpusConfig(path, languages=["en", "ug"]), tokenizer, tables)

    @pytest.mark.parametrize(("first", "second", "line"), [(ZH, UG[:2], 3), (ZH[:1], UG, 2)])
    def test_files_of_unequal_length(self, tmp_path, tokenizer, tables, first, second, line):
        paths = [write_lines(tmp_path / "a.zh", *first), write_lines(tmp_path / "a.ug", *second)]
        longer, shorter = sorted(paths, key=lambda path: -len(Path(path).read_text().splitlines()))
        corpus = CorpusConfig(paths, languages=["zh", "ug"])
        for bad_rows in (BadRows(), BadRows(skip=True)):
            problem = f"{longer}:{line} has no parallel line ({shorter} has fewer lines). Pass files with the same"
            with pytest.raises(DataError, match=re.escape(problem)):
                read_all(corpus, tokenizer, tables, bad_rows)

    def test_a_line_that_is_not_utf8_does_not_shift_its_neighbours(self, tmp_path, tokenizer, tables):
        paths = [write_lines(tmp_path / "a.zh", ZH[0], b"\xff", ZH[2]), write_lines(tmp_path / "a.ug", *UG)]
        corpus = CorpusConfig(paths, languages=["zh", "ug"])
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
            read_all(CorpusConfig(paths, languages=["zh", "ug"]), tokenizer, tables)

    def test_a_pair_is_too_long(self, tmp_path, tokenizer, tables):
        path = write_rows(tmp_path / "a.jsonl", [{"en": "a boat", "ug": "a b"}, {"en": "a " * 99, "ug": "a b"}])
        with pytest.raises(
            DataError, match=re.escape(f"1 row cannot be used: {path}:2 has a source of more than 64 ")
        ):
            read_all(CorpusConfig(path, languages=["en", "ug"]), tokenizer, tables)
        with pytest.raises(DataError, match=re.escape(f"{path}:2 has a target of more than 63 ")):
            read_all(CorpusConfig(path, languages=["ug", "en"]), tokenizer, tables)

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
        (text,) = read_all(CorpusConfig(path, language="en"), tokenizer, tables)
        for ids in (example["input_ids"], example["labels"], text["input_ids"]):
            assert tokenizer.get_lang_id("zh") not in ids


class TestCutting:
    @given(st.lists(st.integers(5, 120), max_size=120), st.integers(2, 40))
    def test_nothing_is_lost_and_no_piece_is_too_long(self, tables, ids, limit):
        pieces = list(split_ids(np.array(ids, dtype=np.int64), limit, tables))
        assert [token for piece in pieces for token in piece.tolist()] == ids
        assert all(len(piece) <= limit for piece in pieces)
        assert all(len(piece) for piece in pieces[:-1])

    def test_between_sentences_or_else_words(self, tokenizer, tables, tmp_path):
        text = " ".join(["We left early."] * 8)
        path = write_lines(tmp_path / "a.txt", text, "a" * 50 + " " + "b" * 50)
        for example in read_all(CorpusConfig(path, language="en"), tokenizer, tables, max_length=40):
            assert len(example["input_ids"]) <= 40
            written = tokenizer.decode(example["input_ids"], skip_special_tokens=True)
            assert re.fullmatch(r"(We left early\. ?)+|a+|b+", written), written
