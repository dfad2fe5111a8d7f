"""Texts that the tokenizer does not keep: unknown tokens, rewritten characters, special tokens and truncation."""

import pytest
from support.corpus_files import new_tokenizer, read_all, write_lines, write_rows
from support.encoders import xlm_roberta_tokenizer
from tokenizers import normalizers

from modeling_xlm_swcm import XLMSWCMTokenizer
from modeling_xlm_swcm.training.coverage import Coverage
from modeling_xlm_swcm.training.denoising import TokenTables
from modeling_xlm_swcm.training.examples import Pair, encode_pairs
from modeling_xlm_swcm.training.finetuning_data import FinetuneDataArguments, PairEncoder, encode_for_evaluation
from modeling_xlm_swcm.training.mixture import CorpusConfig, Mixture
from modeling_xlm_swcm.training.rows import BadRows, DataError


GEORGIAN = ["ქართული ენა", "ახალი წიგნი"]
ENGLISH = ["the boat", "the river"]


def make_encoder(tokenizer, **options) -> PairEncoder:
    args = FinetuneDataArguments(task="translation", source_lang="en", target_lang=["zh"], **options)
    return PairEncoder(tokenizer, args, BadRows(args.skip_bad_rows))


def english_pairs(targets: list[str]) -> list[Pair]:
    return [Pair(f"a:{n}", "the boat", target, "en", "zh") for n, target in enumerate(targets, 1)]


@pytest.fixture
def nfkc() -> XLMSWCMTokenizer:
    """Return a tokenizer that normalizes like XLM-R's: NFKC, and no zero-width space."""
    tokenizer = new_tokenizer()
    steps = [normalizers.NFKC(), normalizers.Replace("\u200b", "")]
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(steps)
    return tokenizer


class TestUnknownTokens:
    def test_the_share_is_counted_over_the_tokens_of_the_text(self, tokenizer):
        coverage = Coverage(tokenizer)
        coverage.add("targets in zh", "a", [7, 8, 9, tokenizer.unk_token_id])
        coverage.add("targets in zh", "b", [7] * 6)
        assert coverage.counts["targets in zh"].unk_share == 0.1
        # 10% is not more than 10%.
        coverage.report()
        coverage.add("targets in zh", "c", [tokenizer.unk_token_id])
        message = '^18.2% of the tokens of the targets in zh are <unk>, more than --max_unk_share 0.1 .example: "a".'
        with pytest.raises(DataError, match=f"{message}.* xlm-swcm vocab extend, or pass a larger --max_unk_share"):
            coverage.report()

    @pytest.mark.parametrize(("side", "language"), [("source", "en"), ("target", "zh")])
    def test_fine_tuning_into_a_script_that_the_vocabulary_lacks_stops(self, tokenizer, side, language):
        pairs = [pair._replace(**{side: text}) for pair, text in zip(english_pairs(ENGLISH), GEORGIAN, strict=True)]
        encoder = make_encoder(tokenizer)
        list(encoder(pairs, 100))
        # Each word is the mark of a word and `<unk>`.
        count = encoder.coverage.counts[f"{side}s in {language}"]
        assert (count.texts, count.tokens, count.unknown, count.unk_share) == (2, 8, 4, 0.5)
        with pytest.raises(
            DataError, match=f'^50.0% of the tokens of the {side}s in {language} are <unk>.*"{GEORGIAN[0]}"'
        ):
            encoder.report()
        allowed = make_encoder(tokenizer, max_unk_share=1.0)
        list(allowed(pairs, 100))
        allowed.report()

    @pytest.mark.parametrize("examples", [None, 1000], ids=["counted", "number given"])
    def test_pretraining_on_a_script_that_the_vocabulary_lacks_stops(self, tmp_path, tokenizer, examples):
        good = CorpusConfig(write_lines(tmp_path / "a.txt", *ENGLISH), language="en")
        bad = CorpusConfig(write_lines(tmp_path / "b.txt", *GEORGIAN), language="ug", examples=examples)
        with pytest.raises(DataError, match=r"\d\d\.\d% of the tokens of the texts in ug are <unk>.*vocab extend"):
            Mixture([good, bad], tokenizer, max_length=40, batch_size=2)
        mixture = Mixture([good, bad], tokenizer, max_length=40, batch_size=2, max_unk_share=1.0)
        assert mixture.examples.tolist() == [2, examples or 2]

    def test_parallel_text_is_counted_on_both_sides(self, tmp_path, tokenizer, tables):
        rows = [{"en": en, "zh": ka} for en, ka in zip(ENGLISH, GEORGIAN, strict=True)]
        corpus = CorpusConfig(write_rows(tmp_path / "a.jsonl", rows), languages=["en", "zh"])
        with pytest.raises(DataError, match="of the targets in zh are <unk>"):
            Mixture([corpus], tokenizer, max_length=40, batch_size=2)

    @pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
    def test_a_share_that_is_none_is_refused(self, tokenizer, share):
        with pytest.raises(DataError, match="--max_unk_share must be between 0 and 1"):
            make_encoder(tokenizer, max_unk_share=share)

    def test_a_small_share_is_said(self, tokenizer, caplog):
        encoder = make_encoder(tokenizer)
        list(encoder(english_pairs(["the boat " * 9 + "ქ"]), 100))
        encoder.report()
        count = encoder.coverage.counts["targets in zh"]
        assert (count.unknown, 0 < count.unk_share < 0.1) == (1, True)
        assert f"{count.unk_share:.2%} of the tokens of the targets in zh are <unk>" in caplog.text


