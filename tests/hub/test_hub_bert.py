"""A converted BERT is pushed, runs on a machine without this package, and is exported."""

from pathlib import Path

import pytest
import torch
from support.encoders import make_encoder, save_encoder, wake, word_piece_tokenizer
from support.folders import load
from support.hub_client import SENT
from support.remote_code import SOURCE, TARGET, run_without_the_package
from transformers import AutoTokenizer, BertForMaskedLM

from modeling_xlm_swcm.conversion import convert
from modeling_xlm_swcm.export import export
from modeling_xlm_swcm.export.xlm_swcm_runtime import ExportedModel


@pytest.fixture(scope="module", params=["prefix", "paper"])
def model_folder(request, tmp_path_factory) -> Path:
    folder, tokenizer = tmp_path_factory.mktemp("bert"), word_piece_tokenizer()
    save_encoder(folder / "encoder", make_encoder(BertForMaskedLM, tokenizer, type_vocab_size=2), tokenizer)
    convert(folder / "encoder", folder / "model", languages=["bo", "zh"], license="mit", decoder=request.param)
    wake(folder / "model")
    AutoTokenizer.from_pretrained(folder / "model", src_lang="bo", tgt_lang="zh").save_pretrained(folder / "model")
    return folder / "model"


def test_it_is_pushed_with_a_card_that_names_its_encoder(hub, client, model_folder):
    outcome = client.command("push", model_folder, "someone/bert")
    assert outcome.exit_code == 0, outcome.stderr
    repository = hub.repositories["someone/bert"]
    assert repository.refs["main"].files.keys() == SENT


@pytest.mark.parametrize("model_folder", ["prefix"], indirect=True)
@torch.no_grad()
def test_the_code_in_the_folder_computes_the_same(model_folder, tmp_path):
    remote = run_without_the_package(model_folder, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    batch = dict(tokenizer(SOURCE, text_target=TARGET, return_tensors="pt"))
    assert all(torch.equal(remote["batch"][name], ids) for name, ids in batch.items())
    assert torch.equal(remote["logits"], load(model_folder)(**batch).logits)


def test_an_exported_bert_writes_the_texts_of_pytorch(model_folder, tmp_path):
    export(model_folder, tmp_path / "exported")
    model, tokenizer = load(model_folder), AutoTokenizer.from_pretrained(model_folder)
    texts = ["The river rises [SEP] early", "no wind at all"]
    inputs = tokenizer(texts, src_lang="bo", split_special_tokens=True, padding=True, return_tensors="pt")
    tag = tokenizer.get_lang_id("zh")
    expected = model.generate(**inputs, forced_bos_token_id=tag, max_new_tokens=8)
    written = ExportedModel(tmp_path / "exported", threads=1)(texts, src_lang="bo", tgt_lang="zh", max_new_tokens=8)
    assert written == tokenizer.batch_decode(expected, skip_special_tokens=True)
