"""Phrases of the demo: correct in every language, and split by content."""

import phrases
import pytest
from phrases import compose_pairs, is_translated


LANGUAGES = ["bo", "ug", "kk", "mn"]


@pytest.fixture(scope="module")
def split():
    return compose_pairs("zh", LANGUAGES, 1500, test_share=0.06, seed=0)


def test_more_phrases_than_there_are_is_refused(monkeypatch):
    monkeypatch.setattr("phrases.DRAWS", {phrases.draw_month: 1})
    with pytest.raises(ValueError, match=r"^Found only [\d,]+ different phrases \(got 2,000\). Use a smaller number."):
        compose_pairs("zh", ["kk"], 2_000, test_share=0.06, seed=0)


def test_no_source_and_no_content_of_the_test_is_in_training(split):
    train, test = split
    assert not {pair.source for pair in train} & {pair.source for pair in test}
    months = [{pair.source.split("月")[0] for pair in pairs if "月" in pair.source} for pairs in split]
    assert not months[0] & months[1]
    assert 0.03 < len(test) / len(train) < 0.1
    assert {pair.language for pair in test} == set(LANGUAGES)


def test_every_kind_is_composed_and_nothing_is_left_untranslated(split):
    pairs = [pair for part in split for pair in part]
    assert {pair.key[0] for pair in pairs} == {"date", "month", "amount", "money", "countries"}
    assert all(is_translated(text) for pair in pairs for text in (pair.source, pair.target))


def test_phrases_say_the_same_in_each_language(split):
    by_source = {}
    for part in split:
        for pair in part:
            by_source.setdefault(pair.source, {})[pair.language] = " ".join(pair.target.split())
    date = next(source for source in by_source if source.endswith("日") and "10月" in source)
    year, day = date.split("年")[0], date.split("月")[1].removesuffix("日")
    assert by_source[date]["kk"] == f"{year} ж. {day} қазан"
    assert by_source[date]["ug"] == f"{day}-ئۆكتەبىر، {year}"
    assert by_source[date]["mn"] == f"{year} оны аравдугаар сарын {day}"
    assert by_source[date]["bo"] == f"སྤྱི་ལོ་{year} ཟླ་བ་བཅུ་པའི་ཚེས་{day}"


def test_the_same_seed_gives_the_same_pairs(split):
    assert compose_pairs("zh", LANGUAGES, 1500, test_share=0.06, seed=0) == split
    assert compose_pairs("zh", LANGUAGES, 1500, test_share=0.06, seed=1) != split
