"""The mixture of corpora, and the file that lists them."""

import importlib
import itertools
import math
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from support.corpus_files import read_all, write_lines

from modeling_xlm_swcm import training
from modeling_xlm_swcm.corpora import files
from modeling_xlm_swcm.training.mixture import CorpusConfig, Mixture, load_corpora
from modeling_xlm_swcm.training.pretraining import print_mixture
from modeling_xlm_swcm.training.rows import BadRows, DataError, read_rows


def numbered_corpus(folder: Path, name: str, count: int, start: int = 0) -> CorpusConfig:
    """Return a corpus of rows with one to three letters and a number."""
    lines = [f"{'abc'[: 1 + number % 3]} {start + number}" for number in range(count)]
    return CorpusConfig(write_lines(folder / name, *lines), language="en")


@pytest.fixture
def corpora(tmp_path) -> list[CorpusConfig]:
    return [numbered_corpus(tmp_path, "large.txt", 320, 1000), numbered_corpus(tmp_path, "small.txt", 20, 5000)]


def make_mixture(corpora, tokenizer, **options) -> Mixture:
    return Mixture(corpora, tokenizer, **({"max_length": 32, "batch_size": 4, "shuffle_buffer": 16} | options))


def test_the_table_of_the_corpora_prints_names_as_they_are(tokenizer, tmp_path, capsys):
    corpus = numbered_corpus(tmp_path, "[a][@x].txt", 8)
    print_mixture(make_mixture([corpus], tokenizer), SimpleNamespace(max_steps=1))
    assert "[a][@x].txt" in capsys.readouterr().out


def take(mixture: Mixture, count: int) -> list[tuple]:
    """Return text, epoch and ids of the first examples."""
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
        # Examples of the last epochs may still be in the buffer.
        for epoch in range(last - 2):
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
        # Batches of all lengths come from the start.
        assert abs(batches[:50].mean() - batches[150:].mean()) < 0.5

    def test_batches_are_the_same_however_they_are_divided(self, corpora, tokenizer):
        """Only the product of processes, accumulation steps and batch size matters."""
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
        monkeypatch.setattr(files, "decode_line", lambda line, is_first: read.append(line) or line.decode())
        monkeypatch.setattr(mixture, "batches_sorted_together", 2)
        next(iter(mixture))
        assert len(read) <= 16 + 2 * 4 + 8 + 256

    def test_bad_rows_are_an_error_before_the_training(self, corpora, tokenizer, tmp_path):
        bad = CorpusConfig(write_lines(tmp_path / "bad.txt", "a", "", "b"), language="en")
        with pytest.raises(DataError, match=r"bad.txt:2 is empty"):
            make_mixture([*corpora, bad], tokenizer)
        mixture = make_mixture([*corpora, bad], tokenizer, skip_bad_rows=True)
        assert mixture.examples.tolist() == [320, 20, 2]

    def test_a_corpus_that_was_not_counted_is_checked_as_it_is_read(self, tokenizer, tmp_path):
        path = write_lines(tmp_path / "bad.txt", "a", "", "b")
        mixture = make_mixture([CorpusConfig(path, language="en", examples=3)], tokenizer)
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
        mixture = make_mixture([CorpusConfig(path, language="en", examples=700)], tokenizer, skip_bad_rows=True)
        take(mixture, count)
        assert [message.split(":")[0] for message in caplog.messages] == [f"Skipped {rows}" for rows in said]

    def test_an_error_in_the_worker_of_a_loader_is_one_sentence(self, tokenizer, tmp_path):
        path = write_lines(tmp_path / "bad.txt", "a", "", "b")
        mixture = make_mixture([CorpusConfig(path, language="en", examples=3)], tokenizer)
        messages = []
        for workers in (0, 1):
            with pytest.raises(DataError) as error:
                next(iter(torch.utils.data.DataLoader(mixture, batch_size=4, num_workers=workers)))
            messages.append(str(error.value))
        assert messages[1] == messages[0] and "Traceback" not in messages[1]

    def test_a_corpus_without_a_good_row_is_an_error(self, tokenizer, tmp_path):
        empty = CorpusConfig(write_lines(tmp_path / "empty.txt"), language="en")
        with pytest.raises(DataError, match=r"empty.txt has no usable row"):
            make_mixture([empty], tokenizer)


