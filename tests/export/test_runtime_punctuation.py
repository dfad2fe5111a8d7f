"""The exported runtime restores Chinese punctuation as the tokenizer does."""

import numpy as np
import tokenizers
from support.tags import unigram_tokenizer, with_tags

from modeling_xlm_swcm.export.export import make_text_tokenizer
from modeling_xlm_swcm.export.xlm_swcm_runtime import ExportedModel


TEXT = "书，你好！看：（ab）"


def test_chinese_outputs_have_the_punctuation_that_the_tokenizer_restores():
    encoder = unigram_tokenizer([(letter, -5.0) for letter in "▁书你好看ab,!:()"])
    encoder.backend_tokenizer.normalizer = tokenizers.normalizers.NFKC()
    tokenizer = with_tags(encoder, ["bo", "zh"])
    # No graph is needed to decode.
    runtime = ExportedModel.__new__(ExportedModel)
    runtime.tokenizer = tokenizers.Tokenizer.from_str(make_text_tokenizer(tokenizer))
    runtime.config = {"languages": {code: tokenizer.get_lang_id(code) for code in tokenizer.languages}}
    rows = [tokenizer(text_target=TEXT, tgt_lang=code)["input_ids"] for code in ("zh", "bo")]
    texts = runtime._decode(np.array(rows))
    assert texts == tokenizer.batch_decode(rows, skip_special_tokens=True)
    assert texts == [TEXT, "书,你好!看:(ab)"]
