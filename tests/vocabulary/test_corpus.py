"""Read text files line by line, count their tokens and compare their segmentation."""

import json
import tracemalloc
from pathlib import Path

import pytest
from support.corpus_files import write_rows
from support.vocabularies import TEXTS, ids, reader_tokenizer
from tokenizers import Tokenizer

from modeling_xlm_swcm.conversion import ConversionError
from modeling_xlm_swcm.vocabulary import corpus, pieces
from modeling_xlm_swcm.vocabulary.corpus import Corpus, SegmentationStatistics, compare_segmentations, read_corpora
from modeling_xlm_swcm.vocabulary.kinds import UnigramVocabulary
from modeling_xlm_swcm.vocabulary.pieces import (
    count_tokens,
    find_script,
    find_scripts,
    sample_corpora,
)


@pytest.fixture(scope="module")
def reader():
    return reader_tokenizer()


def write(folder: Path, name: str, content: str | bytes) -> Corpus:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return Corpus.parse(str(path))


def lines(text: Corpus) -> list[str]:
    return [line for line, _ in text.lines()]


@pytest.mark.parametrize("name", ["bo.txt", "bo.news.2024.txt", "bo"])
def test_a_file_is_named_by_its_language(tmp_path, name):
    assert write(tmp_path, name, "a").language == "bo"


def test_a_label_names_the_language_of_any_file(tmp_path):
    (tmp_path / "news.txt").write_text("a")
    named = Corpus.parse(f"kk-Arab={tmp_path / 'news.txt'}")
    assert (named.language, named.path) == ("kk-Arab", tmp_path / "news.txt")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    for name in ("bo.txt", "bo=bo.txt"):
        with pytest.raises(ConversionError, match=r'^"bo\.txt" does not exist\. Pass a file with text\.$'):
            Corpus.parse(name)
    with pytest.raises(ConversionError, match=f'^"{tmp_path}" is not a file. Pass a file with text.$'):
        Corpus.parse(f"bo={tmp_path}")


def test_a_path_with_an_equals_sign_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "bo.a=b.txt", "a")
    assert Corpus.parse("bo.a=b.txt").path == Path("bo.a=b.txt")


@pytest.mark.parametrize("name", ["pairs.csv", "news.txt", "b.txt", "bo2.txt"])
def test_a_name_without_a_language_code_is_refused(tmp_path, name):
    (tmp_path / name).write_text("zh,bo\n", encoding="utf-8")
    with pytest.raises(ConversionError, match=f"does not start with a language code. .* example bo={tmp_path}/{name}"):
        Corpus.parse(str(tmp_path / name))


@pytest.mark.parametrize("label", ["", " "])
def test_a_language_has_a_name(tmp_path, label):
    path = write(tmp_path, "bo.txt", "a").path
    with pytest.raises(ConversionError, match=f"^The language of {path} is missing. Pass it before the path: bo="):
        Corpus.parse(f"{label}={path}")


def test_lines_are_stripped_and_empty_lines_skipped(tmp_path):
    text = write(tmp_path, "en.txt", b"\xef\xbb\xbfone\r\n\r\n  \n two words \nno break at the end")
    assert lines(text) == ["one", "two words", "no break at the end"]


def test_no_other_character_ends_a_line(tmp_path):
    assert lines(write(tmp_path, "en.txt", "one\u2028still one\x85and\x0cso on\n")) == [
        "one\u2028still one\x85and\x0cso on"
    ]


def test_a_line_that_is_not_utf_8_is_refused_with_its_number(tmp_path):
    text = write(tmp_path, "bo.txt", b"first\n\n" + "第三".encode("gb18030") + b"\nlast\n")
    with pytest.raises(ConversionError, match=r"^1 row cannot be used: .*bo\.txt:3 is not UTF-8\. Correct"):
        lines(text)
    with pytest.raises(ConversionError, match=r"ug\.txt is UTF-16, not UTF-8\. Convert the file with iconv"):
        lines(write(tmp_path, "ug.txt", "text".encode("utf-16")))


def test_a_line_over_a_megabyte_is_refused_with_its_number(tmp_path):
    assert len(lines(write(tmp_path, "en.txt", b"a\n" + b"b" * (2**20 - 1) + b"\n"))) == 2
    with pytest.raises(ConversionError, match=r"zh\.txt:2 is longer than 1 MiB\. Write one sentence"):
        lines(write(tmp_path, "zh.txt", b"a\n" + b"b" * 2**20 + b"\nc\n"))


@pytest.mark.parametrize("content", ["", "\n \n\n", "\ufeff\n"], ids=["no byte", "no letter", "a byte order mark"])
def test_a_file_without_text_is_refused(tmp_path, content):
    texts = [write(tmp_path, "en.txt", "text"), write(tmp_path, "bo.txt", content)]
    with pytest.raises(ConversionError, match=r"bo\.txt has no text\."):
        list(read_corpora(texts, "Reading"))


