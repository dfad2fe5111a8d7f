"""Language tags in a conversion: which tokens they become, and where their rows of the embedding start."""

from pathlib import Path

import pytest
import torch
from support.encoders import (
    make_encoder,
    read_tensors,
    save_encoder,
    word_piece_tokenizer,
    xlm_roberta_tokenizer,
)
from support.folders import bits, load
from transformers import AutoTokenizer, BertForMaskedLM, BertTokenizer, XLMRobertaForMaskedLM
from transformers.utils import logging

from modeling_xlm_swcm.conversion import ConversionError, convert, from_encoder
from modeling_xlm_swcm.conversion.options import ConversionOptions


WORD_EMBEDDINGS = "model.encoder.embeddings.word_embeddings.weight"
FIVE = ["bo", "kk", "mn", "ug", "zh"]


def tag_rows(encoder: Path, **options) -> torch.Tensor:
    model, report = from_encoder(encoder, **({"languages": FIVE} | options))
    return model.state_dict()[WORD_EMBEDDINGS][list(report.language_ids.values())]


def test_the_tags_follow_the_last_token_in_the_order_given(encoder_folder):
    size = len(AutoTokenizer.from_pretrained(encoder_folder))
    model, report = from_encoder(encoder_folder, languages=FIVE)
    assert report.language_ids == {code: size + index for index, code in enumerate(FIVE)}
    assert report.new_ids == list(report.language_ids.values())
    assert model.config.vocab_size == len(model.lm_head.bias) == len(report.tokenizer) == size + 5
    assert report.tokenizer.convert_tokens_to_ids("<ug>") == size + 3


@pytest.mark.parametrize("languages", [["bo", "BO"], ["kk-Arab", "zh", "kk-arab"]])
def test_two_tags_do_not_differ_only_in_case(encoder_folder, languages):
    with pytest.raises(
        ConversionError, match=f'codes "{languages[0]}" and "{languages[-1]}" differ only in case. Use'
    ):
        from_encoder(encoder_folder, languages=languages)


@pytest.mark.parametrize(("code", "is_warned"), [("kz", True), ("cn-Hans", True), ("kk", False), ("dng", False)])
def test_the_code_of_a_country_gives_a_warning(caplog, monkeypatch, code, is_warned):
    monkeypatch.setattr(logging.get_logger("modeling_xlm_swcm"), "propagate", True)
    ConversionOptions(languages=[code])
    assert [f'The code "{code}" is used as it is' in message for message in caplog.messages] == [True] * is_warned


def test_tags_are_as_different_from_each_other_as_other_tokens(tmp_path):
    tokenizer = xlm_roberta_tokenizer()
    encoder = make_encoder(XLMRobertaForMaskedLM, tokenizer)
    source = encoder.roberta.embeddings.word_embeddings.weight.data
    scale = torch.linspace(0.1, 10, source.shape[1])
    source.mul_(scale).add_(5)
    rows = tag_rows(save_encoder(tmp_path / "encoder", encoder, tokenizer))
    normal = (rows - source.mean(0)) / source.std(0)
    assert normal.mean().item() == pytest.approx(0, abs=0.3)
    assert normal.std(0).mean().item() == pytest.approx(1, abs=0.2)
    assert len(rows.unique(dim=0)) == 5


def test_tags_start_with_the_mean_of_the_output_bias(encoder_folder):
    model, _ = from_encoder(encoder_folder, languages=FIVE)
    mean = read_tensors(encoder_folder)["lm_head.bias"].mean()
    torch.testing.assert_close(model.lm_head.bias.detach()[-5:], mean.expand(5))


def test_the_rows_of_the_source_are_untouched_by_tags(encoder_folder):
    source = read_tensors(encoder_folder)
    model, _ = from_encoder(encoder_folder, languages=FIVE)
    rows = model.model.encoder.embeddings.word_embeddings.weight[:-5]
    assert torch.equal(bits(rows), bits(source["roberta.embeddings.word_embeddings.weight"]))
    assert torch.equal(bits(model.lm_head.bias[:-5]), bits(source["lm_head.bias"]))


