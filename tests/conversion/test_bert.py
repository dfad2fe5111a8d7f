"""BERT encoders: positions from 0, two token types, and tokenizers of the kinds WordPiece and Unigram."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from support.encoders import (
    SENTENCES,
    edit_config,
    edit_tensors,
    make_encoder,
    read_tensors,
    save_encoder,
    sentencepiece_model,
    word_piece_tokenizer,
    xlm_roberta_tokenizer,
)
from support.folders import different_tensors, load
from transformers import AutoTokenizer, BertForMaskedLM, BertForPreTraining, PreTrainedModel, XLMRobertaModel
from transformers.utils import logging

from modeling_xlm_swcm import XLMSWCMPipeline
from modeling_xlm_swcm.conversion import ConversionError, convert, from_encoder
from modeling_xlm_swcm.vocabulary import trim


SPECIAL_IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")


@pytest.fixture(scope="module")
def bert() -> PreTrainedModel:
    return make_encoder(BertForPreTraining, word_piece_tokenizer(), type_vocab_size=2)


@pytest.fixture(scope="module")
def bert_folder(bert, tmp_path_factory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("bert") / "encoder", bert, word_piece_tokenizer())


@pytest.fixture
def own_bert(bert_folder, tmp_path) -> Path:
    return Path(shutil.copytree(bert_folder, tmp_path / "encoder"))


def test_the_encoder_computes_the_states_of_bert_bit_by_bit(bert, bert_folder):
    """Right-padded sources, because BERT counts the positions from the first column."""
    model, report = from_encoder(bert_folder)
    batch = word_piece_tokenizer()(SENTENCES[:5], padding=True, truncation=True, max_length=40, return_tensors="pt")
    assert batch["attention_mask"].sum() < batch["attention_mask"].numel()
    is_token = batch["attention_mask"].bool()
    with torch.no_grad():
        expected = bert.bert(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        states = model.get_encoder()(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    assert torch.equal(states[is_token], expected[is_token])
    assert report.family == "BERT"


def test_no_source_token_reads_the_rows_that_were_put_before_the_positions(bert_folder):
    model, _ = from_encoder(bert_folder)
    table = model.model.encoder.embeddings.position_embeddings.weight
    assert table.shape == (41, 32) and not table[0].any() and table[1:].any(1).all()
    assert model.config.longest_input == 40


def test_special_ids_and_sizes_are_the_sources(bert_folder):
    model, report = from_encoder(bert_folder)
    assert [getattr(model.config, name) for name in SPECIAL_IDS] == [0, 2, 3, 2]
    assert (model.config.type_vocab_size, model.config.layer_norm_eps) == (1, 1e-12)
    assert report.tokenizer.model_max_length == 40


def test_pooler_next_sentence_and_second_token_type_are_dropped_and_told(bert_folder):
    _, report = from_encoder(bert_folder)
    assert set(report.dropped) == {
        *("pooler.dense.weight", "pooler.dense.bias", "cls.seq_relationship.weight", "cls.seq_relationship.bias"),
        "embeddings.token_type_embeddings.weight[1:]",
    }


def test_old_names_and_missing_fields_give_the_same_model(bert_folder, own_bert):
    """MuRIL has no `pad_token_id`. mBERT was made from TensorFlow."""

    def rename(name: str) -> str:
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    edit_tensors(own_bert, lambda tensors: {rename(name): tensor for name, tensor in tensors.items()})
    edit_config(own_bert, pad_token_id=None, layer_norm_eps=None)
    expected, model = (from_encoder(folder)[0] for folder in (bert_folder, own_bert))
    assert different_tensors(expected.state_dict(), model.state_dict()) == []
    assert expected.config.to_diff_dict() == model.config.to_diff_dict()


def test_an_own_output_matrix_and_bias_are_seen(own_bert):
    def untie(tensors):
        words, bias = tensors["bert.embeddings.word_embeddings.weight"], tensors["cls.predictions.bias"]
        projection = {"cls.predictions.decoder.weight": words + 1, "cls.predictions.decoder.bias": bias + 1}
        return tensors | projection

    edit_tensors(own_bert, untie)
    model, report = from_encoder(own_bert)
    assert torch.equal(model.lm_head.bias, read_tensors(own_bert)["cls.predictions.decoder.bias"])
    assert "lm_head_transform.dense.weight" in report.new


def test_a_head_with_another_activation_is_not_copied(own_bert):
    edit_config(own_bert, hidden_act="relu")
    _, report = from_encoder(own_bert)
    assert report.new["lm_head_transform.dense.weight"] == "identity"
    assert "new transform" in report.dropped["cls.predictions.transform.dense.weight"]


@pytest.mark.parametrize("options", [{}, {"weight_sharing": "tied"}, {"decoder": "paper"}], ids=str)
def test_one_encoder_in_two_shapes_gives_one_model(options, tmp_path):
    """BERT with XLM-R's vocabulary, as multilingual-e5-small, whose config has another padding token."""
    tokenizer = xlm_roberta_tokenizer()
    bert = make_encoder(BertForMaskedLM, tokenizer, type_vocab_size=2, pad_token_id=0).bert
    xlm_r = make_encoder(XLMRobertaModel, tokenizer, max_position_embeddings=42, layer_norm_eps=1e-12)
    tensors, types = bert.state_dict(), bert.embeddings.token_type_embeddings.weight
    positions = torch.cat([torch.zeros(2, 32), bert.embeddings.position_embeddings.weight])
    tensors |= {
        "embeddings.position_embeddings.weight": positions,
        "embeddings.token_type_embeddings.weight": types[:1],
    }
    xlm_r.load_state_dict(tensors | {k: v for k, v in xlm_r.state_dict().items() if k.startswith("pooler")})
    models = []
    for encoder in (bert, xlm_r):
        folder = save_encoder(tmp_path / type(encoder).__name__, encoder, tokenizer)
        models.append(from_encoder(folder, languages=["bo"], **options))
    (first, report), (second, other) = models
    assert different_tensors(first.state_dict(), second.state_dict()) == []
    assert first.config.to_diff_dict() == second.config.to_diff_dict()
    assert report.tokenizer.backend_tokenizer.to_str() == other.tokenizer.backend_tokenizer.to_str()


