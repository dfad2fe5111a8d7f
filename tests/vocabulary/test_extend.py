"""Extend a vocabulary: old tokens keep their ids and rows, and new tokens start at the mean of their old tokens."""

import json
import re

import pytest
import torch
from hypothesis import given
from support.encoders import (
    read_tensors,
)
from support.folders import bits, different_tensors, load
from support.vocabularies import (
    EMBEDDINGS,
    KNOWN,
    NEW,
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
from tokenizers import trainers
from transformers import XLMRobertaForMaskedLM
from transformers.utils import logging

from modeling_xlm_swcm.vocabulary import extend


class TestExtended:
    def test_old_tokens_keep_their_ids(self, old, extended):
        new = load_tokenizer(extended)
        assert len(new) > len(old)
        assert new.convert_ids_to_tokens(range(len(old))) == old.convert_ids_to_tokens(range(len(old)))
        assert new.special_tokens_map == old.special_tokens_map
        assert sorted(new.get_vocab().values()) == list(range(len(new)))
        assert new("The river").input_ids == old("The river").input_ids

    @given(sentences_in(*KNOWN))
    def test_segmentation_of_text_in_other_scripts_does_not_change(self, old, extended, text):
        assert ids(load_cached(extended), text) == ids(old, text)

    @pytest.mark.parametrize("language", NEW)
    def test_text_of_the_corpus_has_no_unknown_tokens(self, old, extended, language):
        for sentence in TEXTS[language]:
            assert "<unk>" in segment(old, sentence)
            assert "<unk>" not in segment(load_cached(extended), sentence)
            assert load_cached(extended).decode(ids(load_cached(extended), sentence)) == sentence

    @given(sentences_in(*NEW))
    def test_other_text_in_the_characters_of_the_corpus_can_be_decoded(self, extended, text):
        new = load_cached(extended)
        assert new.decode(ids(new, text)).split() == text.split()

    def test_the_mask_is_still_one_token(self, old, extended):
        assert ids(load_cached(extended), "The <mask> rises") == ids(old, "The <mask> rises")
        assert load_cached(extended).mask_token_id == old.mask_token_id

    def test_old_rows_and_other_tensors_are_kept_bit_by_bit(self, reader, extended):
        before, after = vocabulary_tensors(reader), vocabulary_tensors(extended)
        assert after.keys() == before.keys() == {EMBEDDINGS, "lm_head.bias"}
        for name, tensor in before.items():
            assert torch.equal(bits(after[name][: len(tensor)]), bits(tensor))
        assert different_tensors(other_tensors(reader), other_tensors(extended)) == []

    def test_it_loads_and_predicts_as_before(self, old, reader, extended):
        before, after = load_encoder(reader), load_encoder(extended)
        inputs = torch.tensor([old("The ferryman tells stories of the winter.").input_ids])
        assert torch.equal(before(inputs).logits, after(inputs).logits[..., : len(old)])
        assert after.config.vocab_size == len(load_tokenizer(extended))

    def test_an_xlm_swcm_model_is_extended_with_its_tags(self, writer, texts, output):
        extend(writer, output, corpus=[texts["bo"]], size=150)
        before, after = load_tokenizer(writer, src_lang="en"), load_tokenizer(output, src_lang="en")
        assert [after.get_lang_id(code) for code in TAGS] == [before.get_lang_id(code) for code in TAGS]
        assert after.languages == TAGS
        inputs = before(TEXTS["en"][0], return_tensors="pt")
        assert torch.equal(after(TEXTS["en"][0], return_tensors="pt").input_ids, inputs.input_ids)
        known = load(writer).eval()(**inputs, decoder_input_ids=inputs.input_ids).logits
        model = load(output).eval()
        assert torch.equal(model(**inputs, decoder_input_ids=inputs.input_ids).logits[..., : len(before)], known)
        generated = model.generate(**after(TEXTS["bo"][0], return_tensors="pt"), max_new_tokens=5)
        # The generation config forces the tag.
        assert generated[0, 1] == after.get_lang_id("zh")

    def test_the_seed_decides(self, reader, texts, tmp_path):
        for name, seed in (("one", 1), ("one again", 1), ("two", 2)):
            extend(reader, tmp_path / name, corpus=[texts["bo"]], size=100, seed=seed)
        one, again, two = (read_tensors(tmp_path / name) for name in ("one", "one again", "two"))
        assert load_tokenizer(tmp_path / "one").get_vocab() == load_tokenizer(tmp_path / "one again").get_vocab()
        assert different_tensors(one, again) == []
        assert EMBEDDINGS in different_tensors(one, two)

    @pytest.mark.parametrize("is_shown", [True, False])
    def test_the_library_shows_its_progress_only_if_bars_are_on(self, reader, texts, output, monkeypatch, is_shown):
        shown, trainer = [], trainers.UnigramTrainer
        monkeypatch.setattr(
            trainers, "UnigramTrainer", lambda **options: shown.append(options["show_progress"]) or trainer(**options)
        )
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        monkeypatch.setattr(logging, "is_progress_bar_enabled", lambda: is_shown)
        extend(reader, output, corpus=[texts["bo"]], size=100)
        assert shown == [is_shown]

    def test_known_tokens_are_not_added_again(self, reader, texts, tmp_path):
        for source, output, size in ((reader, "some", 70), (tmp_path / "some", "more", 120)):
            extend(source, tmp_path / output, corpus=[texts["bo"]], size=size)
        vocab = [piece for piece, _ in json.loads((tmp_path / "more/tokenizer.json").read_text())["model"]["vocab"]]
        assert len(vocab) == len(set(vocab)) > len(load_tokenizer(tmp_path / "some"))


class TestNewRows:
    """A new row is the mean of the rows of its old tokens. An `<unk>` counts as the mean of all rows, plus noise."""

    def expected(self, old, tensor: torch.Tensor, piece: str) -> tuple[torch.Tensor, bool]:
        """Return the row of a new token without noise, and whether the token was partly unknown."""
        known = {letter: tensor[old.convert_tokens_to_ids(letter)] for letter in "ངད་"}
        words = [index for index in range(len(old)) if index not in old.all_special_ids]
        # Neighbouring unknown characters are one `<unk>`.
        spelled = re.sub("[^ངད་]+", "?", piece.removeprefix("▁"))
        parts = [known.get(character, tensor[words].mean(0)) for character in spelled]
        return torch.stack(parts).mean(0), "?" in spelled

    @pytest.mark.parametrize("name", [EMBEDDINGS, "lm_head.bias"])
    def test_new_rows_are_the_mean_of_their_old_tokens(self, old, reader, extended, name):
        before, after, noise = read_tensors(reader)[name], read_tensors(extended)[name], []
        for token in range(len(old), len(after)):
            piece = load_cached(extended).convert_ids_to_tokens(token)
            mean, is_unknown = self.expected(old, before, piece)
            if is_unknown and name == EMBEDDINGS:
                noise.append(after[token] - mean)
            else:
                torch.testing.assert_close(after[token], mean, atol=1e-5, rtol=1e-5, msg=piece)
        assert (len(noise) > 20) == (name == EMBEDDINGS)

    def test_unknown_tokens_are_as_different_from_each_other_as_old_tokens(self, old, reader, texts, tmp_path):
        extend(reader, tmp_path / "model", corpus=[texts["mvf"]], size=60)
        tensors = read_tensors(tmp_path / "model")
        words = [index for index in range(len(old)) if index not in old.all_special_ids]
        rows, new = tensors[EMBEDDINGS][words], tensors[EMBEDDINGS][len(old) :]
        assert 0.9 < new.std(0).mean() / rows.std(0).mean() < 1.1
        assert (new.mean(0) - rows.mean(0)).abs().mean() < 0.2 * rows.std(0).mean()
        assert len(new.unique(dim=0)) == len(new)
        assert len(tensors["lm_head.bias"][len(old) :].unique()) == 1

    def test_rows_of_known_letters_have_no_noise(self, old, reader, tmp_path):
        (tmp_path / "bo.txt").write_text("ངད་དང་ངད་དད་དང་ངང་\n" * 20)
        extend(reader, tmp_path / "model", corpus=[str(tmp_path / "bo.txt")], size=8)
        new = load_tokenizer(tmp_path / "model").convert_ids_to_tokens(range(len(old), len(old) + 3))
        tensors = read_tensors(tmp_path / "model")[EMBEDDINGS]
        for token, piece in enumerate(new, start=len(old)):
            rows = tensors[[old.convert_tokens_to_ids(letter) for letter in piece.removeprefix("▁")]]
            torch.testing.assert_close(tensors[token], rows.mean(0), atol=1e-7, rtol=1e-6)

    def test_random_rows_are_as_different_as_old_rows(self, old, reader, texts, tmp_path):
        extend(reader, tmp_path / "model", corpus=[texts["bo"]], size=100, init="random")
        tensors = read_tensors(tmp_path / "model")
        words = [index for index in range(len(old)) if index not in old.all_special_ids]
        rows, new = tensors[EMBEDDINGS][words], tensors[EMBEDDINGS][len(old) :]
        normal = (new - rows.mean(0)) / rows.std(0)
        assert abs(normal.mean()) < 0.05 and 0.95 < normal.std() < 1.05
        mean = tensors["lm_head.bias"][words].mean()
        torch.testing.assert_close(tensors["lm_head.bias"][len(old) :], mean.expand(len(new)))

    def test_half_precision_rounds_once(self, reader, texts, tmp_path, old):
        half, exact = tmp_path / "half", tmp_path / "exact"
        XLMRobertaForMaskedLM.from_pretrained(reader, dtype=torch.bfloat16).save_pretrained(half)
        XLMRobertaForMaskedLM.from_pretrained(half, dtype=torch.float32).save_pretrained(exact)
        for folder in (half, exact):
            old.save_pretrained(folder)
            extend(folder, tmp_path / f"{folder.name}-out", corpus=[texts["bo"]], size=100)
        tensors, wanted = read_tensors(tmp_path / "half-out"), read_tensors(tmp_path / "exact-out")
        assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
        assert different_tensors(tensors, {name: tensor.bfloat16() for name, tensor in wanted.items()}) == []
        assert load_encoder(tmp_path / "half-out").dtype == torch.bfloat16

    @pytest.mark.parametrize("spare", [4, 300])
    def test_new_tokens_use_spare_rows_first(self, old, texts, tmp_path, spare):
        folder = save_reader(tmp_path / "reader", vocab_size=len(old) + spare)
        report = extend(folder, tmp_path / "model", corpus=[texts["bo"]], size=100)
        new = report.tokens["after"] - report.tokens["before"]
        assert report.rows == {"before": len(old) + spare, "after": len(old) + max(new, spare)}
        before, after = read_tensors(folder), read_tensors(tmp_path / "model")
        for name in (EMBEDDINGS, "lm_head.bias"):
            for kept in (slice(0, len(old)), slice(len(old) + new, None)):
                assert torch.equal(after[name][kept], before[name][kept])
            taken = before[name][len(old) : len(old) + new]
            assert not torch.isclose(after[name][len(old) : len(old) + len(taken)], taken).all(-1).any()
        load_encoder(tmp_path / "model")
