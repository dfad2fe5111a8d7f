import pytest
from support.corpus_files import new_tokenizer
from support.trainers import TrainerFactory

from modeling_xlm_swcm import XLMSWCMTokenizer
from modeling_xlm_swcm.training.denoising import TokenTables


@pytest.fixture(scope="module")
def tokenizer() -> XLMSWCMTokenizer:
    return new_tokenizer()


@pytest.fixture(scope="module")
def tables(tokenizer) -> TokenTables:
    return TokenTables(tokenizer)


@pytest.fixture
def make_trainer(tokenizer, tmp_path) -> TrainerFactory:
    return TrainerFactory(tokenizer, tmp_path)
