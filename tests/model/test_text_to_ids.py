"""Calls of the tokenizer: their languages, and texts that spell special tokens."""

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from datasets.fingerprint import Hasher
from support.encoders import roberta_tokenizer
from support.tags import BOS, EOS, LANGUAGES, TEXTS, unigram_tokenizer, with_tags
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from modeling_xlm_swcm import XLMSWCMTokenizer


class TestCalls:
    """Settings of a call are arguments, and a call changes no state."""

    def test_languages_are_arguments_of_a_call(self, unset, plain):
        tags = {code: unset.get_lang_id(code) for code in LANGUAGES}
        both = unset(TEXTS["kk"], text_target=TEXTS["en"], src_lang="kk", tgt_lang="en")
        assert both["input_ids"] == [BOS, tags["kk"], *plain(TEXTS["kk"]), EOS]
        assert both["labels"] == [tags["en"], *plain(TEXTS["en"]), EOS]
        assert unset(text_target=TEXTS["mn"], tgt_lang="mn")["input_ids"][0] == tags["mn"]
        assert unset.encode(TEXTS["ug"], src_lang="ug")[:2] == [BOS, tags["ug"]]
        assert (unset.src_lang, unset.tgt_lang) == (None, None)
        with pytest.raises(ValueError, match="src_lang is not set"):
            unset(TEXTS["kk"])

    def test_an_argument_replaces_the_default_for_one_call(self, tokenizer):
        default = tokenizer(TEXTS["bo"], text_target=TEXTS["zh"])
        changed = tokenizer(TEXTS["bo"], text_target=TEXTS["zh"], src_lang="en", tgt_lang="mn")
        assert changed["input_ids"][1] == tokenizer.get_lang_id("en")
        assert changed["labels"][0] == tokenizer.get_lang_id("mn")
        assert tokenizer(TEXTS["bo"], text_target=TEXTS["zh"]) == default

    @pytest.mark.parametrize("name", ["src_lang", "tgt_lang"])
    def test_an_unknown_language_of_a_call_is_refused(self, tokenizer, name):
        with pytest.raises(ValueError, match='Unknown language "xx". Choose one of: bo, ug'):
            tokenizer(TEXTS["bo"], text_target=TEXTS["zh"], **{name: "xx"})

    def test_a_target_may_be_shorter_than_its_source(self, tokenizer):
        both = tokenizer(
            TEXTS["bo"], text_target=TEXTS["en"], truncation=True, max_length=9, max_target_length=5, tgt_lang="en"
        )
        assert [len(both["input_ids"]), len(both["labels"])] == [9, 5]
        assert both["labels"][-1] == EOS

    def test_a_call_leaves_the_settings_of_the_backend(self, tokenizer):
        backend = tokenizer.backend_tokenizer
        before = backend.to_str()
        tokenizer(
            [TEXTS["bo"], "a"], src_lang="en", padding=True, truncation=True, max_length=4, split_special_tokens=True
        )
        tokenizer(text_target=TEXTS["bo"], tgt_lang="en")
        assert backend.to_str() == before
        assert (backend.encode_special_tokens, tokenizer.backend_tokenizer) == (False, backend)

    def test_tokens_that_are_added_later_are_read(self, tokenizer):
        tokenizer.add_tokens(["😀"])
        added = tokenizer.convert_tokens_to_ids("😀")
        for as_text in (False, True):
            ids = tokenizer("😀 <s>", split_special_tokens=as_text)["input_ids"]
            assert added in ids and len(tokenizer) - 1 == added

    def test_threads_do_not_share_the_settings_of_a_call(self, unset, monkeypatch):
        barrier = threading.Barrier(2)
        set_up = XLMSWCMTokenizer.set_truncation_and_padding

        def wait(self, *args, **kwargs):
            set_up(self, *args, **kwargs)
            # Both threads have prepared their call and have not encoded their text yet.
            barrier.wait(timeout=30)

        calls = {
            "kk": dict(text=TEXTS["kk"], src_lang="kk", truncation=True, max_length=7),
            "mn": dict(text_target=TEXTS["mn"], tgt_lang="mn", padding="max_length", max_length=300),
        }
        expected = {code: unset(**call) for code, call in calls.items()}
        monkeypatch.setattr(XLMSWCMTokenizer, "set_truncation_and_padding", wait)
        with ThreadPoolExecutor(2) as pool:
            results = pool.map(lambda code: (code, unset(**calls[code])), calls)
            assert dict(results) == expected
        assert [len(expected["kk"]["input_ids"]), len(expected["mn"]["input_ids"])] == [7, 300]


SPELT = ["a <s> b", "<mask>", "x</s><pad>y", "<unk>", "ང<unk>ང", "<bo> <kk-Arab>", "< s ><<s>>"]


