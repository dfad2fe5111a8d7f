"""Vocabularies of encoders in BERT's shape: Unigram and WordPiece vocabularies are extended and trimmed."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from support.encoders import make_encoder, save_encoder, word_piece_tokenizer
from support.folders import different_tensors, load
from support.vocabularies import (
    KNOWN,
    TEXTS,
    ids,
    load_encoder,
    load_tokenizer,
    other_tensors,
    reader_tokenizer,
    rows_by_token,
    segment,
    vocabulary_tensors,
)
from transformers import BertForMaskedLM, BertTokenizer

from modeling_xlm_swcm.conversion import ConversionError, convert, from_encoder
from modeling_xlm_swcm.vocabulary import extend, trim


VOCABULARY_TENSORS = {"bert.embeddings.word_embeddings.weight", "cls.predictions.bias"}


@torch.no_grad()
def test_a_bert_with_a_unigram_vocabulary_is_extended_trimmed_and_converted(texts, tmp_path):
    # As in multilingual-e5-small, config and tokenizer have different padding tokens.
    tokenizer = reader_tokenizer()
    bert = make_encoder(BertForMaskedLM, tokenizer, pad_token_id=0, type_vocab_size=2, max_position_embeddings=100)
    source = save_encoder(tmp_path / "source", bert, tokenizer)
    extend(source, tmp_path / "extended", corpus=[texts["bo"]], size=150)
    trim(tmp_path / "extended", tmp_path / "trimmed", corpus=[texts["bo"], texts["zh"]])
    assert vocabulary_tensors(tmp_path / "trimmed").keys() == VOCABULARY_TENSORS
    assert different_tensors(other_tensors(source), other_tensors(tmp_path / "trimmed")) == []
    before, after = tokenizer, load_tokenizer(tmp_path / "trimmed")
    assert len(after) < len(load_tokenizer(tmp_path / "extended"))
    text = TEXTS["zh"][0]
    logits = load_encoder(tmp_path / "trimmed")(torch.tensor([after(text).input_ids])).logits
    kept = [before.convert_tokens_to_ids(token) for token in after.convert_ids_to_tokens(ids(after, text))]
    expected = bert(torch.tensor([before(text).input_ids])).logits
    torch.testing.assert_close(logits[..., ids(after, text)], expected[..., kept])
    model, report = from_encoder(tmp_path / "trimmed", languages=["bo", "zh"])
    assert model.config.pad_token_id == report.tokenizer.pad_token_id == 1
    assert report.tokenizer.unk_token_id not in ids(report.tokenizer, TEXTS["bo"][0])


@pytest.fixture(scope="module")
def word_pieces(tmp_path_factory) -> Path:
    """Return a BERT that reads English, Kazakh and Chinese, but not Tibetan."""
    tokenizer = word_piece_tokenizer([sentence for language in KNOWN for sentence in TEXTS[language]])
    options = {"max_position_embeddings": 100, "initializer_range": 1e-7}
    return save_encoder(
        tmp_path_factory.mktemp("bert"), make_encoder(BertForMaskedLM, tokenizer, **options), tokenizer
    )


@pytest.fixture(scope="module")
def extended(word_pieces, texts, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("extended") / "model"
    extend(word_pieces, output, corpus=[texts["bo"]], size=150)
    return output


def test_an_extended_word_piece_vocabulary_reads_the_new_script_and_the_old_ones_as_before(word_pieces, extended):
    old, new = load_tokenizer(word_pieces), load_tokenizer(extended)
    assert new.convert_ids_to_tokens(range(len(old))) == old.convert_ids_to_tokens(range(len(old)))
    for language in KNOWN:
        for text in TEXTS[language]:
            assert ids(new, text) == ids(old, text)
    tokens = [token for text in TEXTS["bo"] for token in segment(new, text)]
    assert "[UNK]" not in tokens and "[UNK]" in segment(old, TEXTS["bo"][0])
    learnt = set(tokens) - set(old.get_vocab())
    assert any(len(token.removeprefix("##")) > 1 for token in learnt)


def test_the_tensors_of_an_extended_word_piece_encoder(word_pieces, extended):
    assert different_tensors(other_tensors(word_pieces), other_tensors(extended)) == []
    before, after = vocabulary_tensors(word_pieces), vocabulary_tensors(extended)
    assert before.keys() == after.keys() == VOCABULARY_TENSORS
    for name, tensor in before.items():
        assert torch.equal(after[name][: len(tensor)], tensor)
        assert after[name][len(tensor) :].isfinite().all()
    load_encoder(extended)


@pytest.mark.parametrize("options", [{}, {"min_count": 10**6}], ids=str)
def test_a_trimmed_word_piece_vocabulary_can_write_its_languages(options, word_pieces, texts, tmp_path):
    trim(word_pieces, tmp_path / "trimmed", corpus=[texts["en"]], **options)
    old, new = load_tokenizer(word_pieces), load_tokenizer(tmp_path / "trimmed")
    assert len(new) < len(old)
    assert not any("ш" in token for token in new.get_vocab())
    for text in (*TEXTS["en"], "tea on the door", "17 (42)"):
        assert ("[UNK]" in segment(new, text)) == ("[UNK]" in segment(old, text))
        # Without a minimum count, the corpus is segmented as before.
        assert options or text not in TEXTS["en"] or segment(new, text) == segment(old, text)
    assert new.get_vocab()["[PAD]"] == 0
    rows = rows_by_token(word_pieces), rows_by_token(tmp_path / "trimmed")
    for name in VOCABULARY_TENSORS:
        assert all(torch.equal(row, rows[0][name][token]) for token, row in rows[1][name].items())


def test_a_converted_word_piece_model_is_extended_with_its_tags(word_pieces, texts, tmp_path):
    convert(word_pieces, tmp_path / "model", languages=["en", "bo"])
    extend(tmp_path / "model", tmp_path / "extended", corpus=[texts["bo"]], size=150)
    before, after = load_tokenizer(tmp_path / "model"), load_tokenizer(tmp_path / "extended", src_lang="bo")
    assert [after.get_lang_id(code) for code in ("en", "bo")] == [before.get_lang_id(code) for code in ("en", "bo")]
    text = TEXTS["bo"][0]
    assert after.decode(after(text)["input_ids"], skip_special_tokens=True) == text
    tag = after.get_lang_id("bo")
    generated = load(tmp_path / "extended").generate(
        **after(text, return_tensors="pt"), forced_bos_token_id=tag, max_new_tokens=4
    )
    assert generated[0, 1] == tag


def test_a_word_piece_vocabulary_with_gaps_is_refused(word_pieces, texts, tmp_path):
    source = Path(shutil.copytree(word_pieces, tmp_path / "source"))
    content = json.loads((source / "tokenizer.json").read_text())
    del content["model"]["vocab"]["T"]
    (source / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ConversionError, match=f"{source} has unused ids below"):
        trim(source, tmp_path / "output", corpus=[texts["en"]])


@pytest.mark.parametrize("is_converted", [False, True])
def test_a_padding_token_from_which_positions_are_counted_does_not_move(tmp_path, texts, is_converted):
    sentences = [sentence for language in KNOWN for sentence in TEXTS[language]]
    pieces = sorted(word_piece_tokenizer(sentences).get_vocab(), key=lambda piece: piece.startswith("["))
    tokenizer = BertTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, do_lower_case=False)
    source = save_encoder(tmp_path / "bert", make_encoder(BertForMaskedLM, tokenizer), tokenizer)
    if not is_converted:
        trim(source, tmp_path / "trimmed", corpus=[texts["en"]])
        assert load_tokenizer(tmp_path / "trimmed").pad_token_id < tokenizer.pad_token_id
        return
    convert(source, tmp_path / "model", languages=["en"])
    with pytest.raises(ConversionError, match=rf"padding token of .* has the id {tokenizer.pad_token_id}, and"):
        trim(tmp_path / "model", tmp_path / "trimmed", corpus=[texts["en"]])
    assert not (tmp_path / "trimmed").exists()


def test_text_that_repeats_one_letter(word_pieces, output, tmp_path):
    (tmp_path / "bo.txt").write_text("ཀཀཀཀཀཀཀཀ\n")
    with pytest.raises(ConversionError, match="The tokenizer finds no tokens in the corpus. Use other text."):
        extend(word_pieces, output, corpus=[str(tmp_path / "bo.txt")], size=20)


def test_a_word_piece_tokenizer_that_does_not_split_lines(tmp_path, texts, output):
    tokenizer = word_piece_tokenizer([sentence for language in KNOWN for sentence in TEXTS[language]])
    source = save_encoder(tmp_path / "bert", make_encoder(BertForMaskedLM, tokenizer), tokenizer)
    content = json.loads((source / "tokenizer.json").read_text())
    (source / "tokenizer.json").write_text(json.dumps(content | {"pre_tokenizer": None}))
    config = json.loads((source / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    extend(source, output, corpus=[texts["bo"]], size=80)
    assert len(load_tokenizer(output)) > len(tokenizer)
