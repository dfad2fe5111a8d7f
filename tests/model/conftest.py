import pytest
from support.encoders import unigram_pieces
from support.tags import TEXTS, unigram_tokenizer, with_tags
from transformers import XLMRobertaTokenizer

from modeling_xlm_swcm import XLMSWCMTokenizer


@pytest.fixture(scope="session")
def pieces() -> list[tuple[str, float]]:
    return unigram_pieces(list(TEXTS.values()), 250)


@pytest.fixture
def encoder_tokenizer(pieces) -> XLMRobertaTokenizer:
    return unigram_tokenizer(pieces)


@pytest.fixture
def tokenizer(encoder_tokenizer) -> XLMSWCMTokenizer:
    return with_tags(encoder_tokenizer, src_lang="bo", tgt_lang="zh")


@pytest.fixture
def unset(encoder_tokenizer) -> XLMSWCMTokenizer:
    return with_tags(encoder_tokenizer)


@pytest.fixture
def plain(encoder_tokenizer):
    """Return a function that tokenizes a text without special tokens."""
    return lambda text: encoder_tokenizer(text, add_special_tokens=False)["input_ids"]
