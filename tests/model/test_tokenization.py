import copy
import pickle
from pathlib import Path

import pytest
import torch
from support.encoders import camembert_tokenizer, roberta_tokenizer
from support.models import tiny_model
from support.tags import BOS, EOS, LANGUAGES, PAD, TEXTS, UNK, unigram_tokenizer, with_tags
from transformers import AutoTokenizer, DataCollatorForSeq2Seq

from modeling_xlm_swcm import XLMSWCMTokenizer


class TestTags:
    def test_they_come_after_the_encoders_tokens_in_the_order_given(self, tokenizer, encoder_tokenizer):
        first = len(encoder_tokenizer)
        assert [tokenizer.get_lang_id(code) for code in LANGUAGES] == list(range(first, first + 7))
        assert len(tokenizer) == first + 7

    def test_the_encoders_own_tokens_keep_their_ids(self, tokenizer, encoder_tokenizer):
        assert tokenizer.get_vocab().items() >= encoder_tokenizer.get_vocab().items()
        names = ("bos_token_id", "pad_token_id", "eos_token_id", "unk_token_id", "mask_token_id")
        assert [getattr(tokenizer, name) for name in names] == [0, 1, 2, 3, len(encoder_tokenizer) - 1]

    def test_a_tag_is_the_code_in_angle_brackets(self, tokenizer):
        tag = tokenizer.get_lang_id("kk-Arab")
        assert tokenizer.convert_ids_to_tokens(tag) == "<kk-Arab>"
        assert tag != tokenizer.get_lang_id("kk")
        assert tag in tokenizer.all_special_ids

    def test_a_tag_that_the_vocabulary_has_already_keeps_its_id(self, pieces):
        encoder_tokenizer = unigram_tokenizer([*pieces, ("<ug>", 0.0)])
        tokenizer = with_tags(encoder_tokenizer, ["ug", "zh"], src_lang="ug")
        assert tokenizer.get_lang_id("ug") == encoder_tokenizer.convert_tokens_to_ids("<ug>")
        assert tokenizer.get_lang_id("zh") == len(encoder_tokenizer)
        assert tokenizer.decode(tokenizer(TEXTS["ug"])["input_ids"], skip_special_tokens=True) == TEXTS["ug"]

    def test_a_tokenizer_without_a_start_or_end_token_is_refused(self, encoder_tokenizer):
        backend = encoder_tokenizer.backend_tokenizer
        with pytest.raises(ValueError, match=r"The tokenizer has no bos_token. Pass `bos_token`, for BERT `\[CLS\]`."):
            XLMSWCMTokenizer(tokenizer_object=backend, languages=["bo"])
        with pytest.raises(ValueError, match="The tokenizer has no eos_token."):
            XLMSWCMTokenizer(tokenizer_object=backend, languages=["bo"], bos_token="<s>")

    @pytest.mark.parametrize("code", ["pad", "unk", "mask", "s"])
    def test_a_tag_that_is_a_special_token_is_refused(self, encoder_tokenizer, code):
        with pytest.raises(ValueError, match=f"<{code}>"):
            with_tags(encoder_tokenizer, ["bo", code])

    def test_other_special_tokens_stay_beside_the_tags(self, encoder_tokenizer):
        tokenizer = with_tags(encoder_tokenizer, ["bo", "zh"], extra_special_tokens=["<title>"])
        assert {"<title>", "<bo>", "<zh>"} <= set(tokenizer.all_special_tokens)


