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
    model = XLMSWCMForConditionalGeneration(tiny_config(initializer_range=0.3, **options)).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:  # biases and LayerNorms, which start as zeros and ones
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        elif name.endswith((".out_proj.weight", ".fc2.weight", ".output.dense.weight")):
            # what a sublayer adds may not drown its input, or all tokens look alike after some layers
            parameter.data.mul_(0.25)
    return model


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
def pairs() -> dict[str, torch.Tensor]:
    """Eight right-padded sources, and as labels `<tag> ... </s>` of unequal length; the tags are tokens 4 to 7."""
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
    """A model that knows `pairs` by heart: random weights write one token for ever, this one writes real sequences."""
    torch.manual_seed(0)
    config = tiny_config(initializer_range=0.1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = XLMSWCMForConditionalGeneration(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        model(**pairs).loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory) -> Path:
    """A masked LM of four layers as a user has it on disk; shared by all tests, so nothing may change it."""
    tokenizer = xlm_roberta_tokenizer()
    return save_encoder(tmp_path_factory.mktemp("xlm-r"), make_encoder(XLMRobertaForMaskedLM, tokenizer), tokenizer)


@pytest.fixture
def own_encoder(encoder_folder, tmp_path) -> Path:
    """A copy of `encoder_folder` to change."""
    return Path(shutil.copytree(encoder_folder, tmp_path / "encoder"))
