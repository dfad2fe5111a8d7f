"""Text of the demo: real names, split so that training and test share nothing."""

import pytest
from cldr import NamePair, read_name_pairs, read_names, split_pairs
from hypothesis import given
from hypothesis import strategies as st


def strings(pairs: list[NamePair]) -> set[str]:
    return {text for pair in pairs for text in (pair.source, pair.target)}


def keys(pairs: list[NamePair]) -> set[tuple[str, ...]]:
    return {pair.key for pair in pairs}


@pytest.fixture(scope="module")
def pairs() -> list[NamePair]:
    return read_name_pairs("zh", ["bo", "ug", "kk", "mn"])


@pytest.mark.parametrize("seed", range(3))
def test_no_key_and_no_string_of_the_test_occurs_in_training(pairs, seed):
    train, test = split_pairs(pairs, test_share=0.1, seed=seed)
    assert not keys(train) & keys(test)
    assert not strings(train) & strings(test)
    assert sorted(map(repr, train + test)) == sorted(map(repr, pairs))
    assert 0.08 < len(keys(test)) / len(keys(pairs)) < 0.12
    assert {pair.language for pair in test} == {"bo", "ug", "kk", "mn"}


def test_cldr_says_names_twice_so_that_a_split_by_key_alone_would_leak(pairs):
    by_key = sorted(keys(pairs))
    train = [pair for pair in pairs if by_key.index(pair.key) % 10]
    test = [pair for pair in pairs if not by_key.index(pair.key) % 10]
    assert strings(train) & strings(test)


@given(
    st.lists(
        st.builds(
            NamePair,
            key=st.tuples(st.sampled_from("abcdefghijkl")),
            language=st.sampled_from(["bo", "ug"]),
            source=st.sampled_from("ABCDEFGHIJKL"),
            target=st.sampled_from("MNOPQRSTUVWX"),
        ),
        max_size=20,
    ),
    st.integers(0, 5),
)
def test_no_split_of_any_pairs_leaks(pairs, seed):
    train, test = split_pairs(pairs, test_share=0.4, seed=seed)
    assert not keys(train) & keys(test)
    assert not strings(train) & strings(test)
    assert len(train) + len(test) == len(pairs)


def test_the_names_are_real_and_in_their_scripts(pairs):
    names = read_names("bo")
    assert names["languages", "bo"] == "བོད་སྐད་"
    assert read_names("kk")["territories", "KZ"] == "Қазақстан"
    assert not any(text.isascii() for text in strings(pairs))
    counts = {code: sum(pair.language == code for pair in pairs) for code in ("bo", "ug", "kk", "mn")}
    assert counts["bo"] > 300 and min(counts["ug"], counts["kk"], counts["mn"]) > 1000