class TestCorporaFile:
    def load(self, folder: Path, content) -> dict:
        (folder / "corpora.yaml").write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return load_corpora(str(folder / "corpora.yaml"))

    def test_lists_of_corpora(self, tmp_path):
        entries = [{"path": "a.txt", "language": "en"}, {"path": "b.tsv", "languages": ["en", "ug"], "weight": 2}]
        corpora = self.load(tmp_path, {"train": entries, "validation": entries[:1]})
        assert corpora["train"][1] == CorpusConfig("b.tsv", languages=["en", "ug"], weight=2)
        assert corpora["validation"] == [CorpusConfig("a.txt", language="en")]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("train: [", "corpora.yaml cannot be read"),
            ("- a", "needs a list of corpora under train:"),
            ({"training": []}, "needs a list of corpora under train:"),
            ({"train": [{"path": "a", "language": "en", "lang": "ug"}]}, "unknown field lang"),
            ({"train": [{"language": "en"}]}, "A corpus in .*corpora.yaml has no path: "),
            ({"train": ["a.txt"]}, "A corpus in .*corpora.yaml has no path: a.txt. Add `path: FILE`."),
            ({"train": [{"path": "a"}]}, "Corpus a must have either language or languages. Write language: bo"),
            (
                {"train": [{"path": "a", "languages": ["en"]}]},
                r"Corpus a: languages cannot be \['en'\]\. Give a list of two different language codes",
            ),
            ({"train": [{"path": "a", "languages": "en"}]}, r"Corpus a: languages cannot be 'en'"),
            ({"train": [{"path": "a", "languages": ["en", "en"]}]}, r"Corpus .*: languages cannot be \['en', 'en'\]"),
            (
                {"train": [{"path": "a", "language": "en", "columns": ["x", "y"]}]},
                "Corpus a: columns cannot be .* Give a list of two different columns of parallel text",
            ),
            (
                {"train": [{"path": "a", "languages": ["en", "ug"], "column": "x"}]},
                r"Corpus .*: column cannot be 'x'\. Give a column of monolingual text",
            ),
            (
                {"train": [{"path": [], "language": "en"}]},
                r"Corpus .*: path cannot be \[\]\. Give a path or a list of paths",
            ),
            (
                "train: [{path: a, language: no}]",
                r"Corpus a: language cannot be False\. Give a language code\. Without quotes, YAML does not read no, "
                r"yes, on, off, numbers and dates as text\. Put the text in quotes\.$",
            ),
            (
                "train: [{path: a, languages: [no, nn]}]",
                r"Corpus a: languages cannot be \[False, 'nn'\]\. Give a list of two different .* Put the text",
            ),
            ("train: [{path: 2024-01-01, language: en}]", "path cannot be .*2024.* Put the text in quotes"),
            ("train: [{path: a, language: en, column: yes}]", "column cannot be True.* Put the text in quotes"),
            ("train: [{path: a, language: en, name: 2024}]", "name cannot be 2024.* Put the text in quotes"),
            ("train: [{path: a, language: en, split: on}]", "split cannot be True.* Put the text in quotes"),
            ("train: [{path: a, language: en, weight: yes}]", r"weight cannot be True\. Give a number above 0\.$"),
            (
                "train: [{path: a, language: en, examples: yes}]",
                r"examples cannot be True\. Give .* above 0\.$",
            ),
            ({"train": [{"path": 3, "language": "en"}]}, r"Corpus .*: path cannot be 3"),
            (
                {"train": [{"path": "a", "languages": ["en", "ug"], "columns": ["x"]}]},
                "Corpus a: columns cannot be .* Give a list of two different columns of parallel text",
            ),
            (
                {"train": [{"path": "a", "language": "en", "weight": 0}]},
                r"Corpus .*: weight cannot be 0\. Give a number above 0",
            ),
            ({"train": [{"path": "a", "language": "en", "weight": math.inf}]}, r"Corpus .*: weight cannot be inf"),
            (
                {"train": [{"path": "a", "language": "en", "examples": "3k"}]},
                r"Corpus .*: examples cannot be '3k'\. Give a whole number above 0",
            ),
            (
                {"train": {"path": "a", "language": "en"}},
                "train: in .*corpora.yaml must be a list. Put `- ` in front of each corpus.",
            ),
            (
                {"train": [{"path": "a", "languages": ["zh", "bo"], "columns": ["zh", "zh"]}]},
                r"columns cannot be \['zh', 'zh'\]\. Give a list of two different columns of parallel text",
            ),
            ("train: [{path: a, language: en, 3: x, foo: y}]", "unknown field 3"),
            ("train: []\ntrain: [{path: a, language: en}]", "train is given twice"),
            ("train: [{path: a, path: b, language: en}]", "path is given twice"),
            ({"train": [{"path": "a", "language": "en", "languages": ["en", "ug"]}]}, "have either language or"),
        ],
    )
    def test_what_is_refused(self, tmp_path, content, message):
        with pytest.raises(DataError, match=message):
            self.load(tmp_path, content)

    def test_no_such_file(self, tmp_path):
        with pytest.raises(DataError, match="nowhere.yaml does not exist. Check the path."):
            load_corpora(str(tmp_path / "nowhere.yaml"))
        with pytest.raises(DataError, match="nowhere.txt does not exist. Check the path."):
            list(read_rows("nowhere.txt", BadRows()))

    def test_one_text_file_is_not_parallel(self, tmp_path, tokenizer, tables):
        path = write_lines(tmp_path / "a.txt", "a")
        with pytest.raises(DataError, match="Parallel plain text needs two files"):
            read_all(CorpusConfig(path, languages=["en", "ug"]), tokenizer, tables)

    def test_an_unknown_language(self, tmp_path, tokenizer, tables):
        path = write_lines(tmp_path / "a.txt", "a")
        with pytest.raises(
            DataError,
            match='a.txt is in "fr", which has no language tag. Known languages: zh, ug, en. '
            "Use one of them, or convert the encoder with --languages, and train again.",
        ):
            read_all(CorpusConfig(path, language="fr"), tokenizer, tables)