def test_a_model_in_memory_needs_its_tokenizer_for_the_ends_of_a_text(bert):
    with pytest.raises(ConversionError, match="has no bos_token_id. Pass the tokenizer"):
        from_encoder(bert)
    tokenizer = word_piece_tokenizer()
    model, report = from_encoder(bert, tokenizer=tokenizer, languages=["ug"])
    assert (model.config.bos_token_id, model.config.eos_token_id) == (2, 3)
    assert report.tokenizer.bos_token == "[CLS]" and tokenizer.bos_token is None


def test_a_word_piece_vocabulary_in_a_text_file_is_a_tokenizer(own_bert):
    vocab = json.loads((own_bert / "tokenizer.json").read_text())["model"]["vocab"]
    expected = AutoTokenizer.from_pretrained(own_bert)(SENTENCES)["input_ids"]
    (own_bert / "tokenizer.json").unlink()
    (own_bert / "vocab.txt").write_text("\n".join(sorted(vocab, key=vocab.get)) + "\n")
    _, report = from_encoder(own_bert)
    assert report.tokenizer(SENTENCES)["input_ids"] == expected


def test_a_cased_tokenizer_stays_cased_without_tokenizer_config(own_bert):
    """Transformers would make it uncased."""
    (own_bert / "tokenizer_config.json").unlink()
    _, report = from_encoder(own_bert)
    assert report.tokenizer.convert_ids_to_tokens(report.tokenizer("A")["input_ids"]) == ["[CLS]", "A", "[SEP]"]


def test_sentencepiece_without_its_class_is_refused(own_bert):
    (own_bert / "tokenizer.json").unlink()
    (own_bert / "tokenizer_config.json").unlink()
    (own_bert / "sentencepiece.bpe.model").write_bytes(sentencepiece_model())
    with pytest.raises(ConversionError, match="makes a WordPiece tokenizer, but sentencepiece.bpe.model holds a Unig"):
        from_encoder(own_bert)


def test_generated_word_pieces_are_joined_by_tokenizer_and_pipeline(bert_folder, tmp_path):
    convert(bert_folder, tmp_path / "model", languages=["ug", "bo"])
    model, tokenizer = load(tmp_path / "model"), AutoTokenizer.from_pretrained(tmp_path / "model", src_lang="ug")
    # BERT's normalizer removes the Mongolian vowel separator.
    # The last text is a word that no vocabulary of these sentences has.
    texts = [*(text.replace("\u180e", "") for text in SENTENCES), "riverriver"]
    ids = tokenizer(text_target=texts, tgt_lang="bo")["input_ids"]
    assert any("##" in token for token in tokenizer.convert_ids_to_tokens(ids[-1]))
    assert tokenizer.batch_decode(ids, skip_special_tokens=True) == texts
    inside = next(token for token in tokenizer.get_vocab() if token.startswith("##"))
    start = [tokenizer.get_lang_id("bo"), *tokenizer.convert_tokens_to_ids([inside, inside])]
    assert tokenizer.decode(start, skip_special_tokens=True) == 2 * inside.removeprefix("##")
    (answer,) = XLMSWCMPipeline(model=model, tokenizer=tokenizer)(
        "The [SEP] river", src_lang="ug", tgt_lang="bo", max_new_tokens=8
    )
    assert "##" not in answer["translation_text"]