class TestSpeltOutTokens:
    """`split_special_tokens=True`: a text that spells a special token or a tag is ordinary text."""

    LETTERS = [(letter, -5.0) for letter in "<>/-spadmunkbotrxyKA"]

    @pytest.fixture
    def letters(self, pieces) -> list[tuple[str, float]]:
        return [*pieces, *(pair for pair in self.LETTERS if pair[0] not in dict(pieces))]

    @pytest.fixture(params=["Unigram", "byte-level BPE"])
    def tokenizer(self, request, letters) -> XLMSWCMTokenizer:
        encoder = roberta_tokenizer() if request.param != "Unigram" else unigram_tokenizer(letters)
        return with_tags(encoder, src_lang="bo", tgt_lang="zh")

    @pytest.mark.parametrize("text", SPELT)
    def test_no_text_becomes_a_control_id_and_the_text_comes_back(self, tokenizer, text):
        both = tokenizer(text, text_target=text, split_special_tokens=True)
        bare = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert both["input_ids"] == [
            tokenizer.bos_token_id,
            tokenizer.get_lang_id("bo"),
            *bare,
            tokenizer.eos_token_id,
        ]
        assert both["labels"] == [tokenizer.get_lang_id("zh"), *bare, tokenizer.eos_token_id]
        assert set(tokenizer.all_special_ids).isdisjoint(bare)
        for ids in both["input_ids"], both["labels"]:
            assert tokenizer.decode(ids, skip_special_tokens=True) == text

    def test_the_segmentation_is_the_one_of_a_vocabulary_without_control_pieces(self, pieces):
        # A piece across the brackets wins, as it would in any other text.
        encoder = unigram_tokenizer([*pieces, *self.LETTERS, ("▁<s", -2.0), ("s>b", -6.0)])
        tokenizer = with_tags(encoder, src_lang="bo")
        assert tokenizer.tokenize("<s> a<s>b <st", split_special_tokens=True) == [
            *("▁<s", ">"),
            *("▁", "a", "<", "s>b"),
            *("▁<s", "t"),
        ]

    def test_a_tag_that_the_vocabulary_has_is_text_too(self, letters):
        encoder = unigram_tokenizer([*letters, ("<ug>", -1.0), ("g", -5.0), ("▁<", -4.0)])
        tokenizer = with_tags(encoder, ["ug"], src_lang="ug")
        tokens = tokenizer.tokenize("<ug>", split_special_tokens=True)
        assert "<ug>" not in tokens and "".join(tokens) == "▁<ug>"

    def test_normalisation_makes_no_control_id(self, letters):
        encoder = unigram_tokenizer(letters)
        encoder.backend_tokenizer.normalizer = normalizers.NFKC()
        tokenizer = with_tags(encoder, src_lang="bo")
        ids = tokenizer("＜ｍａｓｋ＞ ＜/s＞", split_special_tokens=True, add_special_tokens=False)["input_ids"]
        assert set(tokenizer.all_special_ids).isdisjoint(ids)
        assert tokenizer.decode(ids, skip_special_tokens=True) == "<mask> </s>"

    def test_the_fingerprint_of_a_dataset_stays_the_same(self, tokenizer):
        before = Hasher.hash(tokenizer)
        tokenizer("<mask>", split_special_tokens=True)
        assert Hasher.hash(tokenizer) == before

    def test_characters_that_are_unknown_stay_unknown(self, tokenizer):
        text = "ᠮ<unk>ᠮ"
        ids = tokenizer(text, split_special_tokens=True, add_special_tokens=False)["input_ids"]
        if tokenizer.backend_tokenizer.model.__class__.__name__ == "BPE":
            assert tokenizer.decode(ids) == text
        else:
            assert tokenizer.convert_ids_to_tokens(ids) == ["▁", "<unk>", *"<unk>", "<unk>"]

    def test_padding_truncation_and_pairs_work(self, tokenizer):
        pair = ["<s>", "plain"], ["</s>", "<pad>"]
        batch = tokenizer(*pair, padding="max_length", truncation=True, max_length=16, split_special_tokens=True)
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            kept = ids[: sum(mask)]
            assert [kept.count(token) for token in (tokenizer.bos_token_id, tokenizer.eos_token_id)] == [1, 3]
            assert ids == kept + [tokenizer.pad_token_id] * (16 - len(kept))
        words = tokenizer([["<s>", "a"]], is_split_into_words=True, split_special_tokens=True)["input_ids"][0]
        assert words.count(tokenizer.bos_token_id) == 1

    def test_it_can_be_the_default_of_a_tokenizer(self, tokenizer, tmp_path):
        tokenizer.save_pretrained(tmp_path)
        loaded = AutoTokenizer.from_pretrained(tmp_path, split_special_tokens=True)
        text = "a<mask>"
        assert loaded(text) == tokenizer(text, split_special_tokens=True)
        assert loaded(text, split_special_tokens=False) == tokenizer(text)

    def test_by_default_they_are_read_as_in_transformers(self, tokenizer):
        ids = tokenizer("a <mask> <zh>", add_special_tokens=False)["input_ids"]
        assert {tokenizer.mask_token_id, tokenizer.get_lang_id("zh")} <= set(ids)

    def test_a_vocabulary_that_cannot_is_refused(self):
        words = Tokenizer(models.WordLevel({"<s>": 0, "<unk>": 1, "a": 2, "</s>": 3}, unk_token="<unk>"))
        words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer = XLMSWCMTokenizer(tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
        assert tokenizer("a", split_special_tokens=True)["input_ids"] == [0, 2, 3]
        with pytest.raises(ValueError, match="contains a special token. A vocabulary of the type WordLevel cannot"):
            tokenizer("a <s>", split_special_tokens=True)

    def test_a_copy_has_the_same_state(self, tokenizer):
        before = pickle.dumps(tokenizer)
        ids = tokenizer("<s>", split_special_tokens=True)
        assert pickle.dumps(tokenizer) == before
        assert pickle.loads(before)("<s>", split_special_tokens=True) == ids