class TestTemplates:
    def test_a_source_is_start_tag_text_end(self, tokenizer, plain):
        expected = [BOS, tokenizer.get_lang_id("bo"), *plain(TEXTS["bo"]), EOS]
        assert tokenizer(TEXTS["bo"])["input_ids"] == expected
        assert tokenizer.encode(TEXTS["bo"]) == expected

    def test_a_target_is_tag_text_end(self, tokenizer, plain):
        expected = [tokenizer.get_lang_id("zh"), *plain(TEXTS["zh"]), EOS]
        assert tokenizer(text_target=TEXTS["zh"])["input_ids"] == expected
        assert tokenizer(TEXTS["bo"], text_target=TEXTS["zh"])["labels"] == expected

    @pytest.mark.parametrize("make", [camembert_tokenizer, roberta_tokenizer])
    def test_they_are_made_of_the_encoders_own_special_tokens(self, make):
        encoder_tokenizer = make()
        tokenizer = with_tags(encoder_tokenizer, src_lang="en", tgt_lang="en")
        text = encoder_tokenizer(TEXTS["en"], add_special_tokens=False)["input_ids"]
        tag, start, end = tokenizer.get_lang_id("en"), encoder_tokenizer.bos_token_id, encoder_tokenizer.eos_token_id
        assert tokenizer(TEXTS["en"])["input_ids"] == [start, tag, *text, end]
        assert tokenizer(text_target=TEXTS["en"])["input_ids"] == [tag, *text, end]

    def test_a_target_leaves_sources_as_they_were(self, tokenizer):
        before = tokenizer(TEXTS["bo"])["input_ids"]
        both = tokenizer([TEXTS["bo"]], text_target=[TEXTS["zh"]])
        assert both["input_ids"] == [before]
        assert tokenizer(TEXTS["bo"])["input_ids"] == before
        assert tokenizer.encode(TEXTS["bo"]) == before

    def test_a_pair_has_one_tag_and_two_ends_between(self, tokenizer, plain):
        first, second = plain(TEXTS["bo"]), plain(TEXTS["en"])
        expected = [BOS, tokenizer.get_lang_id("bo"), *first, EOS, EOS, *second, EOS]
        assert tokenizer(TEXTS["bo"], TEXTS["en"])["input_ids"] == expected

    def test_without_special_tokens_there_is_the_text_alone(self, tokenizer, plain):
        assert tokenizer(TEXTS["bo"], add_special_tokens=False)["input_ids"] == plain(TEXTS["bo"])
        assert tokenizer(text_target=TEXTS["zh"], add_special_tokens=False)["input_ids"] == plain(TEXTS["zh"])

    def test_without_languages_it_is_the_encoders_tokenizer(self, encoder_tokenizer, plain):
        tokenizer = with_tags(encoder_tokenizer, [])
        for text in TEXTS.values():
            assert tokenizer(text)["input_ids"] == encoder_tokenizer(text)["input_ids"]
            assert tokenizer(text, text)["input_ids"] == encoder_tokenizer(text, text)["input_ids"]
            assert tokenizer(text_target=text)["input_ids"] == [*plain(text), EOS]
        assert len(tokenizer) == len(encoder_tokenizer)

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_padding_is_masked_on_either_side(self, tokenizer, side):
        tokenizer.padding_side = side
        texts = [TEXTS["bo"], TEXTS["zh"][:4]]
        batch = tokenizer(texts, padding=True)
        for text, ids, mask in zip(texts, batch["input_ids"], batch["attention_mask"], strict=True):
            alone, padding = tokenizer(text)["input_ids"], (len(ids) - sum(mask)) * [PAD]
            assert ids == (padding + alone if side == "left" else alone + padding)
            assert [token != PAD for token in ids] == list(map(bool, mask))
        assert len(set(map(len, batch["input_ids"]))) == 1 < len(set(map(sum, batch["attention_mask"])))

    def test_truncation_keeps_the_tag_and_the_end(self, tokenizer, plain):
        source = tokenizer(TEXTS["bo"], truncation=True, max_length=8)["input_ids"]
        assert source == [BOS, tokenizer.get_lang_id("bo"), *plain(TEXTS["bo"])[:5], EOS]
        target = tokenizer(text_target=TEXTS["zh"], truncation=True, max_length=6)["input_ids"]
        assert target == [tokenizer.get_lang_id("zh"), *plain(TEXTS["zh"])[:4], EOS]

    def test_the_special_tokens_mask_marks_the_tag(self, tokenizer):
        mask = tokenizer(TEXTS["bo"], return_special_tokens_mask=True)["special_tokens_mask"]
        assert mask[:3] == [1, 1, 0]
        assert mask[-2:] == [0, 1]

    @pytest.mark.parametrize("code", LANGUAGES)
    def test_text_comes_back_whole(self, tokenizer, code):
        tokenizer.src_lang = tokenizer.tgt_lang = code
        source, target = tokenizer(TEXTS[code])["input_ids"], tokenizer(text_target=TEXTS[code])["input_ids"]
        assert UNK not in source
        for ids in (source, target, [*target, PAD, PAD]):
            assert tokenizer.decode(ids, skip_special_tokens=True) == TEXTS[code]


