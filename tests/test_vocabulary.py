"""Vocabularies extended and trimmed: what a model knew it knows still, bit by bit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import SHARINGS, bits, different_tensors, load, tiny_config, tiny_model
from encoders import (
    camembert_tokenizer,
    edit_config,
    edit_tensors,
    make_encoder,
    make_masked_lm,
    read_tensors,
    save_encoder,
    sentencepiece_model,
    wake,
    write_bin,
)
from hypothesis import given
from hypothesis import strategies as st
from test_registration import CODE
from transformers import AutoModel, AutoModelForMaskedLM, CamembertForMaskedLM, XLMRobertaForMaskedLM, XLMRobertaModel
from vocabularies import (
    KNOWN,
    TEXTS,
    cut,
    ids,
    letters,
    load_tokenizer,
    other_tensors,
    reader_tokenizer,
    rows_by_piece,
    save_reader,
    vocabulary_tensors,
    write_texts,
)

from modeling_xlm_swcm import XLMSWCMTokenizer
from modeling_xlm_swcm.conversion import ConversionError, convert
from modeling_xlm_swcm.released_xlm_swcm import ReleasedXLMSWCMConfig, ReleasedXLMSWCMForConditionalGeneration
from modeling_xlm_swcm.vocabulary import extend, trim


EMBEDDINGS = "roberta.embeddings.word_embeddings.weight"
NEW = ("bo", "mvf")
TAGS = ["en", "zh", "kk-Cyrl"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> dict[str, str]:
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> Path:
    return save_reader(tmp_path_factory.mktemp("reader"))


@pytest.fixture(scope="module")
def old(reader):
    return load_tokenizer(reader)


@pytest.fixture(scope="module")
def writer(reader, tmp_path_factory) -> Path:
    """The reader converted, with tags."""
    folder = tmp_path_factory.mktemp("writer") / "model"
    convert(reader, folder, languages=TAGS)
    wake(folder)
    fields = json.loads((folder / "generation_config.json").read_text())
    fields["forced_bos_token_id"] = load_tokenizer(folder).get_lang_id("zh")
    (folder / "generation_config.json").write_text(json.dumps(fields))
    return folder


@pytest.fixture(scope="module")
def extended(reader, texts, tmp_path_factory) -> Path:
    """The reader with pieces for the two scripts that it cannot read."""
    output = tmp_path_factory.mktemp("extended") / "model"
    extend(reader, output, corpus=[texts[language] for language in NEW], size=200)
    return output


def load_encoder(folder: Path, model_class=AutoModelForMaskedLM) -> torch.nn.Module:
    model, info = model_class.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def texts_of(*languages: str) -> st.SearchStrategy[str]:
    """Sentences of these languages, and anything else that their characters make."""
    characters = st.text(st.sampled_from("".join(map(letters, languages)) + "   "), max_size=60)
    words = [word for language in languages for sentence in TEXTS[language] for word in sentence.split()]
    return st.one_of(characters, st.lists(st.sampled_from(words), max_size=12).map(" ".join))


class TestExtended:
    def test_every_old_id_keeps_its_piece(self, old, extended):
        new = load_tokenizer(extended)
        assert len(new) > len(old)
        assert new.convert_ids_to_tokens(range(len(old))) == old.convert_ids_to_tokens(range(len(old)))
        assert new.special_tokens_map == old.special_tokens_map
        assert sorted(new.get_vocab().values()) == list(range(len(new)))
        assert new("The river").input_ids == old("The river").input_ids

    @given(texts_of(*KNOWN))
    def test_text_in_other_scripts_is_cut_as_before(self, old, extended, text):
        assert ids(load_cached(extended), text) == ids(old, text)

    @pytest.mark.parametrize("language", NEW)
    def test_text_of_the_corpus_can_be_read(self, old, extended, language):
        for sentence in TEXTS[language]:
            assert "<unk>" in cut(old, sentence)
            assert "<unk>" not in cut(load_cached(extended), sentence)
            assert load_cached(extended).decode(ids(load_cached(extended), sentence)) == sentence

    @given(texts_of(*NEW))
    def test_whatever_the_characters_of_the_corpus_make_can_be_read(self, extended, text):
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
        written = model.generate(**after(TEXTS["bo"][0], return_tensors="pt"), max_new_tokens=5)
        assert written[0, 1] == after.get_lang_id("zh")  # forced by the generation config

    def test_the_seed_decides(self, reader, texts, tmp_path):
        for name, seed in (("one", 1), ("one again", 1), ("two", 2)):
            extend(reader, tmp_path / name, corpus=[texts["bo"]], size=100, seed=seed)
        one, again, two = (read_tensors(tmp_path / name) for name in ("one", "one again", "two"))
        assert load_tokenizer(tmp_path / "one").get_vocab() == load_tokenizer(tmp_path / "one again").get_vocab()
        assert different_tensors(one, again) == []
        assert EMBEDDINGS in different_tensors(one, two)

    def test_a_piece_that_is_known_is_not_added_again(self, reader, texts, tmp_path):
        for source, output, size in ((reader, "some", 70), (tmp_path / "some", "more", 120)):
            extend(source, tmp_path / output, corpus=[texts["bo"]], size=size)
        vocab = [piece for piece, _ in json.loads((tmp_path / "more/tokenizer.json").read_text())["model"]["vocab"]]
        assert len(vocab) == len(set(vocab)) > len(load_tokenizer(tmp_path / "some"))


TOKENIZERS = {}


def load_cached(folder: Path):
    if folder not in TOKENIZERS:
        TOKENIZERS[folder] = load_tokenizer(folder)
    return TOKENIZERS[folder]


class TestNewRows:
    """The mean of what a piece was cut into, with what was `<unk>` at the mean of its script, or of all."""

    def expected(self, old, tensor: torch.Tensor, piece: str) -> tuple[torch.Tensor, set[str]]:
        known = {letter: tensor[old.convert_tokens_to_ids(letter)] for letter in "ངད་"}
        tibetan = (known["ང"] + known["ད"]) / 2
        words = [index for index in range(len(old)) if index not in old.all_special_ids]
        parts, kinds, unknown = [], set(), False
        for character in piece.removeprefix("▁"):
            if character in known:
                parts.append(known[character])
                kinds.add("known")
            elif not unknown:  # neighbours are one `<unk>`
                in_script = "\u0f40" <= character <= "\u0fbc"
                parts.append(tibetan if in_script else tensor[words].mean(0))
                kinds.add("script" if in_script else "all")
            unknown = character not in known
        return torch.stack(parts).mean(0), kinds

    @pytest.mark.parametrize("name", [EMBEDDINGS, "lm_head.bias"])
    def test_they_are_the_mean_of_their_pieces(self, old, reader, extended, name):
        before, after, seen = read_tensors(reader)[name], read_tensors(extended)[name], set()
        for token in range(len(old), len(after)):
            piece = load_cached(extended).convert_ids_to_tokens(token)
            mean, kinds = self.expected(old, before, piece)
            torch.testing.assert_close(after[token], mean, atol=1e-5, rtol=1e-5, msg=piece)
            seen |= kinds
        assert seen == {"known", "script", "all"}

    def test_rows_of_what_was_unknown_differ_by_noise(self, old, reader, texts, tmp_path):
        folder = shutil.copytree(reader, tmp_path / "reader")
        edit_config(folder, initializer_range=0.01)
        extend(folder, tmp_path / "model", corpus=[texts["mvf"]], size=60)
        new = read_tensors(tmp_path / "model")[EMBEDDINGS][len(old) :]
        assert 0.008 < (new - new.mean(0)).std() < 0.012
        assert len(new.unique(dim=0)) == len(new)
        bias = read_tensors(tmp_path / "model")["lm_head.bias"][len(old) :]
        assert len(bias.unique()) == 1

    def test_rows_of_a_language_that_was_read_letter_by_letter_have_no_noise(self, old, reader, tmp_path):
        (tmp_path / "bo.txt").write_text("ངད་དང་ངད་དད་དང་ངང་\n" * 20)
        extend(reader, tmp_path / "model", corpus=[str(tmp_path / "bo.txt")], size=8)
        new = load_tokenizer(tmp_path / "model").convert_ids_to_tokens(range(len(old), len(old) + 3))
        tensors = read_tensors(tmp_path / "model")[EMBEDDINGS]
        for token, piece in enumerate(new, start=len(old)):
            rows = tensors[[old.convert_tokens_to_ids(letter) for letter in piece.removeprefix("▁")]]
            torch.testing.assert_close(tensors[token], rows.mean(0), atol=1e-7, rtol=1e-6)

    def test_random_rows_are_as_in_a_new_model(self, old, reader, texts, tmp_path):
        folder = shutil.copytree(reader, tmp_path / "reader")
        edit_config(folder, initializer_range=0.5)
        extend(folder, tmp_path / "model", corpus=[texts["bo"]], size=100, init="random")
        tensors = read_tensors(tmp_path / "model")
        new = tensors[EMBEDDINGS][len(old) :]
        assert abs(new.mean()) < 0.05 and 0.45 < new.std() < 0.55
        words = [index for index in range(len(old)) if index not in old.all_special_ids]
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
    def test_rows_without_a_token_are_taken_first(self, old, texts, tmp_path, spare):
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


@pytest.fixture(scope="module")
def trimmed(reader, texts, tmp_path_factory) -> Path:
    """The reader with English alone, and of that only frequent pieces."""
    output = tmp_path_factory.mktemp("trimmed") / "model"
    trim(reader, output, corpus=[texts["en"]], min_count=3)
    return output


@pytest.fixture(scope="module")
def smallest(reader, texts, tmp_path_factory) -> Path:
    """The reader with all its languages, and of them what must stay alone."""
    output = tmp_path_factory.mktemp("smallest") / "model"
    trim(reader, output, corpus=[texts[language] for language in KNOWN], min_count=10**9)
    return output


def id_map(folder: Path) -> dict[int, int]:
    return {int(before): after for before, after in json.loads((folder / "id_map.json").read_text()).items()}


def unchanged(before, after, language: str) -> list[str]:
    """Sentences and phrases that are cut as before; some are not."""
    words = [word for sentence in TEXTS[language] for word in sentence.split()]
    same = [word for word in words if cut(before, word) == cut(after, word)]
    assert 2 < len(same) < len(words)
    return [" ".join(same[:12]), *same]


class TestTrimmed:
    @given(texts_of("en"))
    def test_any_text_of_the_language_comes_back_as_before(self, old, trimmed, text):
        new = load_cached(trimmed)
        assert new.decode(ids(new, text)) == old.decode(ids(old, text))
        assert "<unk>" not in cut(new, text)

    @given(texts_of(*KNOWN))
    def test_any_text_of_several_languages_comes_back_as_before(self, old, smallest, text):
        new = load_cached(smallest)
        assert new.decode(ids(new, text)) == old.decode(ids(old, text))
        assert "<unk>" not in cut(new, text)

    def test_pieces_of_other_scripts_are_gone(self, trimmed):
        vocab = "".join(load_cached(trimmed).get_vocab())
        assert not set("ңқ河雪ངད") & set(vocab)

    def test_specials_and_characters_stay(self, old, trimmed):
        vocab = load_cached(trimmed).get_vocab().keys()
        single = {piece for piece in old.get_vocab() if len(piece) == 1 and (piece.isascii() or not piece.isalpha())}
        assert {*old.all_special_tokens, "▁", *single} <= vocab
        assert load_cached(trimmed).special_tokens_map == old.special_tokens_map

    def test_what_stays_stays_in_order_and_the_map_says_where(self, old, trimmed):
        new = load_cached(trimmed)
        kept = id_map(trimmed)
        assert list(kept.values()) == list(range(len(new)))
        assert list(kept) == sorted(kept)
        assert old.convert_ids_to_tokens(list(kept)) == new.convert_ids_to_tokens(list(kept.values()))
        assert new.mask_token_id == len(new) - 1

    def test_rows_that_stay_and_other_tensors_are_kept_bit_by_bit(self, reader, trimmed):
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

    def test_tags_stay_and_ids_in_the_configs_follow_them(self, writer, texts, output):
        trim(writer, output, corpus=[texts["en"]])
        before, after = load_tokenizer(writer), load_tokenizer(output, src_lang="en")
        kept = id_map(output)
        assert after.languages == TAGS
        assert [after.get_lang_id(code) for code in TAGS] == [kept[before.get_lang_id(code)] for code in TAGS]
        assert after.get_lang_id("zh") != before.get_lang_id("zh")
        generation = json.loads((output / "generation_config.json").read_text())
        assert generation["forced_bos_token_id"] == after.get_lang_id("zh")
        unrenamed = json.loads((writer / "generation_config.json").read_text())
        assert generation == unrenamed | {"forced_bos_token_id": after.get_lang_id("zh")}
        written = load(output).generate(**after("The tea is strong.", return_tensors="pt"), max_new_tokens=5)
        assert written[0, :2].tolist() == [0, after.get_lang_id("zh")]

    def test_every_id_of_a_config_is_renamed(self, reader, old, texts, output, tmp_path):
        folder = Path(shutil.copytree(reader, tmp_path / "reader"))
        rare, common = old.convert_tokens_to_ids("河"), old.convert_tokens_to_ids("e")
        edit_config(folder, eos_token_id=[2, rare], mask_token_id=old.mask_token_id, sep_token_id=common)
        trim(folder, output, corpus=[texts["en"]])
        kept, config = id_map(output), json.loads((output / "config.json").read_text())
        assert config["eos_token_id"] == [2, kept[rare]]
        assert config["mask_token_id"] == load_tokenizer(output).mask_token_id == kept[old.mask_token_id]
        assert config["sep_token_id"] == kept[common]
        assert config["vocab_size"] == len(kept)

    def test_ids_of_words_that_are_banned_are_renamed_and_those_among_other_numbers_refused(
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
        with pytest.raises(ConversionError, match="generation_config.json of .* sets sequence_bias, .* take it out"):
            trim(folder, output, corpus=[texts["en"]], overwrite=True)

    def test_xlm_swcm_carries_its_code_and_its_conversion_report(self, writer, texts, output):
        trim(writer, output, corpus=[texts["en"]])
        for name in CODE:
            assert (output / name).read_bytes() == (writer / name).read_bytes()
        assert (output / "conversion_report.json").is_file()
        auto_map = json.loads((output / "config.json").read_text())["auto_map"]
        assert auto_map == json.loads((writer / "config.json").read_text())["auto_map"]
        AutoModel.from_pretrained(output)

    def test_trimming_an_extended_model_keeps_what_was_learnt(self, extended, texts, output):
        trim(extended, output, corpus=[texts["bo"]], coverage=1.0)
        before, after = load_cached(extended), load_tokenizer(output)
        for sentence in TEXTS["bo"]:
            assert cut(after, sentence) == cut(before, sentence)
        assert len(after) < len(before)


class TestWhatIsKept:
    def kept(self, reader, output, *corpus: str, **options) -> set[str]:
        trim(reader, output, corpus=list(corpus), **options)
        return set(load_tokenizer(output).get_vocab())

    def count(self, old, *sentences: str) -> dict[str, int]:
        counts = {}
        for sentence in sentences:
            for piece in cut(old, sentence):
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
        # English ten times, which must not push Kazakh out
        tenfold = tmp_path / "en.txt"
        tenfold.write_text(10 * Path(texts["en"]).read_text())
        kept = self.kept(reader, tmp_path / "kept", str(tenfold), texts["kk"], size=len(smallest) + 30)
        assert kept == self.kept(reader, tmp_path / "same", texts["en"], texts["kk"], size=len(smallest) + 30)
        for language in ("en", "kk"):
            counts = self.count(old, *TEXTS[language])
            most = max((piece for piece in counts if piece not in smallest), key=counts.get)
            assert most in kept

    def test_a_size_larger_than_what_occurs_keeps_what_occurs(self, old, reader, texts, output):
        kept = self.kept(reader, output, texts["en"], size=10**6)
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
        else:  # a common piece of each that is rare enough to go
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
    def test_rows_are_a_multiple_and_none_that_was_added_is_ever_written(self, writer, texts, output, multiple):
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

    def test_padding_of_an_encoder_goes_through_a_conversion(self, reader, texts, tmp_path):
        trim(reader, tmp_path / "padded", corpus=[texts["en"]], pad_to_multiple_of=500)
        convert(tmp_path / "padded", tmp_path / "model", languages=["en"])
        tokenizer, model = load_tokenizer(tmp_path / "model", src_lang="en"), load(tmp_path / "model").eval()
        inputs = tokenizer(TEXTS["en"][0], return_tensors="pt")
        logits = model(**inputs, decoder_input_ids=inputs.input_ids).logits
        assert logits.shape[-1] == 500
        assert (logits[..., len(tokenizer) :] == -100).all()

    def test_rows_that_a_source_had_to_spare_go(self, old, texts, tmp_path):
        folder = save_reader(tmp_path / "reader", vocab_size=len(old) + 50)
        report = trim(folder, tmp_path / "model", corpus=[texts["en"]])
        assert report.rows["after"] == report.tokens["after"]


def by_extending(texts):
    return lambda source, target: extend(source, target, corpus=[texts["bo"], texts["mvf"]], size=200)


def by_trimming(texts):
    return lambda source, target: trim(source, target, corpus=[texts["en"], texts["zh"]], min_count=2)


CHANGES = {"extend": by_extending, "trim": by_trimming}


@pytest.fixture(params=CHANGES)
def change(request, texts):
    return CHANGES[request.param](texts)


class TestOrder:
    @pytest.mark.parametrize(("languages", "weight_sharing"), [([], "init"), (TAGS, "tied")], ids=["no tags", "tags"])
    def test_before_and_after_conversion_is_the_same(self, reader, change, tmp_path, languages, weight_sharing):
        options = {"languages": languages, "weight_sharing": weight_sharing}
        change(reader, tmp_path / "changed")
        convert(tmp_path / "changed", tmp_path / "first", **options)
        convert(reader, tmp_path / "converted", **options)
        change(tmp_path / "converted", tmp_path / "last")
        first, last = tmp_path / "first", tmp_path / "last"
        assert different_tensors(other_tensors(first), other_tensors(last)) == []
        tags = {f"<{code}>" for code in languages}
        rows, others = rows_by_piece(first), rows_by_piece(last)
        assert rows.keys() == others.keys()
        for name in rows:
            assert rows[name].keys() == others[name].keys() > tags
            # tags start at the mean of the rows that there are
            different = {piece for piece in rows[name] if not torch.equal(rows[name][piece], others[name][piece])}
            assert different <= tags
        load(last)
        for text in sum(TEXTS.values(), []):
            assert cut(load_tokenizer(first), text) == cut(load_tokenizer(last), text)
        if not languages:
            assert load_tokenizer(first).get_vocab() == load_tokenizer(last).get_vocab()
            assert json.loads((first / "config.json").read_text()) == json.loads((last / "config.json").read_text())


def with_the_whole_head(folder: Path):
    def edit(tensors):
        head = {"weight": tensors[EMBEDDINGS], "bias": tensors["lm_head.bias"]}
        buffer = {"roberta.embeddings.position_ids": torch.arange(100)[None]}
        return tensors | buffer | {f"lm_head.decoder.{name}": tensor.clone() for name, tensor in head.items()}

    edit_tensors(folder, edit)
    write_bin(folder)


def with_a_bias_of_the_decoder_only(folder: Path):
    renamed = {"lm_head.bias": "lm_head.decoder.bias"}
    edit_tensors(folder, lambda tensors: {renamed.get(name, name): tensor for name, tensor in tensors.items()})


class TestForms:
    @pytest.mark.parametrize("form", [write_bin, with_the_whole_head, with_a_bias_of_the_decoder_only])
    def test_every_form_of_a_file_gives_the_same_model(self, reader, change, tmp_path, form):
        other = Path(shutil.copytree(reader, tmp_path / "other"))
        form(other)
        for source, output in ((reader, "expected"), (other, "model")):
            change(source, tmp_path / output)
        expected, model = load_encoder(tmp_path / "expected"), load_encoder(tmp_path / "model")
        assert different_tensors(expected.state_dict(), model.state_dict()) == []
        assert not list((tmp_path / "model").glob("*.bin"))

    def test_an_encoder_without_a_head(self, reader, change, output, tmp_path):
        XLMRobertaModel.from_pretrained(reader, add_pooling_layer=False).save_pretrained(tmp_path / "bare")
        load_tokenizer(reader).save_pretrained(tmp_path / "bare")
        change(tmp_path / "bare", output)
        change(reader, tmp_path / "expected")
        rows = vocabulary_tensors(output)
        assert rows.keys() == {"embeddings.word_embeddings.weight"}
        assert torch.equal(rows.popitem()[1], read_tensors(tmp_path / "expected")[EMBEDDINGS])

    def test_an_output_matrix_of_its_own(self, old, change, output, tmp_path):
        folder = save_reader(tmp_path / "reader", tie_word_embeddings=False)
        change(folder, output)
        before, after = rows_by_piece(folder), rows_by_piece(output)
        head = {"lm_head.bias", "lm_head.decoder.weight", "lm_head.decoder.bias"}
        assert after.keys() == before.keys() == {EMBEDDINGS, *head}
        for name, rows in before.items():
            assert all(torch.equal(after[name][piece], rows[piece]) for piece in after[name].keys() & rows.keys())
        assert not load_encoder(output).config.tie_word_embeddings

    @pytest.mark.parametrize("sharing", SHARINGS, ids=str)
    def test_every_kind_of_sharing(self, change, output, tmp_path, sharing):
        tokenizer = reader_tokenizer()
        tokenizer = XLMSWCMTokenizer(
            tokenizer_object=tokenizer.backend_tokenizer, languages=TAGS, **tokenizer.special_tokens_map
        )
        model = tiny_model(vocab_size=len(tokenizer), **sharing)
        folder = save_encoder(tmp_path / "writer", model, tokenizer)
        change(folder, output)
        load(output)
        assert ("lm_head.weight" in vocabulary_tensors(output)) == (not sharing["tie_word_embeddings"])
        before, after = rows_by_piece(folder), rows_by_piece(output)
        for name, rows in before.items():
            kept = after[name].keys() & rows.keys()
            assert len(kept) > 20 and all(torch.equal(after[name][piece], rows[piece]) for piece in kept)
        assert different_tensors(other_tensors(folder), other_tensors(output)) == []

    def test_the_authors_released_kind(self, change, output, tmp_path):
        tokenizer = reader_tokenizer()
        tokenizer = XLMSWCMTokenizer(tokenizer_object=tokenizer.backend_tokenizer, **tokenizer.special_tokens_map)
        fields = tiny_config(vocab_size=len(tokenizer)).to_dict()
        config = ReleasedXLMSWCMConfig(
            **{name: fields[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size")},
            num_attention_heads=4,
            max_position_embeddings=66,
        )
        folder = save_encoder(tmp_path / "released", ReleasedXLMSWCMForConditionalGeneration(config), tokenizer)
        change(folder, output)
        assert isinstance(load(output), ReleasedXLMSWCMForConditionalGeneration)
        assert len(vocabulary_tensors(output)) == 3
        assert CODE | {"released_xlm_swcm.py"} == {path.name for path in output.glob("*.py")}

    def test_a_sentencepiece_file_is_as_good_as_a_tokenizer_json(self, change, tmp_path):
        both = [tmp_path / name for name in ("sentencepiece", "json")]
        (tmp_path / "sentencepiece").mkdir()
        (tmp_path / "sentencepiece/sentencepiece.bpe.model").write_bytes(sentencepiece_model())
        model = make_masked_lm(vocab_size=132)
        model.save_pretrained(both[0])
        save_encoder(both[1], model, load_tokenizer(both[0]))
        assert not (both[0] / "tokenizer.json").exists()
        for folder in both:
            change(folder, tmp_path / f"{folder.name}-out")
        first, second = (tmp_path / f"{folder.name}-out" for folder in both)
        assert load_tokenizer(first).get_vocab() == load_tokenizer(second).get_vocab()
        assert different_tensors(read_tensors(first), read_tensors(second)) == []
        before, after = load_tokenizer(both[0]), load_tokenizer(first)
        assert after.convert_ids_to_tokens(range(4)) == ["<s>", "<pad>", "</s>", "<unk>"]
        assert before.mask_token_id == 131
        for text in TEXTS["en"]:
            assert after.decode(ids(after, text)) == before.decode(ids(before, text))
            assert after(text).input_ids[0] == 0 and after(text).input_ids[-1] == 2

    def test_camemberts_layout(self, change, output, tmp_path):
        tokenizer = camembert_tokenizer()
        model = make_encoder(CamembertForMaskedLM, tokenizer)
        folder = save_encoder(tmp_path / "camembert", model, tokenizer)
        change(folder, output)
        before, after = load_tokenizer(folder), load_tokenizer(output)
        assert type(after) is type(before)
        assert (after.bos_token_id, after.eos_token_id, after.pad_token_id, after.unk_token_id) == (5, 6, 1, 3)
        assert after.convert_ids_to_tokens(range(7)) == before.convert_ids_to_tokens(range(7))
        assert after.mask_token_id == after.get_vocab()["<mask>"]
        for text in TEXTS["en"]:
            assert (after(text).input_ids[0], after(text).input_ids[-1]) == (5, 6)
            assert after.decode(ids(after, text)) == before.decode(ids(before, text))
        load_encoder(output)

    def test_tokens_that_a_user_added_keep_their_rows(self, reader, old, change, output, tmp_path):
        tokenizer = load_tokenizer(reader)
        tokenizer.add_tokens(["<title>", "[sep]"])
        model = make_encoder(XLMRobertaForMaskedLM, tokenizer)
        folder = save_encoder(tmp_path / "added", model, tokenizer)
        change(folder, output)
        before, after = rows_by_piece(folder), rows_by_piece(output)
        assert all(torch.equal(after[EMBEDDINGS][token], before[EMBEDDINGS][token]) for token in ("<title>", "[sep]"))
        assert [piece for piece in cut(load_tokenizer(output), "a <title> of [sep] it") if piece[0] in "<["] == [
            "<title>",
            "[sep]",
        ]


@pytest.mark.parametrize("order", ["extend, convert", "convert, extend", "convert, trim", "convert, extend, trim"])
def test_a_tag_that_is_spelt_out_is_text(tmp_path, order):
    tokenizer = reader_tokenizer("<", ">")
    model = make_encoder(XLMRobertaForMaskedLM, tokenizer)
    source, texts = save_encoder(tmp_path / "reader", model, tokenizer), write_texts(tmp_path / "texts")
    for number, step in enumerate(order.split(", ")):
        folder = tmp_path / str(number)
        if step == "convert":
            convert(source, folder, languages=["bo", "en"])
        elif step == "extend":
            extend(source, folder, corpus=[texts["mvf"]], size=100)
        else:
            trim(source, folder, corpus=[texts["en"]])
        source = folder
    tokenizer = load_tokenizer(source)
    tags = {tokenizer.get_lang_id(code) for code in tokenizer.languages}
    written = tokenizer("ab <bo> cd <en>", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert not tags & set(written)
    assert tags <= set(tokenizer("ab <bo> cd <en>", add_special_tokens=False)["input_ids"])


def test_the_report_of_the_conversion_keeps_up_with_the_ids(tmp_path):
    source, texts = save_reader(tmp_path / "reader"), write_texts(tmp_path / "texts")
    convert(source, tmp_path / "model", languages=["bo", "en"])
    trim(tmp_path / "model", tmp_path / "trimmed", corpus=[texts["en"]])
    tokenizer = load_tokenizer(tmp_path / "trimmed")
    report = json.loads((tmp_path / "trimmed" / "conversion_report.json").read_text())
    assert report["language_ids"] == {code: tokenizer.get_lang_id(code) for code in ("bo", "en")}
    assert report["new_ids"] == list(report["language_ids"].values()) and "parameters" not in report


def test_rows_without_a_token_do_not_pull_the_tags(tmp_path):
    source, texts = save_reader(tmp_path / "reader"), write_texts(tmp_path / "texts")
    for multiple in (1, 64):
        trim(source, tmp_path / f"trimmed-{multiple}", corpus=[texts["en"]], pad_to_multiple_of=multiple)
        convert(tmp_path / f"trimmed-{multiple}", tmp_path / f"model-{multiple}", languages=["en"])
    plain, padded = (rows_by_piece(tmp_path / f"model-{multiple}") for multiple in (1, 64))
    assert all(torch.equal(plain[name]["<en>"], padded[name]["<en>"]) for name in plain)