@pytest.mark.parametrize("batch_bytes", [1, 6, 12, 1000])
def test_batches_hold_every_line_once_and_are_never_empty(tmp_path, monkeypatch, batch_bytes):
    monkeypatch.setattr(corpus, "BATCH_BYTES", batch_bytes)
    texts = [write(tmp_path, "en.txt", "12345\n12345\nabc\n12345\n"), write(tmp_path, "bo.txt", "12345\n")]
    batches = list(read_corpora(texts, "Reading"))
    assert all(batch for _, batch in batches)
    for language, expected in (("en", ["12345", "12345", "abc", "12345"]), ("bo", ["12345"])):
        assert [line for of, batch in batches if of == language for line in batch] == expected


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl", "a.json", "a.csv.gz", "a.tsv", "a.parquet"])
def test_other_formats_have_the_texts_of_their_column(tmp_path, name):
    texts = ['He said "བོད་སྐད"', "two words"]
    rows = [{"text": text} for text in texts]
    if name == "a.json":
        (tmp_path / name).write_text(json.dumps(rows))
    else:
        write_rows(tmp_path / name, rows)
    for language in ("bo", "zh"):
        assert lines(Corpus.parse(f"{language}={tmp_path / name}")) == texts


def test_columns_of_pairs_are_texts_of_two_languages(tmp_path):
    write_rows(tmp_path / "pairs.tsv", [{"zh": "a", "bo": "b"}, {"zh": "", "bo": "c"}])
    corpora = Corpus.parse_all([f"{language}={tmp_path / 'pairs.tsv'}" for language in ("zh", "bo")])
    assert [lines(text) for text in corpora] == [["a"], ["b", "c"]]
    assert not corpora[0].has_same_text(corpora[1]) and corpora[0].has_same_text(corpora[0])
    message = (
        r'no column "ug" or "text" \(columns: zh, bo\)\. Rename the column .* another code \(CODE=.*pairs\.tsv\)\.$'
    )
    with pytest.raises(ConversionError, match=message):
        lines(Corpus.parse(f"ug={tmp_path / 'pairs.tsv'}"))


def test_a_pattern_names_files_of_one_language(tmp_path):
    for name in ("b.txt", "a.txt"):
        (tmp_path / name).write_text(name)
    corpora = Corpus.parse_all([f"bo={tmp_path}/*.txt"])
    assert [(text.path.name, text.language) for text in corpora] == [("a.txt", "bo"), ("b.txt", "bo")]
    with pytest.raises(ConversionError, match=r"\*\.txt names 2 files\. Pass one file\."):
        Corpus.parse(f"bo={tmp_path}/*.txt")


def test_a_format_that_is_not_supported_is_refused_at_once(tmp_path):
    with pytest.raises(ConversionError, match=r"bo\.xlsx cannot be read, because \.xlsx files are not supported"):
        write(tmp_path, "bo.xlsx", "text")


@pytest.mark.parametrize("name", ["bo.txt.gz", "bo.jsonl"])
def test_a_sample_of_text_of_unknown_size_is_as_large(tmp_path, monkeypatch, name):
    texts = [f"{number} " + "ka " * 30 for number in range(8000)]
    write_rows(tmp_path / name, [{"text": text} for text in texts])
    monkeypatch.setattr(pieces, "SAMPLE_BYTES", 2**16)
    sample = sample_corpora([Corpus.parse(str(tmp_path / name))], seed=0)
    assert 0.9 < sum(len(line) + 1 for line in sample) / 2**16 < 2.1
    numbers = [int(line.split()[0]) for line in sample]
    assert len(set(numbers)) == len(numbers) and 3500 < sum(numbers) / len(numbers) < 4500


def test_files_of_a_language_count_as_one(tmp_path, reader):
    parts = [write(tmp_path, f"en.{name}.txt", text) for name, text in zip("ab", TEXTS["en"][:2], strict=True)]
    whole = write(tmp_path, "en.txt", "\n".join(TEXTS["en"][:2]))
    counted = count_tokens(UnigramVocabulary("reader", reader), parts).by_language
    assert counted.keys() == {"en"}
    assert (counted["en"] == count_tokens(UnigramVocabulary("reader", reader), [whole]).by_language["en"]).all()
    assert counted["en"].sum() == sum(len(ids(reader, text)) for text in TEXTS["en"][:2])
    old_ids = list(range(len(reader)))
    backend = reader.backend_tokenizer
    of_parts, of_whole = (compare_segmentations(backend, backend, old_ids, 3, texts) for texts in (parts, [whole]))
    assert of_parts == of_whole


