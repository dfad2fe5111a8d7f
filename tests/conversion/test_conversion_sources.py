"""The conversion: all file formats and kinds of encoders give the same model."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import sentencepiece
import torch
from support.encoders import (
    SENTENCES,
    Tensors,
    camembert_tokenizer,
    edit_tensors,
    gemma_tokenizer,
    make_encoder,
    make_masked_lm,
    read_tensors,
    roberta_tokenizer,
    save_encoder,
    sentencepiece_model,
    word_piece_tokenizer,
    write_bin,
    write_shards,
    xlm_roberta_tokenizer,
)
from support.folders import bits, different_tensors, load
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertForMaskedLM,
    CamembertForMaskedLM,
    ElectraForPreTraining,
    ModernBertForMaskedLM,
    PreTrainedModel,
    RobertaForMaskedLM,
    XLMRobertaForMaskedLM,
    XLMRobertaForMultipleChoice,
    XLMRobertaForQuestionAnswering,
    XLMRobertaForSequenceClassification,
    XLMRobertaForTokenClassification,
    XLMRobertaModel,
)

from modeling_xlm_swcm import XLMSWCMForConditionalGeneration, XLMSWCMTokenizer
from modeling_xlm_swcm.conversion import convert, from_encoder


def storages(model: PreTrainedModel) -> set[int]:
    tensors = (*model.parameters(), *model.buffers())
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


def without_prefix(tensors: Tensors) -> Tensors:
    return {name.removeprefix("roberta."): tensor for name, tensor in tensors.items()}


def with_pooler(tensors: Tensors) -> Tensors:
    generator = torch.Generator().manual_seed(5)
    pooler = {"weight": torch.randn(32, 32, generator=generator), "bias": torch.randn(32, generator=generator)}
    return tensors | {f"roberta.pooler.dense.{name}": tensor for name, tensor in pooler.items()}


def with_buffers(tensors: Tensors) -> Tensors:
    return tensors | {"roberta.embeddings.position_ids": torch.arange(40)[None]}


def with_bias_of_the_decoder_only(tensors: Tensors) -> Tensors:
    renamed = {"lm_head.bias": "lm_head.decoder.bias"}
    return {renamed.get(name, name): tensor for name, tensor in tensors.items()}


def with_the_whole_head(tensors: Tensors) -> Tensors:
    head = {"weight": tensors["roberta.embeddings.word_embeddings.weight"], "bias": tensors["lm_head.bias"]}
    return tensors | {f"lm_head.decoder.{name}": tensor.clone() for name, tensor in head.items()}


FORMS = {
    "a zipped .bin": write_bin,
    "a .bin from before torch 1.6": lambda folder: write_bin(folder, zipped=False),
    "safetensors in shards": lambda folder: write_shards(folder, "model", "safetensors"),
    "a .bin in shards": lambda folder: write_shards(folder, "pytorch_model", "bin"),
    "no prefix": lambda folder: edit_tensors(folder, without_prefix),
    "a pooler": lambda folder: edit_tensors(folder, with_pooler),
    "buffers": lambda folder: edit_tensors(folder, with_buffers),
    "the bias of the head's decoder only": lambda folder: edit_tensors(folder, with_bias_of_the_decoder_only),
    "the whole head": lambda folder: edit_tensors(folder, with_the_whole_head),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_source_gives_the_same_model(encoder_folder, own_encoder, form):
    FORMS[form](own_encoder)
    expected, expected_report = from_encoder(encoder_folder, languages=["bo"])
    model, report = from_encoder(own_encoder, languages=["bo"])
    assert different_tensors(expected.state_dict(), model.state_dict()) == []
    assert report.copied == expected_report.copied
    assert report.new == expected_report.new


def test_shards_as_transformers_saves_them_give_the_same_model(encoder_folder, own_encoder):
    encoder = XLMRobertaForMaskedLM.from_pretrained(encoder_folder)
    (own_encoder / "model.safetensors").unlink()
    encoder.save_pretrained(own_encoder, max_shard_size="50KB")
    assert len(list(own_encoder.glob("model-*.safetensors"))) > 2
    expected, model = (from_encoder(folder)[0] for folder in (encoder_folder, own_encoder))
    assert different_tensors(expected.state_dict(), model.state_dict()) == []


def test_a_source_without_a_head_gets_an_output_bias_of_zero(encoder_folder, own_encoder):
    edit_tensors(own_encoder, lambda tensors: {k: v for k, v in tensors.items() if not k.startswith("lm_head.")})
    options = {"decoder": "paper", "decoder_init": "shared"}
    expected, model = (from_encoder(folder, **options)[0] for folder in (encoder_folder, own_encoder))
    assert different_tensors(expected.state_dict(), model.state_dict()) == ["lm_head.bias"]
    assert not model.lm_head.bias.any()


def test_safetensors_are_taken_where_there_is_a_bin_as_well(encoder_folder, own_encoder):
    (own_encoder / "pytorch_model.bin").write_bytes(b"not weights")
    expected, model = (from_encoder(folder)[0] for folder in (encoder_folder, own_encoder))
    assert different_tensors(expected.state_dict(), model.state_dict()) == []


@pytest.mark.parametrize("model_class", [XLMRobertaModel, XLMRobertaForMaskedLM])
def test_a_model_in_memory_gives_what_its_folder_gives(model_class, tmp_path):
    tokenizer = xlm_roberta_tokenizer()
    encoder = make_encoder(model_class, tokenizer)
    expected, _ = from_encoder(save_encoder(tmp_path / "encoder", encoder, tokenizer))
    model, report = from_encoder(encoder)
    assert different_tensors(expected.state_dict(), model.state_dict()) == []
    assert report.source == model_class.__name__
    assert not model.training


@pytest.mark.parametrize("model_class", [XLMRobertaModel, XLMRobertaForMaskedLM])
@pytest.mark.parametrize("weight_sharing", ["init", "tied"])
def test_a_model_in_memory_shares_no_memory_with_the_result(model_class, weight_sharing):
    encoder = make_encoder(model_class, xlm_roberta_tokenizer())
    model, _ = from_encoder(encoder, weight_sharing=weight_sharing)
    assert not storages(encoder) & storages(model)


def test_training_the_result_leaves_the_encoder_as_it_is(masked_lm, batch):
    before = {name: tensor.clone() for name, tensor in masked_lm.state_dict().items()}
    model, _ = from_encoder(masked_lm)
    model(**batch).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert different_tensors(before, masked_lm.state_dict()) == []
    assert not torch.equal(model.model.encoder.embeddings.LayerNorm.bias, before["roberta.embeddings.LayerNorm.bias"])


@pytest.mark.parametrize(
    "model_class",
    [
        XLMRobertaForSequenceClassification,
        XLMRobertaForTokenClassification,
        XLMRobertaForMultipleChoice,
        XLMRobertaForQuestionAnswering,
    ],
)
def test_the_head_of_another_task_is_left_out(model_class):
    encoder = make_encoder(model_class, xlm_roberta_tokenizer())
    _, report = from_encoder(encoder)
    dropped = {name.removeprefix("roberta.") for name in encoder.state_dict()} - {*report.copied.values()}
    assert report.dropped.keys() == dropped
    assert {"the head of another task"} <= {*report.dropped.values()}
    assert report.new["lm_head.bias"] == "zero"


def test_special_tokens_of_the_source_stay_special(tmp_path):
    tokenizer = xlm_roberta_tokenizer("<x>")
    save_encoder(tmp_path, make_encoder(XLMRobertaForMaskedLM, tokenizer), tokenizer)
    AutoTokenizer.from_pretrained(tmp_path, extra_special_tokens=["<x>"]).save_pretrained(tmp_path)
    assert "<x>" in AutoTokenizer.from_pretrained(tmp_path).all_special_tokens
    _, report = from_encoder(tmp_path, languages=["bo"])
    assert {"<x>", "<bo>"} < {*report.tokenizer.all_special_tokens}


def test_a_sentencepiece_file_alone_is_a_tokenizer(tmp_path):
    proto = sentencepiece_model()
    pieces = sentencepiece.SentencePieceProcessor(model_proto=proto)
    # XLM-R adds `<pad>` before the SentencePiece tokens and `<mask>` after them.
    vocab_size = pieces.get_piece_size() + 2
    make_masked_lm(vocab_size=vocab_size).save_pretrained(tmp_path / "encoder")
    (tmp_path / "encoder" / "sentencepiece.bpe.model").write_bytes(proto)
    report = convert(tmp_path / "encoder", tmp_path / "model", languages=["bo"])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model", src_lang="bo")
    assert report.language_ids == {"bo": vocab_size}
    for text in SENTENCES:
        assert tokenizer(text).input_ids == [0, vocab_size, *(piece + 1 for piece in pieces.encode(text)), 2]


def test_a_vocabulary_and_merges_are_a_tokenizer(tmp_path):
    tokenizer = roberta_tokenizer()
    folder = save_encoder(tmp_path / "encoder", make_encoder(RobertaForMaskedLM, tokenizer), tokenizer)
    saved = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(saved["vocab"]))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, saved["merges"])]))
    _, report = from_encoder(folder, languages=["bo"])
    report.tokenizer.src_lang = "bo"
    for text in SENTENCES:
        start, *pieces = tokenizer(text).input_ids
        assert report.tokenizer(text).input_ids == [start, len(tokenizer), *pieces]


# model class, tokenizer, ids of padding, start and end, and longest input
KINDS = {
    "xlm-roberta": (XLMRobertaForMaskedLM, xlm_roberta_tokenizer, (1, 0, 2), 38),
    "roberta": (RobertaForMaskedLM, roberta_tokenizer, (1, 0, 2), 38),
    "camembert": (CamembertForMaskedLM, camembert_tokenizer, (1, 5, 6), 38),
    "bert": (BertForMaskedLM, word_piece_tokenizer, (0, 2, 3), 40),
    "bert with Unigram": (BertForMaskedLM, xlm_roberta_tokenizer, (1, 0, 2), 40),
    "electra": (ElectraForPreTraining, word_piece_tokenizer, (0, 2, 3), 40),
    "modernbert": (ModernBertForMaskedLM, gemma_tokenizer, (0, 2, 1), 40),
}


@dataclass
class Kind:
    encoder: Path
    output: Path
    ids: tuple[int, int, int]
    longest: int


@pytest.fixture(scope="module", params=KINDS)
def kind(request, tmp_path_factory) -> Kind:
    model_class, make_tokenizer, ids, longest = KINDS[request.param]
    folder, tokenizer = tmp_path_factory.mktemp("kind"), make_tokenizer()
    options = {"embedding_size": 32} if request.param == "electra" else {}
    save_encoder(folder / "encoder", make_encoder(model_class, tokenizer, **options), tokenizer)
    convert(folder / "encoder", folder / "model", languages=["bo", "ug"])
    return Kind(folder / "encoder", folder / "model", ids, longest)


def test_a_converted_folder_loads_with_the_auto_classes(kind):
    assert isinstance(load(kind.output), XLMSWCMForConditionalGeneration)
    assert isinstance(AutoTokenizer.from_pretrained(kind.output), XLMSWCMTokenizer)
    _, info = AutoModel.from_pretrained(kind.output, output_loading_info=True)
    assert not info["missing_keys"]


def test_the_special_ids_are_the_sources(kind):
    model = load(kind.output)
    for config in (model.config, model.generation_config):
        ids = (config.pad_token_id, config.bos_token_id, config.eos_token_id)
        assert ids == kind.ids and config.decoder_start_token_id == config.bos_token_id


def test_the_converted_tokenizer_splits_as_the_sources(kind):
    source = AutoTokenizer.from_pretrained(kind.encoder)
    converted = AutoTokenizer.from_pretrained(kind.output, src_lang="ug")
    for text in [*SENTENCES, f"one {source.mask_token} two", "  spaces  around  ", "new\nlines"]:
        start, *pieces = source(text).input_ids
        assert converted(text).input_ids == [start, converted.get_lang_id("ug"), *pieces]


def test_a_converted_model_generates_in_the_language_asked_for(kind):
    model, tokenizer = load(kind.output), AutoTokenizer.from_pretrained(kind.output, src_lang="bo")
    inputs = tokenizer(SENTENCES[2:4], padding=True, truncation=True, return_tensors="pt")
    tag = tokenizer.get_lang_id("ug")
    generated = model.generate(**inputs, forced_bos_token_id=tag, max_new_tokens=5, num_beams=2)
    assert generated[:, :2].tolist() == [[kind.ids[1], tag]] * 2
    assert tokenizer.model_max_length == model.generation_config.max_length == kind.longest


def test_the_written_tensors_are_those_of_the_encoder_file(kind):
    source, result = read_tensors(kind.encoder), read_tensors(kind.output)
    for target, name in json.loads((kind.output / "conversion_report.json").read_text())["copied"].items():
        name = next(
            prefix + name for prefix in ("", "roberta.", "bert.", "electra.", "model.") if prefix + name in source
        )
        # Tags follow the words of the source. Rows that no token reads can stand before its positions.
        first = len(result[target]) - len(source[name]) if "position_embeddings" in name else 0
        copy = result[target][first : first + len(source[name])]
        assert torch.equal(bits(copy), bits(source[name])), target


def test_the_tokenizer_decides_where_the_config_has_other_special_ids(tmp_path):
    tokenizer = camembert_tokenizer()
    encoder = make_encoder(CamembertForMaskedLM, tokenizer, bos_token_id=0, eos_token_id=2)
    model, _ = from_encoder(save_encoder(tmp_path / "encoder", encoder, tokenizer))
    ids = (model.config.bos_token_id, model.config.eos_token_id, model.config.decoder_start_token_id)
    assert ids == (5, 6, 5)


def test_the_sizes_of_the_source_are_kept():
    encoder = make_masked_lm(type_vocab_size=2, layer_norm_eps=1e-7, hidden_act="relu", hidden_dropout_prob=0.2)
    config = from_encoder(encoder)[0].config
    assert (config.type_vocab_size, config.layer_norm_eps) == (2, 1e-7)
    assert (config.hidden_act, config.hidden_dropout_prob) == ("relu", 0.2)
    assert (config.hidden_size, config.intermediate_size, config.max_position_embeddings) == (32, 37, 40)