class TestLanguages:
    def test_languages_can_be_switched(self, tokenizer):
        for code in ("kk-Arab", "kk", "mn"):
            tokenizer.src_lang = tokenizer.tgt_lang = code
            tag = tokenizer.get_lang_id(code)
            assert tokenizer.encode(TEXTS[code])[:2] == [BOS, tag]
            assert tokenizer(TEXTS[code])["input_ids"][:2] == [BOS, tag]
            assert tokenizer(text_target=TEXTS[code])["input_ids"][0] == tag
            assert (tokenizer.src_lang, tokenizer.tgt_lang) == (code, code)

    def test_the_ids_of_the_tags_have_the_name_that_mbart_gives_them(self, tokenizer):
        ids = tokenizer.lang_code_to_id
        assert list(ids) == LANGUAGES
        assert tokenizer.convert_ids_to_tokens(list(ids.values())) == [f"<{code}>" for code in LANGUAGES]

    def test_the_list_of_languages_cannot_be_changed_from_outside(self, tokenizer):
        tokenizer.languages.append("ja")
        assert tokenizer.languages == LANGUAGES

    @pytest.mark.parametrize(
        "ask",
        [
            lambda tokenizer: setattr(tokenizer, "src_lang", "tl"),
            lambda tokenizer: setattr(tokenizer, "tgt_lang", "tl"),
            lambda tokenizer: tokenizer.get_lang_id("tl"),
        ],
        ids=["src_lang", "tgt_lang", "get_lang_id"],
    )
    def test_an_unknown_language_is_refused_with_the_known_ones(self, tokenizer, ask):
        before = tokenizer(TEXTS["bo"], text_target=TEXTS["zh"])
        with pytest.raises(ValueError, match='"tl".*bo, ug, kk, kk-Arab, mn, zh, en'):
            ask(tokenizer)
        assert tokenizer(TEXTS["bo"], text_target=TEXTS["zh"]) == before

    @pytest.mark.parametrize("option", ["src_lang", "tgt_lang"])
    def test_an_unknown_language_is_refused_by_the_constructor(self, encoder_tokenizer, option):
        with pytest.raises(ValueError, match='"tl".*bo, ug'):
            with_tags(encoder_tokenizer, **{option: "tl"})

    @pytest.mark.parametrize(("languages", "message"), [(["bo", "bo"], "bo twice"), ([""], "an empty code")])
    def test_codes_that_are_empty_or_repeated_are_refused(self, encoder_tokenizer, languages, message):
        with pytest.raises(ValueError, match=f"^languages has {message}. Remove it."):
            with_tags(encoder_tokenizer, languages=languages)
        assert with_tags(encoder_tokenizer, languages=None).languages == []

    def test_no_language_has_no_id(self, tokenizer):
        with pytest.raises(ValueError, match="bo, ug"):
            tokenizer.get_lang_id(None)

    def test_without_languages_every_language_is_unknown(self, encoder_tokenizer):
        with pytest.raises(
            ValueError, match='Unknown language "bo". The tokenizer has no languages. Pass --languages'
        ):
            with_tags(encoder_tokenizer, [], src_lang="bo")

    def test_text_of_an_unset_language_is_refused_with_what_to_set(self, unset):
        with pytest.raises(ValueError, match="src_lang.*bo, ug"):
            unset(TEXTS["bo"])
        with pytest.raises(ValueError, match="src_lang"):
            unset.encode(TEXTS["bo"])
        with pytest.raises(ValueError, match="tgt_lang.*bo, ug"):
            unset(text_target=TEXTS["bo"])

    def test_text_of_an_unset_language_needs_none_without_special_tokens(self, unset, plain):
        assert unset(TEXTS["bo"], add_special_tokens=False)["input_ids"] == plain(TEXTS["bo"])
        assert unset(text_target=TEXTS["bo"], add_special_tokens=False)["input_ids"] == plain(TEXTS["bo"])
        assert "".join(unset.tokenize(TEXTS["en"])) == "▁" + TEXTS["en"].replace(" ", "▁")

    @pytest.mark.parametrize("target", [TEXTS["zh"], 7], ids=["text without its language", "no text"])
    @pytest.mark.parametrize("encode", [lambda tokenizer, text: tokenizer(text)["input_ids"], XLMSWCMTokenizer.encode])
    def test_a_refused_target_leaves_sources_as_they_were(self, encoder_tokenizer, target, encode):
        tokenizer = with_tags(encoder_tokenizer, src_lang="bo", tgt_lang="zh" if target == 7 else None)
        before = encode(tokenizer, TEXTS["bo"])
        with pytest.raises((TypeError, ValueError)):
            tokenizer(text_target=target)
        assert encode(tokenizer, TEXTS["bo"]) == before


