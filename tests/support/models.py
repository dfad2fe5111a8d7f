"""Tiny models, and batches that they learn."""

import itertools
from importlib.metadata import version

import pytest
import torch
from packaging.version import Version
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel
from transformers.integrations.peft import MIN_PEFT_VERSION

from modeling_xlm_swcm import (
    XLMSWCMConfig,
    XLMSWCMForConditionalGeneration,
    XLMSWCMModernConfig,
    XLMSWCMModernForConditionalGeneration,
    XLMSWCMTokenizer,
)


ATTENTIONS = ("eager", "sdpa")
SHARINGS = [
    {"weight_sharing": sharing, "tie_word_embeddings": tie}
    for sharing, tie in itertools.product(("init", "tied"), (True, False))
]
PREFIX_DECODERS = [
    {"decoder_blocks": 4 * ["prefix"], "weight_sharing": sharing, "tie_word_embeddings": True}
    for sharing in ("init", "tied")
]
# The method has another name in Transformers before 5.23.
CHECKPOINTING = (
    "activation_checkpointing_enable"
    if hasattr(PreTrainedModel, "activation_checkpointing_enable")
    else "gradient_checkpointing_enable"
)
QUICK_TO_LEARN = {"initializer_range": 0.1, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
HEAD_TRANSFORM = {"weight_sharing": "init", "tie_word_embeddings": True, "lm_head_transform": True}
Batch = dict[str, torch.Tensor]
# `add_adapter` of Transformers 5.24 needs PEFT 0.22, which is not released yet.
wants_peft = pytest.mark.skipif(
    Version(version("peft")) < Version(MIN_PEFT_VERSION),
    reason=f"model.add_adapter of this Transformers needs peft>={MIN_PEFT_VERSION}",
)


def tiny_config(**options) -> XLMSWCMConfig:
    """Return a config with four encoder layers and five decoder layers: custom, custom, normal, custom, custom."""
    sizes = dict(vocab_size=99, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=37)
    return XLMSWCMConfig(**(sizes | dict(max_position_embeddings=66, normal_layer_interval=2) | options))


def tiny_modern_config(**options) -> XLMSWCMModernConfig:
    """Return a config with two global and two local layers, which read four tokens on each side."""
    sizes = dict(vocab_size=99, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=37)
    ids = dict(pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=0)
    return XLMSWCMModernConfig(**(sizes | ids | dict(max_position_embeddings=66, local_attention=8) | options))


def tiny_modern_model(**options) -> XLMSWCMModernForConditionalGeneration:
    torch.manual_seed(0)
    config = tiny_modern_config(initializer_range=0.3, **options)
    return enlarge(XLMSWCMModernForConditionalGeneration(config))


def tiny_model(**options) -> XLMSWCMForConditionalGeneration:
    torch.manual_seed(0)
    return enlarge(XLMSWCMForConditionalGeneration(tiny_config(initializer_range=0.3, **options)))


def enlarge(model: PreTrainedModel) -> PreTrainedModel:
    """Make weights far larger than at initialisation, so that a wrong mask or a lost layer changes the outputs."""
    model.eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:  # biases and LayerNorms, which start as zeros and ones
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        elif name.endswith((".out_proj.weight", ".fc2.weight", ".output.dense.weight", ".Wo.weight")):
            # With large outputs of the sublayers, all tokens would have similar states after some layers.
            parameter.data.mul_(0.25)
    return model


def assert_close(actual: torch.Tensor, expected: torch.Tensor):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def logits_of(model: XLMSWCMForConditionalGeneration, **inputs) -> torch.Tensor:
    return model(**inputs).logits


def random_tokens(*shape: int, seed: int = 3) -> torch.Tensor:
    return torch.randint(4, 99, shape, generator=torch.Generator().manual_seed(seed))


def learn(config: XLMSWCMConfig, batch: Batch) -> XLMSWCMForConditionalGeneration:
    """Return a new model that overfits on `batch`."""
    torch.manual_seed(0)
    for name, value in QUICK_TO_LEARN.items():
        setattr(config, name, value)
    return teach(AutoModelForSeq2SeqLM.from_config(config), batch)


def teach(model: XLMSWCMForConditionalGeneration, batch: Batch) -> XLMSWCMForConditionalGeneration:
    """Train a model on a batch, because a model with random weights repeats one token."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return model.eval()


def next_texts(tokenizer: XLMSWCMTokenizer, texts: list[str], languages: list[str]) -> Batch:
    """Pair each text with the next text in the first language, the text after it in the second language, and so on."""
    labels = []
    for shift, language in enumerate(languages, 1):
        tokenizer.tgt_lang = language
        labels += tokenizer(text_target=texts[shift:] + texts[:shift])["input_ids"]
    labels = torch.nn.utils.rnn.pad_sequence(list(map(torch.tensor, labels)), batch_first=True, padding_value=-100)
    return {**tokenizer(texts * len(languages), padding=True, return_tensors="pt"), "labels": labels}
