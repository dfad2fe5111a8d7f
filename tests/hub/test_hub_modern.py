"""The way of a ModernBERT: extend, convert, train, push, and run on a machine without this package."""

from pathlib import Path

import pytest
import torch
from support.encoders import SENTENCES, gemma_tokenizer, make_encoder, save_encoder, xlm_roberta_tokenizer
from support.folders import load
from support.hub_client import SENT
from support.remote_code import MODERN_CODE, SOURCE, TARGET, run_without_the_package
from transformers import AutoTokenizer, ModernBertForMaskedLM

from modeling_xlm_swcm.checkpoints import inspect
from modeling_xlm_swcm.conversion import ConversionError, convert
from modeling_xlm_swcm.training.arguments import ModelArguments
from modeling_xlm_swcm.training.lora import adapt_model
from modeling_xlm_swcm.vocabulary import extend, trim


@pytest.fixture(scope="module", params=["init", "tied"])
def model_folder(request, tmp_path_factory) -> Path:
    folder, tokenizer = tmp_path_factory.mktemp("modern"), gemma_tokenizer()
    encoder = make_encoder(ModernBertForMaskedLM, tokenizer, max_position_embeddings=256)
    save_encoder(folder / "encoder", encoder, tokenizer)
    options = {"languages": ["bo", "zh"], "license": "mit", "weight_sharing": request.param}
    convert(folder / "encoder", folder / "model", **options)
    AutoTokenizer.from_pretrained(folder / "model", src_lang="bo", tgt_lang="zh").save_pretrained(folder / "model")
    return folder / "model"


@pytest.mark.parametrize("model_folder", ["init"], indirect=True)
def test_it_is_pushed_with_its_code(hub, client, model_folder):
    outcome = client.command("push", model_folder, "someone/modern")
    assert outcome.exit_code == 0, outcome.stderr
    assert hub.repositories["someone/modern"].refs["main"].files.keys() == SENT | MODERN_CODE


@torch.no_grad()
@pytest.mark.parametrize("model_folder", ["tied"], indirect=True)
def test_the_code_in_the_folder_computes_the_same(model_folder, tmp_path):
    remote = run_without_the_package(model_folder, tmp_path)
    batch = dict(AutoTokenizer.from_pretrained(model_folder)(SOURCE, text_target=TARGET, return_tensors="pt"))
    assert all(torch.equal(remote["batch"][name], ids) for name, ids in batch.items())
    assert torch.equal(remote["logits"], load(model_folder)(**batch).logits)
    assert remote["classes"][2] == "XLMSWCMModernForConditionalGeneration"


def test_lora_is_on_the_projections_of_the_decoder_and_is_merged(model_folder):
    model, tokenizer = load(model_folder), AutoTokenizer.from_pretrained(model_folder)
    batch = dict(tokenizer(SENTENCES[:2], text_target=SENTENCES[1:3], padding=True, return_tensors="pt"))
    adapted = adapt_model(model, ModelArguments(model_name_or_path=str(model_folder), lora=True, lora_rank=2))
    part = "encoder" if model.config.weight_sharing == "tied" else "decoder"
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    # two matrices for each of four projections in four layers
    assert len(trained) == 32 and all(f".{part}.layers." in name for name in trained)
    optimizer = torch.optim.AdamW(adapted.train().parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        adapted(**batch).loss.backward()
        optimizer.step()
    with torch.no_grad():
        expected = adapted.eval()(**batch).logits
        torch.testing.assert_close(adapted.merge_and_unload()(**batch).logits, expected, atol=1e-4, rtol=1e-4)


def test_it_is_inspected_and_new_tokens_for_bpe_are_refused(model_folder, output, tmp_path):
    parts = inspect(str(model_folder)).parts
    assert parts["encoder layers"] > 0 and (parts["decoder layers"] > 0) == (
        load(model_folder).config.weight_sharing == "init"
    )
    (tmp_path / "bo.txt").write_text("\n".join(SENTENCES), encoding="utf-8")
    with pytest.raises(ConversionError, match="has type BPE, but this command needs a Unigram or WordPiece tokenizer"):
        extend(model_folder, output, corpus=[str(tmp_path / "bo.txt")], size=99)


def test_a_unigram_vocabulary_is_extended_before_and_trimmed_after_the_conversion(tmp_path):
    tokenizer = xlm_roberta_tokenizer()
    save_encoder(tmp_path / "encoder", make_encoder(ModernBertForMaskedLM, tokenizer), tokenizer)
    (tmp_path / "bo.txt").write_text("\n".join([*SENTENCES, "བོད་སྐད་ཡིག་ཆ་ " * 5]), encoding="utf-8")
    corpus = [str(tmp_path / "bo.txt")]
    extend(tmp_path / "encoder", tmp_path / "extended", corpus=corpus, size=180)
    convert(tmp_path / "extended", tmp_path / "model", languages=["bo", "zh"])
    report = trim(tmp_path / "model", tmp_path / "trimmed", corpus=corpus)
    assert {"lm_head.bias", "model.encoder.embeddings.tok_embeddings.weight"} == set(report.changed)
    before, after = (load(tmp_path / name) for name in ("model", "trimmed"))
    tokenizers = [AutoTokenizer.from_pretrained(tmp_path / name, src_lang="bo") for name in ("model", "trimmed")]
    inputs = [tokenizer("བོད་སྐད་", return_tensors="pt") for tokenizer in tokenizers]
    states = [
        model.get_encoder()(**batch).last_hidden_state for model, batch in zip((before, after), inputs, strict=True)
    ]
    assert torch.equal(*states)
