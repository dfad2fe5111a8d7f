"""BPE vocabularies with byte fallback, as in mmBERT, are trimmed: text of the corpus is segmented as before."""

import json
from pathlib import Path

import pytest
import torch
from support.encoders import SENTENCES, gemma_tokenizer, make_encoder, read_tensors, roberta_tokenizer, save_encoder
from transformers import AutoTokenizer, ModernBertForMaskedLM

from modeling_xlm_swcm.checkpoints.errors import ConversionError
from modeling_xlm_swcm.vocabulary import trim


TEXTS = ["The wind rises in the morning.", "the boat stays at the river, and the ferry at the bank."]
EMBEDDINGS = "model.embeddings.tok_embeddings.weight"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    tokenizer = gemma_tokenizer([*SENTENCES, *TEXTS], 600)
    model = make_encoder(ModernBertForMaskedLM, tokenizer, decoder_bias=True)
    return save_encoder(tmp_path_factory.mktemp("bpe") / "encoder", model, tokenizer)


@pytest.mark.parametrize("options", [{"coverage": 1.0}, {"size": 330}], ids=str)
def test_kept_text_is_segmented_as_before_and_all_other_text_can_be_written(encoder, output, tmp_path, options):
    (tmp_path / "en.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    report = trim(encoder, output, corpus=[str(tmp_path / "en.txt")], **options)
    before, after = AutoTokenizer.from_pretrained(encoder), AutoTokenizer.from_pretrained(output)
    kept = {int(old): new for old, new in json.loads((output / "id_map.json").read_text()).items()}
    assert len(after) == report.tokens["after"] < len(before) - 100
    for text in TEXTS if "coverage" in options else ():
        assert after(text).input_ids == [kept[token] for token in before(text).input_ids]
    for text in SENTENCES:
        assert after.decode(after(text).input_ids, skip_special_tokens=True) == text
        assert after.unk_token_id not in after(text).input_ids
    old, new = read_tensors(encoder), read_tensors(output)
    assert torch.equal(new[EMBEDDINGS], old[EMBEDDINGS][list(kept)])
    assert torch.equal(new["decoder.bias"], old["decoder.bias"][list(kept)])


def test_a_token_is_kept_with_the_tokens_that_it_is_merged_from(encoder, output, tmp_path):
    (tmp_path / "en.txt").write_text("the the the", encoding="utf-8")
    trim(encoder, output, corpus=[str(tmp_path / "en.txt")], coverage=1.0)
    state = json.loads((output / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    for left, right in state["merges"]:
        assert {left, right, left + right} <= state["vocab"].keys()
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (encoder, output))
    tokens = after.tokenize("the the the")
    assert tokens == before.tokenize("the the the") and max(map(len, tokens)) > 2
    assert len(after) < len(before) - 100


def test_a_byte_level_tokenizer_is_refused(tmp_path, output):
    save_encoder(tmp_path / "encoder", make_encoder(ModernBertForMaskedLM, roberta_tokenizer()), roberta_tokenizer())
    (tmp_path / "en.txt").write_text("the", encoding="utf-8")
    with pytest.raises(ConversionError, match="has type BPE"):
        trim(tmp_path / "encoder", output, corpus=[str(tmp_path / "en.txt")])
