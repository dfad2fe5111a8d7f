"""Vocabularies of encoders in BERT's shape: Unigram vocabularies change, and WordPiece is refused with a way out."""

import torch
from support.commands import assert_refused
from support.encoders import SENTENCES, make_encoder, save_encoder, word_piece_tokenizer
from support.folders import different_tensors
from support.vocabularies import (
    TEXTS,
    ids,
    load_encoder,
    load_tokenizer,
    other_tensors,
    reader_tokenizer,
    run_vocab,
    vocabulary_tensors,
)
from transformers import BertForMaskedLM

from modeling_xlm_swcm.conversion import from_encoder
from modeling_xlm_swcm.vocabulary import extend, trim


VOCABULARY_TENSORS = {"bert.embeddings.word_embeddings.weight", "cls.predictions.bias"}


@torch.no_grad()
def test_a_bert_with_a_unigram_vocabulary_is_extended_trimmed_and_converted(texts, tmp_path):
    # Its config has another padding token than its tokenizer, as that of multilingual-e5-small.
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


def test_a_word_piece_vocabulary_is_refused_with_a_way_out(tmp_path):
    tokenizer = word_piece_tokenizer()
    source = save_encoder(tmp_path / "source", make_encoder(BertForMaskedLM, tokenizer), tokenizer)
    (tmp_path / "en.txt").write_text("\n".join(SENTENCES))
    for words in (["trim"], ["extend", "--size", "100"]):
        result = run_vocab(words[0], source, tmp_path / "output", *words[1:], "--corpus", tmp_path / "en.txt")
        assert_refused(result, "has type WordPiece", "Convert the checkpoint with its vocabulary")