class TestUnicode:
    @pytest.mark.parametrize(
        "texts",
        [
            dict(text="no \ud800 wind"),
            dict(text=["no wind", "\ud800"]),
            dict(text="no", text_pair="\ud800"),
            dict(text_target=["\ud800"]),
            dict(text=[("no", "\ud800")], split_special_tokens=True),
        ],
    )
    def test_a_lone_surrogate_is_named(self, tokenizer, texts):
        with pytest.raises(ValueError, match=r"^A text has the lone surrogate '\\ud800', .* Remove it\.$"):
            tokenizer(**texts, src_lang="zh", tgt_lang="bo")

    def test_other_wrong_types_keep_their_error(self, tokenizer):
        with pytest.raises((TypeError, ValueError), match="(?i)input"):
            tokenizer([1.5], src_lang="zh")


class TestSaving:
    def check_equal(self, loaded: XLMSWCMTokenizer, tokenizer: XLMSWCMTokenizer):
        assert type(loaded) is XLMSWCMTokenizer
        assert (loaded.languages, loaded.src_lang, loaded.tgt_lang) == (
            LANGUAGES,
            tokenizer.src_lang,
            tokenizer.tgt_lang,
        )
        assert loaded.get_vocab() == tokenizer.get_vocab()
        assert loaded.extra_special_tokens == tokenizer.extra_special_tokens
        assert loaded.special_tokens_map == tokenizer.special_tokens_map
        for text in TEXTS.values():
            assert loaded(text, text_target=text) == tokenizer(text, text_target=text)

    def test_a_saved_tokenizer_comes_back_the_same(self, tokenizer, tmp_path):
        tokenizer.save_pretrained(tmp_path)
        self.check_equal(AutoTokenizer.from_pretrained(tmp_path), tokenizer)

    def test_a_tokenizer_that_is_saved_again_comes_back_the_same(self, tokenizer, tmp_path):
        tokenizer.save_pretrained(tmp_path / "first")
        AutoTokenizer.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
        self.check_equal(AutoTokenizer.from_pretrained(tmp_path / "second"), tokenizer)
        files = [Path(tmp_path / folder / "tokenizer.json").read_text() for folder in ("first", "second")]
        assert files[0] == files[1]

    def test_languages_that_were_set_later_are_saved(self, tokenizer, tmp_path):
        tokenizer.src_lang, tokenizer.tgt_lang = "mn", "ug"
        tokenizer.save_pretrained(tmp_path)
        self.check_equal(AutoTokenizer.from_pretrained(tmp_path), tokenizer)

    def test_a_tokenizer_may_be_saved_before_its_languages_are_set(self, unset, tmp_path):
        unset.save_pretrained(tmp_path)
        loaded = AutoTokenizer.from_pretrained(tmp_path)
        assert (loaded.src_lang, loaded.tgt_lang) == (None, None)
        with pytest.raises(ValueError, match="src_lang"):
            loaded(TEXTS["bo"])

    @pytest.mark.parametrize("loader", [AutoTokenizer, XLMSWCMTokenizer])
    def test_languages_may_be_given_at_loading(self, tokenizer, tmp_path, loader):
        tokenizer.save_pretrained(tmp_path)
        loaded = loader.from_pretrained(tmp_path, src_lang="kk-Arab", tgt_lang="en")
        assert loaded(TEXTS["kk-Arab"])["input_ids"][1] == tokenizer.get_lang_id("kk-Arab")
        assert loaded(text_target=TEXTS["en"])["input_ids"][0] == tokenizer.get_lang_id("en")

    def test_an_unknown_language_at_loading_is_refused(self, tokenizer, tmp_path):
        tokenizer.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match='"tl".*bo, ug'):
            AutoTokenizer.from_pretrained(tmp_path, src_lang="tl")

    def test_padding_and_truncation_of_earlier_calls_are_not_saved(self, tokenizer, tmp_path):
        tokenizer([TEXTS["bo"], TEXTS["zh"]], padding="max_length", max_length=20, truncation=True)
        tokenizer.save_pretrained(tmp_path)
        self.check_equal(AutoTokenizer.from_pretrained(tmp_path), tokenizer)

    @pytest.mark.parametrize(
        "copied", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))], ids=["copy", "pickle"]
    )
    def test_a_copy_is_equal_and_independent(self, tokenizer, copied):
        other = copied(tokenizer)
        self.check_equal(other, tokenizer)
        other.src_lang = "en"
        assert other(TEXTS["en"])["input_ids"][1] == tokenizer.get_lang_id("en")
        assert tokenizer(TEXTS["en"])["input_ids"][1] == tokenizer.get_lang_id("bo")