def test_unknown_tokens_are_not_counted(tmp_path, reader):
    text = write(tmp_path, "mvf.txt", TEXTS["mvf"][0])
    counted = count_tokens(UnigramVocabulary("reader", reader), [text]).by_language["mvf"]
    assert counted[reader.unk_token_id] == 0


def test_a_comparison_counts_unknown_tokens_and_resegmented_lines(tmp_path, reader):
    coarse = reader.backend_tokenizer
    state = UnigramVocabulary("reader", reader)
    # Drop the longer pieces of the first line, so that only this line is segmented differently.
    needed = set(ids(reader, "river before"))
    old_ids = [token for token, (piece, _) in enumerate(state.pieces) if token not in needed or len(piece) == 1]
    fine = state.build_tokenizer([state.pieces[token] for token in old_ids], old_ids).backend_tokenizer
    text = write(tmp_path, "en.txt", "river before\nᠤᠰᠤ 17\nA 河 ག་ང\n42")
    (language, compared), *others = compare_segmentations(coarse, fine, old_ids, reader.unk_token_id, [text]).items()
    assert (language, others) == ("en", [])
    # Words per line: 2, 2 (a Mongolian word and a number), 4 (two of them Tibetan syllables), 1.
    assert (compared.lines, compared.words) == (4, 9)
    before = sum((ids(reader, line) for line in lines(text)), [])
    assert compared.before == SegmentationStatistics(
        tokens=len(before),
        tokens_per_line=len(before) / 4,
        fertility=len(before) / 9,
        unknown=before.count(reader.unk_token_id) / len(before),
    )
    assert compared.before.unknown > 0
    assert compared.resegmented == 0.25
    assert compared.after.tokens > compared.before.tokens


def test_truncation_and_padding_do_not_change_the_counts(tmp_path, reader):
    short = Tokenizer.from_str(reader.backend_tokenizer.to_str())
    short.enable_truncation(5)
    short.enable_padding(length=9)
    tokenizer = reader_tokenizer()
    tokenizer._tokenizer = short
    text = write(tmp_path, "en.txt", TEXTS["en"][0])
    counted = count_tokens(UnigramVocabulary("short", tokenizer), [text]).by_language["en"]
    assert (counted == count_tokens(UnigramVocabulary("reader", reader), [text]).by_language["en"]).all()


@pytest.fixture
def large(tmp_path) -> Corpus:
    """Write a file of 8 MiB."""
    line = " ".join(TEXTS["bo"])[:400] + "\n"
    return write(tmp_path, "bo.txt", line.encode() * (8 * 2**20 // len(line.encode())))


def peak_of(work) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_reading_a_large_file_does_not_hold_it(large, monkeypatch):
    monkeypatch.setattr(corpus, "BATCH_BYTES", 2**16)
    assert peak_of(lambda: sum(len(batch) for _, batch in read_corpora([large], "Reading"))) < 2**20


def test_a_large_file_is_sampled_in_parts(large, monkeypatch):
    monkeypatch.setattr(corpus, "BATCH_BYTES", 2**16)
    monkeypatch.setattr(pieces, "SAMPLE_BYTES", 2**18)
    sample = []
    assert peak_of(lambda: sample.extend(sample_corpora([large], seed=0))) < 2**21
    assert 0.7 < sum(len(line.encode()) + 1 for line in sample) / 2**18 < 1.3
    assert sample == sample_corpora([large], seed=0)
    assert len(sample) != len(sample_corpora([large], seed=1))


def test_counting_a_large_file_does_not_hold_its_tokens(large, monkeypatch, reader):
    monkeypatch.setattr(corpus, "BATCH_BYTES", 2**15)
    large.path.write_bytes(large.path.read_bytes()[: 2**20].rpartition(b"\n")[0])
    state = UnigramVocabulary("reader", reader)
    backend, old_ids = state.backend, list(range(len(reader)))
    assert peak_of(lambda: count_tokens(state, [large])) < 2**20
    assert peak_of(lambda: compare_segmentations(backend, backend, old_ids, 3, [large])) < 2**20


@pytest.mark.parametrize(
    ("character", "expected"),
    [("a", "LATIN"), ("ң", "CYRILLIC"), ("河", "CJK"), ("ཀ", "TIBETAN"), ("ུ", "TIBETAN"), ("ᠠ", "MONGOLIAN")]
    + [("7", None), ("༧", None), ("་", None), ("。", None), (" ", None), ("▁", None)],
)
def test_only_letters_and_marks_have_a_script(character, expected):
    assert find_script(character) == expected


def test_scripts_with_a_small_share_of_the_letters_do_not_count():
    assert find_scripts({"ab 12": 9, "河": 2}, 0.1) == {"LATIN", "CJK"}
    assert find_scripts({"ab 12": 9, "河": 1}, 0.1) == {"LATIN"}
    assert find_scripts({"12": 5}, 0.1) == set()
