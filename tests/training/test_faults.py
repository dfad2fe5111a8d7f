"""Faults of generated texts: each kind is found, and normal texts in any script have none."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tags import TEXTS

from modeling_xlm_swcm.training.faults import count_faults, find_cut, find_faults, is_repetitive


LOOPS = {
    "bo": "ང་ཚོ་དེབ་ཀློག་དེབ་ཀློག་དེབ་ཀློག་དེབ་ཀློག་",
    "ug": "ئۇ كىتاب كىتاب كىتاب كىتاب ئوقۇدى",
    "kk": "Ол кітап оқы кітап оқы кітап оқы кітап оқы",
    "zh": "她看书看书看书看书",
    "mn": "ныйныйныйныйныйныйный",
}
NORMAL = [*TEXTS.values(), "哈哈哈", "1000000000", "2.5 2.5 2.5", "....", "ha ha ha", "Жоқ, жоқ, жоқ!"]


@pytest.mark.parametrize("text", LOOPS.values())
def test_a_loop_is_repetitive(text):
    assert is_repetitive(text)
    assert find_faults([text], ["ok"])["repeated"] == [True]
    # a reference that repeats as well excuses it
    assert find_faults([text], [text])["repeated"] == [False]


@pytest.mark.parametrize("text", [text for text in NORMAL if text != "...."])
def test_normal_text_is_not(text):
    assert not is_repetitive(text)


@given(st.lists(st.text("abcdef", min_size=1, max_size=5), min_size=1, max_size=6), st.integers(4, 6))
def test_a_phrase_four_times_in_a_row_is_always_found(phrase, times):
    assert is_repetitive(" ".join(phrase * times))


def test_each_language_written_in_itself_has_no_fault():
    for text in TEXTS.values():
        assert set(count_faults([text, "BBC 2019"], [text, "BBC 2019"], [TEXTS["zh"] + "。", "2019"]).values()) <= {0}


def test_a_text_in_another_script_is_counted():
    references = [TEXTS["bo"], TEXTS["bo"], "BBC News"]
    outputs = [TEXTS["zh"], TEXTS["bo"], "BBC"]
    assert find_faults(outputs, references)["wrong_script"] == [True, False, False]
    assert find_faults(["2019", "", "BBC"], references)["wrong_script"] == [False, False, False]


def test_a_copy_of_the_source_is_counted_unless_the_reference_is_one():
    source, target = "她喜欢坐在河边看书", TEXTS["bo"]
    outputs = [source, source + "。", source[:8], target, source, ""]
    references = [target, target, target, target, source, target]
    found = find_faults(outputs, references, 6 * [source])["copied"]
    assert found == [True, True, True, False, False, False]


def test_only_what_can_be_counted_is_counted():
    assert count_faults(["", "a"], ["b", "a"]).keys() == {"empty", "repeated", "wrong_script"}
    counts = count_faults(["", "a"], ["b", "a"], ["c", "d"], has_unk=[True, True], is_cut=[False, True])
    assert counts == {"unk": 2, "empty": 1, "repeated": 0, "cut": 1, "wrong_script": 0, "copied": 0}


def test_an_output_without_an_end_token_is_cut():
    # The start token is the end token, as in mBART. -100 fills up batches.
    ids = np.array([[2, 9, 8, 2, 1], [2, 9, 8, 7, 6], [2, 9, 1, 1, 1], [2, 2, -100, -100, -100]])
    assert find_cut(ids, [2]) == [False, True, True, False]
    assert find_cut(ids, [2, 7]) == [False, False, True, False]