@pytest.mark.timeout(20)
def test_a_corpus_of_no_rows_whose_number_was_given_does_not_turn_for_ever(tokenizer, tmp_path):
    (tmp_path / "en.txt").write_text("")
    corpora = [CorpusConfig(str(tmp_path / "en.txt"), language="en", examples=10)]
    mixture = Mixture(corpora, tokenizer, max_length=32, batch_size=4)
    with pytest.raises(DataError, match="en.txt has no usable row"):
        next(iter(mixture))


def test_a_list_of_no_corpora_is_refused(tmp_path):
    (tmp_path / "corpora.yaml").write_text("train:\n")
    with pytest.raises(DataError, match="needs a list of corpora under train:"):
        load_corpora(str(tmp_path / "corpora.yaml"))


def test_the_old_import_path_works_with_a_warning(monkeypatch):
    monkeypatch.delitem(sys.modules, "modeling_xlm_swcm.training.data", raising=False)
    with pytest.warns(FutureWarning, match="modeling_xlm_swcm.training.data is deprecated"):
        data = importlib.import_module("modeling_xlm_swcm.training.data")
    assert (data.Corpus, data.Mixture) == (CorpusConfig, Mixture)


def test_the_package_exports_its_public_names():
    assert [name for name in training.__all__ if getattr(training, name).__name__ != name] == []
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        training.nothing  # noqa: B018