class TestCollator:
    @pytest.fixture
    def batch(self, tokenizer) -> dict[str, torch.Tensor]:
        model = tiny_model(vocab_size=len(tokenizer))
        sources, targets = [TEXTS["bo"], TEXTS["bo"][:9]], [TEXTS["zh"][:5], TEXTS["zh"]]
        features = [tokenizer(source, text_target=target) for source, target in zip(sources, targets, strict=True)]
        return DataCollatorForSeq2Seq(tokenizer, model)(features)

    def test_labels_are_the_targets_with_no_loss_on_padding(self, batch, tokenizer):
        short, long = tokenizer(text_target=[TEXTS["zh"][:5], TEXTS["zh"]])["input_ids"]
        assert batch["labels"].tolist() == [short + (len(long) - len(short)) * [-100], long]

    def test_decoder_inputs_are_the_start_token_and_the_tag_and_the_text(self, batch, tokenizer):
        labels, decoder_input_ids = batch["labels"], batch["decoder_input_ids"]
        assert decoder_input_ids[:, :2].tolist() == 2 * [[BOS, tokenizer.get_lang_id("zh")]]
        assert torch.equal(decoder_input_ids[:, 1:], labels[:, :-1].masked_fill(labels[:, :-1] == -100, PAD))

    def test_the_tag_is_the_first_label_so_that_a_forced_tag_stands_where_training_had_it(self, batch, tokenizer):
        assert batch["labels"][:, 0].tolist() == 2 * [tokenizer.get_lang_id("zh")]
        model = tiny_model(vocab_size=len(tokenizer))
        source = {name: batch[name] for name in ("input_ids", "attention_mask")}
        written = model.generate(**source, forced_bos_token_id=tokenizer.get_lang_id("zh"), max_new_tokens=3)
        assert torch.equal(written[:, :2], batch["decoder_input_ids"][:, :2])
