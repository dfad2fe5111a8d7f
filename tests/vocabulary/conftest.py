from pathlib import Path

import pytest
from support.vocabularies import NEW, load_tokenizer, save_reader, save_writer, write_texts
from transformers import PreTrainedTokenizerBase

from modeling_xlm_swcm.vocabulary import extend


@pytest.fixture(scope="session")
def texts(tmp_path_factory) -> dict[str, str]:
    """Return the path of a text file for each language."""
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="session")
def reader(tmp_path_factory) -> Path:
    """Return an encoder. All tests share it, so a test must not change it."""
    return save_reader(tmp_path_factory.mktemp("reader"))


@pytest.fixture(scope="module")
def old(reader) -> PreTrainedTokenizerBase:
    return load_tokenizer(reader)


@pytest.fixture(scope="session")
def writer(reader, tmp_path_factory) -> Path:
    """Return the converted reader, with tags. A test must not change it."""
    return save_writer(reader, tmp_path_factory.mktemp("writer") / "model")


@pytest.fixture(scope="session")
def extended(reader, texts, tmp_path_factory) -> Path:
    """Return the reader with new tokens for its two unknown scripts. A test must not change it."""
    output = tmp_path_factory.mktemp("extended") / "model"
    extend(reader, output, corpus=[texts[language] for language in NEW], size=200)
    return output
