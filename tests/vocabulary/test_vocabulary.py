"""Change vocabularies before and after a conversion, and of checkpoints in every supported form."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from support.encoders import (
    camembert_tokenizer,
    edit_tensors,
    make_encoder,
    make_masked_lm,
    read_tensors,
    save_encoder,
    sentencepiece_model,
    write_bin,
)
from support.folders import different_tensors, load
from support.models import PREFIX_DECODERS, SHARINGS, tiny_config, tiny_model
from support.remote_code import CODE
from support.vocabularies import (
    EMBEDDINGS,
    TAGS,
    TEXTS,
    ids,
    load_encoder,
    load_tokenizer,
    other_tensors,
    reader_tokenizer,
    rows_by_token,
    save_reader,
    segment,
    vocabulary_tensors,
    write_texts,
)
from transformers import CamembertForMaskedLM, XLMRobertaForMaskedLM, XLMRobertaModel

from modeling_xlm_swcm import XLMSWCMTokenizer
from modeling_xlm_swcm.conversion import ConversionError, convert
from modeling_xlm_swcm.released_xlm_swcm import ReleasedXLMSWCMConfig, ReleasedXLMSWCMForConditionalGeneration
from modeling_xlm_swcm.vocabulary import extend, trim


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
        rows, others = rows_by_token(first), rows_by_token(last)
        assert rows.keys() == others.keys()
        for name in rows:
            assert rows[name].keys() == others[name].keys() > tags
            # Tags start as the mean of all rows, which the order of the steps changes.
            different = {piece for piece in rows[name] if not torch.equal(rows[name][piece], others[name][piece])}
            assert different <= tags
        load(last)
        for text in sum(TEXTS.values(), []):
            assert segment(load_tokenizer(first), text) == segment(load_tokenizer(last), text)
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

    @pytest.mark.parametrize("is_equal", [False, True])
    def test_an_untied_output_matrix(self, old, change, output, tmp_path, is_equal):
        folder = save_reader(tmp_path / "reader", tie_word_embeddings=False)
        if is_equal:
            # Untied tensors stay, also if they equal other tensors.
            copies = {"lm_head.decoder.weight": EMBEDDINGS, "lm_head.decoder.bias": "lm_head.bias"}
            edit_tensors(
                folder, lambda found: found | {name: found[copied].clone() for name, copied in copies.items()}
            )
        change(folder, output)
        before, after = rows_by_token(folder), rows_by_token(output)
        head = {"lm_head.bias", "lm_head.decoder.weight", "lm_head.decoder.bias"}
        assert after.keys() == before.keys() == {EMBEDDINGS, *head}
        for name, rows in before.items():
            assert all(torch.equal(after[name][piece], rows[piece]) for piece in after[name].keys() & rows.keys())
        assert not load_encoder(output).config.tie_word_embeddings

    @pytest.mark.parametrize("sharing", [*SHARINGS, *PREFIX_DECODERS], ids=str)
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
        before, after = rows_by_token(folder), rows_by_token(output)
        for name, rows in before.items():
            kept = after[name].keys() & rows.keys()
            assert len(kept) > 20 and all(torch.equal(after[name][piece], rows[piece]) for piece in kept)
        assert different_tensors(other_tensors(folder), other_tensors(output)) == []

    def test_a_converted_release_of_the_authors(self, change, output, tmp_path):
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

    def test_a_sentencepiece_file_gives_the_same_result_as_a_tokenizer_json(self, change, tmp_path):
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
        before, after = rows_by_token(folder), rows_by_token(output)
        assert all(torch.equal(after[EMBEDDINGS][token], before[EMBEDDINGS][token]) for token in ("<title>", "[sep]"))
        assert [piece for piece in segment(load_tokenizer(output), "a <title> of [sep] it") if piece[0] in "<["] == [
            "<title>",
            "[sep]",
        ]


@pytest.mark.parametrize("order", ["extend, convert", "convert, extend", "convert, trim", "convert, extend, trim"])
def test_a_spelt_out_tag_is_text(tmp_path, order):
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
    segmented = tokenizer("ab <bo> cd <en>", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert not tags & set(segmented)
    assert tags <= set(tokenizer("ab <bo> cd <en>", add_special_tokens=False)["input_ids"])


def test_ids_in_the_conversion_report_are_renumbered(tmp_path):
    source, texts = save_reader(tmp_path / "reader"), write_texts(tmp_path / "texts")
    convert(source, tmp_path / "model", languages=["bo", "en"])
    trim(tmp_path / "model", tmp_path / "trimmed", corpus=[texts["en"]])
    tokenizer = load_tokenizer(tmp_path / "trimmed")
    report = json.loads((tmp_path / "trimmed" / "conversion_report.json").read_text())
    assert report["language_ids"] == {code: tokenizer.get_lang_id(code) for code in ("bo", "en")}
    assert report["new_ids"] == list(report["language_ids"].values()) and "parameters" not in report


def test_a_conversion_report_with_the_ids_before_a_trimming_is_refused(tmp_path):
    source, texts = save_reader(tmp_path / "reader"), write_texts(tmp_path / "texts")
    convert(source, tmp_path / "model", languages=["bo", "en"])
    trim(tmp_path / "model", tmp_path / "trimmed", corpus=[texts["en"]])
    shutil.copy(tmp_path / "model" / "conversion_report.json", tmp_path / "trimmed")
    with pytest.raises(ConversionError, match=r"conversion_report.json of .* gives the tag of bo the id \d+, but in"):
        trim(tmp_path / "trimmed", tmp_path / "again", corpus=[texts["en"]])
    assert not (tmp_path / "again").exists()


def test_unused_rows_do_not_change_the_tags(tmp_path):
    source, texts = save_reader(tmp_path / "reader"), write_texts(tmp_path / "texts")
    for multiple in (1, 64):
        trim(source, tmp_path / f"trimmed-{multiple}", corpus=[texts["en"]], pad_to_multiple_of=multiple)
        convert(tmp_path / f"trimmed-{multiple}", tmp_path / f"model-{multiple}", languages=["en"])
    plain, padded = (rows_by_token(tmp_path / f"model-{multiple}") for multiple in (1, 64))
    assert all(torch.equal(plain[name]["<en>"], padded[name]["<en>"]) for name in plain)