@pytest.mark.parametrize("text", ["[CLS] a", "the [SEP][MASK]", "<bo> river", "ǝ unknown"])
def test_a_text_that_spells_special_tokens_stays_text(text, bert_folder):
    _, report = from_encoder(bert_folder, languages=["bo"])
    tokenizer = report.tokenizer
    ids = tokenizer(text, src_lang="bo", split_special_tokens=True)["input_ids"]
    special = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
    assert [token for token in ids if token in special] == [2, tokenizer.get_lang_id("bo"), 3]


def test_losses_of_the_tokenizer_are_told(bert, tmp_path):
    folder = save_encoder(tmp_path, bert, word_piece_tokenizer(do_lower_case=True))
    notes = " ".join(from_encoder(folder)[1].notes)
    assert "uncased" in notes and "accents" in notes and "loses spaces" in notes
    assert "Mongolian vowel separator and the zero-width non-joiner" in notes
    cased = save_encoder(tmp_path / "cased", bert, word_piece_tokenizer())
    assert "case" not in " ".join(from_encoder(cased)[1].notes)


def test_a_language_that_cannot_be_read_is_told(bert_folder, caplog, monkeypatch):
    monkeypatch.setattr(logging.get_logger("modeling_xlm_swcm"), "propagate", True)
    from_encoder(bert_folder, languages=["th", "th-Latn", "qaa"])
    (warning,) = [record.getMessage() for record in caplog.records]
    assert 'cannot read "ไทย" in "ไทย", the name of the language th. The model cannot generate these ch' in warning


def make_sentence_transformer(encoder: Path, folder: Path, subfolder: str, **fields) -> Path:
    shutil.copytree(encoder, folder / subfolder)
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": subfolder}]))
    (folder / subfolder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 16} | fields))
    return folder


@pytest.mark.parametrize("subfolder", ["0_Transformer", ""])
def test_a_folder_of_sentence_transformers_is_its_encoder(subfolder, bert_folder, tmp_path):
    expected, _ = from_encoder(bert_folder)
    model, report = from_encoder(make_sentence_transformer(bert_folder, tmp_path / "model", subfolder))
    assert different_tensors(expected.state_dict(), model.state_dict()) == []
    assert report.tokenizer.model_max_length == 16


def test_the_encoder_of_sentence_transformers_is_not_overwritten(bert_folder, tmp_path):
    folder = make_sentence_transformer(bert_folder, tmp_path / "model", "0_Transformer")
    (tmp_path / "zh.txt").write_text("天地人\n")
    writers = (convert, partial(trim, corpus=[f"zh={tmp_path / 'zh.txt'}"]))
    for write in writers:
        with pytest.raises(ConversionError, match="the source .*0_Transformer would be lost"):
            write(folder, folder / "0_Transformer", overwrite=True)
    assert json.loads((folder / "0_Transformer" / "config.json").read_text())["model_type"] == "bert"


def test_a_longer_limit_of_sentence_transformers_changes_nothing(bert_folder, tmp_path):
    folder = make_sentence_transformer(bert_folder, tmp_path / "model", "", max_seq_length=512)
    assert from_encoder(folder)[1].tokenizer.model_max_length == 40


MODULES = {
    "no list": ("{}", "is not a list of modules"),
    "no path": ("[{}]", "is not a list of modules"),
    "a path out of the folder": ('[{"path": "../x"}]', "not a subfolder"),
    "a folder that does not exist": ('[{"path": "0_Transformer"}]', "does not exist"),
}


@pytest.mark.parametrize(("content", "message"), MODULES.values(), ids=MODULES)
def test_damaged_modules_are_refused(content, message, own_bert):
    (own_bert / "modules.json").write_text(content)
    with pytest.raises(ConversionError, match=message):
        from_encoder(own_bert)


@pytest.mark.parametrize("length", ["16", 0, True])
def test_a_damaged_limit_is_refused(length, bert_folder, tmp_path):
    folder = make_sentence_transformer(bert_folder, tmp_path / "model", "", max_seq_length=length)
    with pytest.raises(ConversionError, match="max_seq_length in .*Use a positive number of tokens"):
        from_encoder(folder)