def test_tags_depend_on_the_seed_alone(encoder_folder):
    first, second = tag_rows(encoder_folder, seed=1), tag_rows(encoder_folder, seed=1)
    assert torch.equal(first, second)
    assert not torch.isclose(first, tag_rows(encoder_folder, seed=2)).all(1).any()


@pytest.mark.parametrize("how", ["a piece of the vocabulary", "an added token"])
def test_a_tag_that_the_tokenizer_has_keeps_its_row(tmp_path, how):
    tokenizer = xlm_roberta_tokenizer("<bo>") if how == "a piece of the vocabulary" else xlm_roberta_tokenizer()
    if how == "an added token":
        tokenizer.add_tokens("<bo>", special_tokens=True)
    source = make_encoder(XLMRobertaForMaskedLM, tokenizer)
    known = tokenizer.convert_tokens_to_ids("<bo>")
    model, report = from_encoder(save_encoder(tmp_path / "encoder", source, tokenizer), languages=["bo", "ug"])
    assert report.language_ids == {"bo": known, "ug": len(tokenizer)}
    assert report.new_ids == [len(tokenizer)]
    rows = model.model.encoder.embeddings.word_embeddings.weight[: len(tokenizer)]
    assert torch.equal(bits(rows), bits(source.roberta.embeddings.word_embeddings.weight))
    assert report.tokenizer("<bo>", add_special_tokens=False).input_ids == [known]


def test_spare_rows_of_the_embedding_become_tags(tmp_path):
    tokenizer = xlm_roberta_tokenizer()
    size = len(tokenizer)
    encoder = make_encoder(XLMRobertaForMaskedLM, tokenizer, vocab_size=size + 8)
    source = encoder.roberta.embeddings.word_embeddings.weight
    model, report = from_encoder(save_encoder(tmp_path / "encoder", encoder, tokenizer), languages=FIVE)
    rows = model.model.encoder.embeddings.word_embeddings.weight
    assert model.config.vocab_size == size + 8
    assert list(report.language_ids.values()) == list(range(size, size + 5))
    assert torch.equal(bits(rows[:size]), bits(source[:size]))
    assert torch.equal(bits(rows[-3:]), bits(source[-3:]))
    assert (rows[size:-3] - source[:size].mean(0)).abs().max() < 6 * source[:size].std()


def test_a_converted_folder_keeps_spare_rows(tmp_path):
    tokenizer = xlm_roberta_tokenizer()
    encoder = make_encoder(XLMRobertaForMaskedLM, tokenizer, vocab_size=len(tokenizer) + 8)
    convert(save_encoder(tmp_path / "encoder", encoder, tokenizer), tmp_path / "model", languages=FIVE)
    assert len(load(tmp_path / "model").lm_head.bias) == len(tokenizer) + 8


def test_tags_need_ids_without_gaps():
    # A tag would get the id of the last token.
    whole = word_piece_tokenizer()
    vocab = whole.get_vocab()
    del vocab[whole.convert_ids_to_tokens(len(vocab) - 2)]
    tokenizer = BertTokenizer(vocab=vocab, do_lower_case=False)
    encoder = make_encoder(BertForMaskedLM, whole)
    with pytest.raises(
        ConversionError, match=f"has unused ids below {len(vocab)}. Use a tokenizer without gaps in its"
    ):
        from_encoder(encoder, languages=["bo"], tokenizer=tokenizer)
    assert from_encoder(encoder, tokenizer=tokenizer)[1].new_ids == []


def test_a_model_in_memory_takes_tags_with_a_tokenizer_only(masked_lm):
    with pytest.raises(
        ConversionError, match="^`languages` needs a tokenizer. Pass the tokenizer of the encoder as `tokenizer`.$"
    ):
        from_encoder(masked_lm, languages=["bo"])
    _, report = from_encoder(masked_lm, languages=["bo"], tokenizer=xlm_roberta_tokenizer())
    assert report.new_ids == [masked_lm.config.vocab_size]