class TestNormalization:
    @pytest.mark.parametrize(
        ("targets", "message"),
        [
            (["the ｂoat ｂ"], "1 character of the targets in zh: ｂ -> b (2 x)."),
            (
                ["the ｂoat ｂ", "the\u200briver\u3000a"],
                r"2 characters of the targets in zh: ｂ -> b (2 x), '\u200b' -> nothing (1 x).",
            ),
        ],
    )
    def test_characters_that_are_rewritten_are_named_and_counted(self, nfkc, caplog, targets, message):
        encoder = make_encoder(nfkc, max_unk_share=1.0)
        list(encoder(english_pairs(targets), 100))
        encoder.report()
        assert f"The tokenizer rewrites {message}" in caplog.text
        assert "sources" not in caplog.text

    def test_a_pair_of_which_nothing_is_left_is_a_bad_row(self, nfkc):
        encoder = make_encoder(nfkc)
        assert list(encoder(english_pairs(["\u200b"]), 100)) == []
        with pytest.raises(DataError, match="a:1 has a text without any token"):
            encoder.report()

    def test_a_text_of_which_nothing_is_left_gives_no_example(self, nfkc, tmp_path, caplog):
        corpus = CorpusConfig(write_lines(tmp_path / "a.txt", "the boat", "\u200b"), language="en")
        assert len(read_all(corpus, nfkc, TokenTables(nfkc))) == 1
        mixture = Mixture([corpus], nfkc, max_length=40, batch_size=2)
        assert mixture.examples.tolist() == [1]
        assert "1 of the 2 texts in en have no token." in caplog.text


class TestSpeltOutTokens:
    TEXT = "the <s> <mask> <zh> </s> <pad> boat"

    @pytest.fixture
    def tokenizer(self) -> XLMSWCMTokenizer:
        encoder = xlm_roberta_tokenizer(*"0123456789W<>/skmpdzh")
        special = encoder.special_tokens_map
        return XLMSWCMTokenizer(tokenizer_object=encoder.backend_tokenizer, languages=["zh", "ug", "en"], **special)

    def check(self, tokenizer, ids: list[int], frame: int):
        control = set(tokenizer.all_special_ids)
        assert sum(token in control for token in ids) == frame
        assert tokenizer.decode(ids, skip_special_tokens=True) == self.TEXT

    def test_they_are_text_in_sources_and_labels(self, tokenizer):
        pair = Pair("a:1", self.TEXT, self.TEXT, "en", "zh")
        (example,) = encode_pairs([pair], tokenizer, 100, 100, BadRows())
        self.check(tokenizer, example["input_ids"], frame=3)
        self.check(tokenizer, example["labels"], frame=2)
        assert (tokenizer.src_lang, tokenizer.tgt_lang) == (None, None)

    def test_they_are_text_in_questions_and_contexts(self, tokenizer):
        pair = Pair("a:1", (self.TEXT, self.TEXT), self.TEXT, "en", "en")
        (example,) = encode_pairs([pair], tokenizer, 200, 100, BadRows())
        control = set(tokenizer.all_special_ids)
        assert sum(token in control for token in example["input_ids"]) == 5

    def test_they_are_text_in_denoising(self, tokenizer, tmp_path):
        corpus = CorpusConfig(write_lines(tmp_path / "a.txt", self.TEXT), language="en")
        (example,) = read_all(corpus, tokenizer, TokenTables(tokenizer))
        self.check(tokenizer, example["input_ids"], frame=3)


class TestTruncation:
    def test_a_target_for_evaluation_keeps_its_tag_and_its_end(self, tokenizer, caplog):
        encoder = make_encoder(tokenizer, max_target_length=8)
        pairs = english_pairs(["the boat and the river " * 3, "a"])
        examples, _ = encode_for_evaluation(pairs, encoder)
        whole = tokenizer(text_target=pairs[0].target, tgt_lang="zh")["input_ids"]
        assert examples[0]["labels"] == [*whole[:7], tokenizer.eos_token_id]
        assert examples[0]["labels"][0] == tokenizer.get_lang_id("zh")
        assert examples[1]["labels"] == tokenizer(text_target="a", tgt_lang="zh")["input_ids"]
        encoder.report()
        assert "Truncated targets: 1. The maximum is 8 tokens for the evaluation loss" in caplog.text

    @pytest.mark.parametrize(("name", "least"), [("max_source_length", 4), ("max_target_length", 3)])
    def test_a_length_without_room_for_text_is_refused(self, tokenizer, name, least):
        make_encoder(tokenizer, **{name: least})
        with pytest.raises(DataError, match=f"--{name} must be at least {least} .got {least - 1}."):
            make_encoder(tokenizer, **{name: least - 1})
