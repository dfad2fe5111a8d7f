"""Chinese punctuation: what normalisation replaces comes back, and nothing else changes."""

import unicodedata

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tags import LANGUAGES, unigram_tokenizer, with_tags
from tokenizers import normalizers
from transformers import TextStreamer

from modeling_xlm_swcm import XLMSWCMTokenizer
from modeling_xlm_swcm.punctuation_xlm_swcm import FULL_WIDTH, is_chinese, restore_marks


CHINESE = "书，你好；看？好！说：（静）"
PIECES = [(letter, -5.0) for letter in "▁书你好看说静。、,;?!:()abx123 "]
texts = st.text(st.sampled_from("书看好。、“”,;?!:()，；？！：（）.-ab19 \n"), max_size=30)


def nfkc(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def restore(text: str) -> str:
    return restore_marks(text, nfkc)


@pytest.mark.parametrize(
    "text",
    [
        CHINESE,
        "他说：“你好！”，她没有听见。",
        "我用Python，也用C。",
        "3月9日，19:30开始，16,700人看了：比分3:1。",
        "威尔士（AM）议员（2019年）说",
        "外（里（再里）外）外",
        "Hello, world! (a: b; c?)",
        "网址：http://a.b/c?d=1",
        "书（没有结束",
        "f(x), g(y)",
        "",
    ],
)
def test_normal_text_comes_back_from_its_normalised_form(text):
    assert restore(nfkc(text)) == text


@given(texts)
def test_it_is_reversible_keeps_the_length_and_changes_marks_only(text):
    restored = restore(text)
    assert nfkc(restored) == nfkc(text)
    assert len(restored) == len(text)
    assert all(new in (old, FULL_WIDTH.get(old)) for old, new in zip(text, restored, strict=True))
    assert restore(restored) == restored


@given(st.text(st.characters(exclude_categories=("Lo", "Nl")), max_size=30))
def test_text_without_chinese_letters_stays(text):
    assert restore(text) == text


@given(texts, st.from_regex(r"[0-9]{1,3}[,:;.?!][0-9]{1,3}|[a-c]{1,3}[,:;?!(][a-c]{1,3}", fullmatch=True), texts)
def test_marks_in_numbers_and_latin_words_stay(before, inside, after):
    restored = restore(before + inside + after)
    assert restored[len(before) : len(before) + len(inside)] == inside


def test_marks_that_the_tokenizer_keeps_stay():
    assert restore_marks("书,好!", lambda text: text) == "书,好!"
    assert restore_marks("书,好!", lambda text: text.replace("，", ",")) == "书，好!"


def test_chinese_is_known_by_its_code():
    assert all(map(is_chinese, ("zh", "zh-Hant", "zho_Hans", "cmn", "yue", "ZH")))
    assert not any(map(is_chinese, (None, "", "ja", "za", "bo", "zhx")))


class TestDecode:
    @pytest.fixture
    def tokenizer(self) -> XLMSWCMTokenizer:
        encoder = unigram_tokenizer(PIECES)
        encoder.backend_tokenizer.normalizer = normalizers.NFKC()
        return with_tags(encoder)

    def ids(self, tokenizer, text: str, language: str) -> list[int]:
        return [tokenizer.bos_token_id, *tokenizer(text_target=text, tgt_lang=language)["input_ids"]]

    def test_the_tag_in_the_ids_decides(self, tokenizer):
        batch = [self.ids(tokenizer, CHINESE, language) for language in ("zh", "bo")]
        assert tokenizer.batch_decode(batch, skip_special_tokens=True) == [CHINESE, nfkc(CHINESE)]
        assert tokenizer.decode(batch[0], skip_special_tokens=True) == CHINESE
        assert tokenizer.decode(batch[0][2:-1], skip_special_tokens=True) == nfkc(CHINESE)

    def test_it_can_be_switched_off_and_special_tokens_show_the_plain_text(self, tokenizer):
        ids = self.ids(tokenizer, CHINESE, "zh")
        assert tokenizer.decode(ids, skip_special_tokens=True, restore_punctuation=False) == nfkc(CHINESE)
        assert nfkc(CHINESE) in tokenizer.decode(ids)

    @given(texts)
    def test_restored_text_has_the_same_ids(self, text):
        encoder = unigram_tokenizer(PIECES)
        encoder.backend_tokenizer.normalizer = normalizers.NFKC()
        tokenizer = with_tags(encoder)
        ids = self.ids(tokenizer, text, "zh")
        options = {"skip_special_tokens": True}
        plain = tokenizer.decode(ids, restore_punctuation=False, **options)
        restored = tokenizer.decode(ids, **options)
        assert self.ids(tokenizer, restored, "zh") == self.ids(tokenizer, plain, "zh")

    def test_a_tokenizer_without_normalisation_is_left_alone(self):
        tokenizer = with_tags(unigram_tokenizer(PIECES), LANGUAGES)
        assert tokenizer.decode(self.ids(tokenizer, "书,看", "zh"), skip_special_tokens=True) == "书,看"

    def test_a_stream_prints_it_too(self, tokenizer, capsys):
        streamer = TextStreamer(tokenizer, skip_special_tokens=True)
        for token in self.ids(tokenizer, CHINESE, "zh"):
            streamer.put(torch.tensor([token]))
        streamer.end()
        assert capsys.readouterr().out.strip() == CHINESE
