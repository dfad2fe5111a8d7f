import shutil
from pathlib import Path

import pytest
import torch
from encoders import make_encoder, save_encoder, xlm_roberta_tokenizer
from transformers import XLMRobertaForMaskedLM

from modeling_xlm_swcm import XLMSWCMConfig, XLMSWCMForConditionalGeneration


def tiny_config(**options) -> XLMSWCMConfig:
    """A decoder of five layers (custom, custom, normal, custom, custom) on an encoder of four."""
    sizes = dict(vocab_size=99, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=37)
    return XLMSWCMConfig(**(sizes | dict(max_position_embeddings=66, normal_layer_interval=2) | options))


def tiny_model(**options) -> XLMSWCMForConditionalGeneration:
    torch.manual_seed(0)
    # far larger weights than at initialisation, so that a wrong mask or a lost layer moves the outputs
    return XLMSWCMForConditionalGeneration(tiny_config(initializer_range=0.3, **options)).eval()


@pytest.fixture
def model() -> XLMSWCMForConditionalGeneration:
    return tiny_model()


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Three sources of unequal length, right-padded, with labels."""
    torch.manual_seed(1)
    input_ids = torch.randint(4, 99, (3, 9))
    attention_mask = torch.ones_like(input_ids)
    for row, length in enumerate((9, 6, 4)):
        input_ids[row, length:] = 1
        attention_mask[row, length:] = 0
    labels = torch.randint(4, 99, (3, 7))
    labels[1, 5:] = -100
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory) -> Path:
    """A masked LM of four layers as a user has it on disk; shared by all tests, so nothing may change it."""
    tokenizer = xlm_roberta_tokenizer()
    return save_encoder(tmp_path_factory.mktemp("xlm-r"), make_encoder(XLMRobertaForMaskedLM, tokenizer), tokenizer)


@pytest.fixture
def own_encoder(encoder_folder, tmp_path) -> Path:
    """A copy of `encoder_folder` to change."""
    return Path(shutil.copytree(encoder_folder, tmp_path / "encoder"))
