"""Trim a vocabulary: kept tokens keep their rows, and text of the kept languages can still be segmented."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from support.encoders import (
    edit_config,
)
from support.folders import bits, different_tensors, load
from support.remote_code import CODE
from support.vocabularies import (
    EMBEDDINGS,
    KNOWN,
    TAGS,
    TEXTS,
    ids,
    load_cached,
    load_encoder,
    load_tokenizer,
    other_tensors,
    save_reader,
    segment,
    sentences_in,
    vocabulary_tensors,
)
from transformers import AutoModel

from modeling_xlm_swcm.conversion import ConversionError, convert
from modeling_xlm_swcm.vocabulary import trim


@pytest.fixture(scope="module")
def trimmed(reader, texts, tmp_path_factory) -> Path:
    """Return the reader with only frequent tokens of English."""
    output = tmp_path_factory.mktemp("trimmed") / "model"
    trim(reader, output, corpus=[texts["en"]], min_count=3)
    return output


@pytest.fixture(scope="module")
def smallest(reader, texts, tmp_path_factory) -> Path:
    """Return the reader with only the required tokens of all its languages."""
    output = tmp_path_factory.mktemp("smallest") / "model"
    trim(reader, output, corpus=[texts[language] for language in KNOWN], min_count=10**9)
    return output


def id_map(folder: Path) -> dict[int, int]:
    return {int(before): after for before, after in json.loads((folder / "id_map.json").read_text()).items()}


def unchanged(before, after, language: str) -> list[str]:
    """Return words with an unchanged segmentation, and a phrase of these words."""
    words = [word for sentence in TEXTS[language] for word in sentence.split()]
    same = [word for word in words if segment(before, word) == segment(after, word)]
    assert 2 < len(same) < len(words)
    return [" ".join(same[:12]), *same]


class TestTrimmed:
    @given(sentences_in("en"))
    def test_decoded_text_of_the_language_does_not_change(self, old, trimmed, text):
        new = load_cached(trimmed)
        assert new.decode(ids(new, text)) == old.decode(ids(old, text))
        assert "<unk>" not in segment(new, text)

    @given(sentences_in(*KNOWN))
    def test_decoded_text_of_several_languages_does_not_change(self, old, smallest, text):
        new = load_cached(smallest)
        assert new.decode(ids(new, text)) == old.decode(ids(old, text))
        assert "<unk>" not in segment(new, text)

    def test_tokens_of_other_scripts_are_dropped(self, trimmed):
        vocab = "".join(load_cached(trimmed).get_vocab())
        assert not set("ңқ河雪ངད") & set(vocab)

    def test_special_tokens_and_characters_are_kept(self, old, trimmed):
        vocab = load_cached(trimmed).get_vocab().keys()
        single = {piece for piece in old.get_vocab() if len(piece) == 1 and (piece.isascii() or not piece.isalpha())}
        assert {*old.all_special_tokens, "▁", *single} <= vocab
        assert load_cached(trimmed).special_tokens_map == old.special_tokens_map

    def test_kept_tokens_keep_their_order_and_the_id_map_lists_them(self, old, trimmed):
        new = load_cached(trimmed)
        kept = id_map(trimmed)
        assert list(kept.values()) == list(range(len(new)))
        assert list(kept) == sorted(kept)
        assert old.convert_ids_to_tokens(list(kept)) == new.convert_ids_to_tokens(list(kept.values()))
        assert new.mask_token_id == len(new) - 1

    def test_kept_rows_and_other_tensors_are_bit_equal(self, reader, trimmed):
        kept = list(id_map(trimmed))
        before, after = vocabulary_tensors(reader), vocabulary_tensors(trimmed)
        assert after.keys() == before.keys() == {EMBEDDINGS, "lm_head.bias"}
        for name, tensor in before.items():
            assert torch.equal(bits(after[name]), bits(tensor[kept]))
        assert different_tensors(other_tensors(reader), other_tensors(trimmed)) == []

    def test_an_encoder_predicts_as_before(self, old, reader, trimmed):
        new, kept = load_cached(trimmed), id_map(trimmed)
        before, after = load_encoder(reader), load_encoder(trimmed)
        for text in unchanged(old, new, "en"):
            inputs, outputs = (tokenizer(text, return_tensors="pt").input_ids for tokenizer in (old, new))
            assert outputs[0].tolist() == [kept[token] for token in inputs[0].tolist()]
            assert torch.equal(after(outputs).logits, before(inputs).logits[..., list(kept)])

    def test_xlm_swcm_predicts_as_before(self, writer, texts, output):
        trim(writer, output, corpus=[texts["en"]], min_count=3)
        kept = id_map(output)
        before, after = (load_tokenizer(folder, src_lang="en", tgt_lang="zh") for folder in (writer, output))
        model, smaller = load(writer).eval(), load(output).eval()
        for text in unchanged(before, after, "en"):
            inputs = before(text, return_tensors="pt", truncation=True)
            outputs = after(text, return_tensors="pt", truncation=True)
            assert outputs.input_ids[0].tolist() == [kept[token] for token in inputs.input_ids[0].tolist()]
            logits = model(**inputs, decoder_input_ids=inputs.input_ids).logits
            assert torch.equal(smaller(**outputs, decoder_input_ids=outputs.input_ids).logits, logits[..., list(kept)])

    def test_tags_are_kept_and_their_ids_in_the_configs_renumbered(self, writer, texts, output):
        trim(writer, output, corpus=[texts["en"]])
        before, after = load_tokenizer(writer), load_tokenizer(output, src_lang="en")
        kept = id_map(output)
        assert after.languages == TAGS
        assert [after.get_lang_id(code) for code in TAGS] == [kept[before.get_lang_id(code)] for code in TAGS]
        assert after.get_lang_id("zh") != before.get_lang_id("zh")
        generation = json.loads((output / "generation_config.json").read_text())
        assert generation["forced_bos_token_id"] == after.get_lang_id("zh")
        unchanged_fields = json.loads((writer / "generation_config.json").read_text())
        assert generation == unchanged_fields | {"forced_bos_token_id": after.get_lang_id("zh")}
        generated = load(output).generate(**after("The tea is strong.", return_tensors="pt"), max_new_tokens=5)
        assert generated[0, :2].tolist() == [0, after.get_lang_id("zh")]

    def test_every_id_of_a_config_is_renumbered(self, reader, old, texts, output, tmp_path):
        folder = Path(shutil.copytree(reader, tmp_path / "reader"))
        rare, common = old.convert_tokens_to_ids("河"), old.convert_tokens_to_ids("e")
        edit_config(folder, eos_token_id=[2, rare], mask_token_id=old.mask_token_id, sep_token_id=common)
        trim(folder, output, corpus=[texts["en"]])
        kept, config = id_map(output), json.loads((output / "config.json").read_text())
        assert config["eos_token_id"] == [2, kept[rare]]
        assert config["mask_token_id"] == load_tokenizer(output).mask_token_id == kept[old.mask_token_id]
        assert config["sep_token_id"] == kept[common]
        assert config["vocab_size"] == len(kept)

    def test_bad_words_ids_are_renumbered_and_fields_with_other_numbers_refused(
        self, writer, old, texts, output, tmp_path
    ):
        folder = Path(shutil.copytree(writer, tmp_path / "writer"))
        rare, common = old.convert_tokens_to_ids("河"), old.convert_tokens_to_ids("e")
        path = folder / "generation_config.json"
        fields = json.loads(path.read_text()) | {"bad_words_ids": [[common, rare], [rare]]}
        path.write_text(json.dumps(fields))
        trim(folder, output, corpus=[texts["en"]])
        kept, generation = id_map(output), json.loads((output / "generation_config.json").read_text())
        assert generation["bad_words_ids"] == [[kept[common], kept[rare]], [kept[rare]]]
        path.write_text(json.dumps(fields | {"sequence_bias": [[[rare], -5.0]]}))
        with pytest.raises(ConversionError, match="generation_config.json of .* sets sequence_bias, .* Remove this"):
            trim(folder, output, corpus=[texts["en"]], overwrite=True)

    def test_xlm_swcm_carries_its_code_and_its_conversion_report(self, writer, texts, output):
        trim(writer, output, corpus=[texts["en"]])
        for name in CODE:
            assert (output / name).read_bytes() == (writer / name).read_bytes()
        assert (output / "conversion_report.json").is_file()
        auto_map = json.loads((output / "config.json").read_text())["auto_map"]
        assert auto_map == json.loads((writer / "config.json").read_text())["auto_map"]
        AutoModel.from_pretrained(output)

    def test_trimming_an_extended_model_keeps_its_new_tokens(self, extended, texts, output):
        trim(extended, output, corpus=[texts["bo"]], coverage=1.0)
        before, after = load_cached(extended), load_tokenizer(output)
        for sentence in TEXTS["bo"]:
            assert segment(after, sentence) == segment(before, sentence)
        assert len(after) < len(before)


class TestKeptTokens:
    def kept(self, reader, output, *corpus: str, **options) -> set[str]:
        trim(reader, output, corpus=list(corpus), **options)
        return set(load_tokenizer(output).get_vocab())

    def count(self, old, *sentences: str) -> dict[str, int]:
        counts = {}
        for sentence in sentences:
            for piece in segment(old, sentence):
                counts[piece] = counts.get(piece, 0) + 1
        return counts

    def test_min_count_counts_over_all_languages(self, old, reader, texts, output):
        kept = self.kept(reader, output, texts["en"], texts["kk"], min_count=2)
        counts = self.count(old, *TEXTS["en"], *TEXTS["kk"])
        assert 2 in counts.values() and 1 in counts.values()
        for piece, count in counts.items():
            assert (piece in kept) == (count >= 2 or len(piece) == 1), piece

    @pytest.mark.parametrize("size", [150, 180, 200])
    def test_size_is_exact(self, reader, texts, output, size):
        assert len(self.kept(reader, output, texts["en"], texts["kk"], size=size)) == size

    def test_size_takes_the_most_frequent_of_each_language(self, old, reader, texts, tmp_path):
        smallest = self.kept(reader, tmp_path / "smallest", texts["en"], texts["kk"], min_count=10**9)
        # A tenfold English corpus must not change the share of Kazakh tokens.
        tenfold = tmp_path / "en.txt"
        tenfold.write_text(10 * Path(texts["en"]).read_text())
        kept = self.kept(reader, tmp_path / "kept", str(tenfold), texts["kk"], size=len(smallest) + 30)
        assert kept == self.kept(reader, tmp_path / "same", texts["en"], texts["kk"], size=len(smallest) + 30)
        for language in ("en", "kk"):
            counts = self.count(old, *TEXTS[language])
            most = max((piece for piece in counts if piece not in smallest), key=counts.get)
            assert most in kept

    @pytest.mark.parametrize("size", [10**6, 10**30])
    def test_a_large_size_keeps_only_tokens_that_occur(self, old, reader, texts, output, size):
        kept = self.kept(reader, output, texts["en"], size=size)
        assert self.count(old, *TEXTS["en"]).keys() <= kept
        assert len(kept) < len(old)

    @pytest.mark.parametrize("coverage", [0.5, 0.8, 1.0])
    def test_coverage_is_reached_in_each_language(self, old, reader, texts, output, coverage):
        kept = self.kept(reader, output, texts["en"], texts["zh"], coverage=coverage)
        for language in ("en", "zh"):
            counts = self.count(old, *TEXTS[language])
            covered = sum(count for piece, count in counts.items() if piece in kept)
            assert covered >= coverage * sum(counts.values())
        if coverage == 1.0:
            assert self.count(old, *TEXTS["en"], *TEXTS["zh"]).keys() <= kept
        else:
            rarest = min((count, piece) for piece, count in self.count(old, *TEXTS["en"]).items() if len(piece) > 1)[1]
            assert rarest not in kept

    def test_coverage_of_0_9999_is_the_default(self, reader, texts, tmp_path):
        kept = self.kept(reader, tmp_path / "default", texts["en"])
        assert kept == self.kept(reader, tmp_path / "given", texts["en"], coverage=0.9999)

    def test_a_stray_foreign_word_keeps_its_characters_and_not_its_script(self, old, reader, output, tmp_path):
        text = tmp_path / "en.txt"
        text.write_text("\n".join(200 * TEXTS["en"] + ["the word 河 stands here"]))
        kept = self.kept(reader, output, str(text), coverage=0.9)
        assert "河" in kept and "雪" not in kept


class TestPadding:
    @pytest.mark.parametrize("multiple", [1, 64, 1000])
    def test_rows_are_a_multiple_and_padding_rows_are_never_generated(self, writer, texts, output, multiple):
        report = trim(writer, output, corpus=[texts["en"]], pad_to_multiple_of=multiple)
        tokenizer, model = load_tokenizer(output, src_lang="en"), load(output).eval()
        assert report.rows["after"] == model.config.vocab_size == model.lm_head.weight.shape[0]
        assert model.config.vocab_size % multiple == 0 and 0 <= model.config.vocab_size - len(tokenizer) < multiple
        inputs = tokenizer(TEXTS["en"][0], return_tensors="pt")
        logits = model(**inputs, decoder_input_ids=inputs.input_ids).logits
        added = logits[..., len(tokenizer) :]
        assert (added == -100).all()
        assert logits.argmax(-1).max() < len(tokenizer)
        assert len(id_map(output)) == len(tokenizer)

    def test_a_conversion_keeps_the_padding_rows(self, reader, texts, tmp_path):
        trim(reader, tmp_path / "padded", corpus=[texts["en"]], pad_to_multiple_of=500)
        convert(tmp_path / "padded", tmp_path / "model", languages=["en"])
        tokenizer, model = load_tokenizer(tmp_path / "model", src_lang="en"), load(tmp_path / "model").eval()
        inputs = tokenizer(TEXTS["en"][0], return_tensors="pt")
        logits = model(**inputs, decoder_input_ids=inputs.input_ids).logits
        assert logits.shape[-1] == 500
        assert (logits[..., len(tokenizer) :] == -100).all()

    def test_spare_rows_of_the_source_are_dropped(self, old, texts, tmp_path):
        folder = save_reader(tmp_path / "reader", vocab_size=len(old) + 50)
        report = trim(folder, tmp_path / "model", corpus=[texts["en"]])
        assert report.rows["after"] == report.tokens["after"]
