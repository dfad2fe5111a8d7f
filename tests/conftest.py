import gc
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from support.encoders import make_encoder, make_masked_lm, save_encoder, wake, xlm_roberta_tokenizer
from support.hub_client import Client, hub_client
from support.loopback_hub import Hub, loopback_hub
from support.models import QUICK_TO_LEARN, Batch, learn, random_tokens, tiny_config, tiny_model
from transformers import PreTrainedModel, XLMRobertaForMaskedLM
from transformers.utils import logging

from modeling_xlm_swcm import XLMSWCMConfig, XLMSWCMForConditionalGeneration
from modeling_xlm_swcm.conversion import convert


# A busy machine must not fail a test.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


def pytest_collection():
    gc.disable()


def pytest_collection_finish():
    gc.enable()


@pytest.fixture(autouse=True, scope="module")
def imports_without_garbage_collection():
    """Exempt all imported modules from garbage collection. It would take a quarter of the time of all tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def verbosity() -> Iterator[None]:
    """Restore the log level of Transformers after each test, because scripts change it."""
    before = logging.get_verbosity()
    yield
    logging.set_verbosity(before)


@pytest.fixture
def model() -> XLMSWCMForConditionalGeneration:
    return tiny_model()


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Return three right-padded sources of unequal length, with labels."""
    torch.manual_seed(1)
    input_ids = torch.randint(4, 99, (3, 9))
    attention_mask = torch.ones_like(input_ids)
    for row, length in enumerate((9, 6, 4)):
        input_ids[row, length:] = 1
        attention_mask[row, length:] = 0
    labels = torch.randint(4, 99, (3, 7))
    labels[1, 5:] = -100
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


@pytest.fixture
def source(batch) -> Batch:
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}


@pytest.fixture
def target() -> torch.Tensor:
    return random_tokens(3, 7)


@pytest.fixture
def left_padded_target(target) -> Batch:
    """Return left-padded targets of 7, 5 and 2 tokens."""
    mask = torch.ones_like(target)
    for row, padding in enumerate((0, 2, 5)):
        mask[row, :padding] = 0
    return {"decoder_input_ids": target.masked_fill(mask == 0, 1), "decoder_attention_mask": mask}


@pytest.fixture(scope="session")
def pairs() -> dict[str, torch.Tensor]:
    """Return eight right-padded sources with labels `<tag> ... </s>` of unequal length. Tokens 4 to 7 are tags."""
    generator = torch.Generator().manual_seed(2)
    input_ids = torch.randint(8, 99, (8, 9), generator=generator)
    labels = torch.randint(8, 99, (8, 9), generator=generator)
    labels[:, 0] = torch.arange(4, 8).repeat(2)
    for row in range(8):
        input_ids[row, 9 - row % 4 :] = 1
        end = 8 - 3 * row % 5
        labels[row, end] = 2
        labels[row, end + 1 :] = -100
    return {"input_ids": input_ids, "attention_mask": input_ids.ne(1).long(), "labels": labels}


@pytest.fixture(scope="session")
def trained_model(pairs) -> XLMSWCMForConditionalGeneration:
    return learn(tiny_config(), pairs)


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory) -> Path:
    """Return the folder of a masked LM with four layers. All tests share it, so do not change it."""
    tokenizer = xlm_roberta_tokenizer()
    return save_encoder(tmp_path_factory.mktemp("xlm-r"), make_encoder(XLMRobertaForMaskedLM, tokenizer), tokenizer)


@pytest.fixture(scope="session")
def learner_folder(encoder_folder, tmp_path_factory) -> Path:
    """Return a model with the paper's decoder and random weights that learn quickly. Do not change it."""
    folder = tmp_path_factory.mktemp("learner") / "model"
    convert(encoder_folder, folder, languages=["zh", "kk", "bo"], decoder="paper")
    torch.manual_seed(0)
    XLMSWCMForConditionalGeneration(XLMSWCMConfig.from_pretrained(folder, **QUICK_TO_LEARN)).save_pretrained(folder)
    return folder


@pytest.fixture
def own_encoder(encoder_folder, tmp_path) -> Path:
    """Return a copy of `encoder_folder` that a test may change."""
    return Path(shutil.copytree(encoder_folder, tmp_path / "encoder"))


@pytest.fixture(scope="module")
def masked_lm() -> PreTrainedModel:
    return make_masked_lm()


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "outputs" / "model"


@pytest.fixture(scope="session")
def shared_hub() -> Iterator[Hub]:
    with loopback_hub() as hub:
        yield hub


@pytest.fixture
def hub(shared_hub) -> Hub:
    """Return an empty Hub without failures."""
    for kept in (shared_hub.repositories, shared_hub.objects, shared_hub.parts, shared_hub.requests):
        kept.clear()
    shared_hub.failures.clear()
    shared_hub.user, shared_hub.part_size, shared_hub.quota = "someone", 10**9, 10**12
    return shared_hub


@pytest.fixture(scope="session")
def client(shared_hub, tmp_path_factory) -> Iterator[Client]:
    with hub_client(shared_hub, tmp_path_factory.mktemp("home")) as client:
        yield client


@pytest.fixture(scope="session")
def converted(encoder_folder, tmp_path_factory) -> Path:
    """Return a converted folder with random weights in all sublayers. All tests share it, so do not change it."""
    folder = tmp_path_factory.mktemp("converted") / "model"
    convert(encoder_folder, folder, languages=["zh", "kk-Arab", "bo"], license="mit")
    wake(folder)
    return folder


@pytest.fixture
def folder(converted, tmp_path) -> Path:
    """Return a copy of `converted` that a test may change."""
    return Path(shutil.copytree(converted, tmp_path / "model"))
