"""A tied prefix decoder reads the keys and values of the source that the encoder has computed in the same pass."""

from collections import Counter

import pytest
import torch
from support.models import CHECKPOINTING, assert_close, random_tokens, tiny_model

from modeling_xlm_swcm import XLMSWCMForConditionalGeneration


@pytest.fixture
def model() -> XLMSWCMForConditionalGeneration:
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return tiny_model(decoder_blocks=4 * ["prefix"], weight_sharing="tied", **no_dropout).train()


@pytest.fixture
def calls(model) -> Counter:
    """Count the sequences for which each encoder layer computes keys."""
    counter = Counter()
    for index, layer in enumerate(model.model.encoder.encoder.layer):
        layer.attention.self.key.register_forward_hook(lambda *_, index=index: counter.update([index]))
    return counter


def loss_and_gradients(model, source) -> list[torch.Tensor]:
    model.zero_grad()
    outputs = model(**source, labels=random_tokens(3, 7, seed=9))
    outputs.loss.backward()
    assert outputs.get("cache") is None and outputs.get("past_key_values") is None
    return [outputs.loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())]


def test_keys_of_the_source_are_computed_once_with_the_same_gradients(model, calls, source, monkeypatch):
    shared = loss_and_gradients(model, source)
    # once for the source and once for the target
    assert calls == dict.fromkeys(range(4), 2)
    calls.clear()
    monkeypatch.setattr(model.model, "_source_cache", lambda: None)
    for own, expected in zip(shared, loss_and_gradients(model, source), strict=True):
        assert_close(own, expected)
    assert calls == dict.fromkeys(range(4), 3)


def test_activation_checkpointing_computes_the_same(model, source, caplog):
    expected = loss_and_gradients(model, source)
    getattr(model, CHECKPOINTING)()
    for own, other in zip(loss_and_gradients(model, source), expected, strict=True):
        assert_close(own, other)
    assert "Caching is incompatible" not in caplog.text


def test_layers_that_are_checkpointed_from_outside_compute_the_same(model, source):
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    expected = loss_and_gradients(model, source)
    layers = model.model.encoder.encoder.layer
    for index, layer in enumerate(layers):
        layers[index] = checkpoint_wrapper(layer)
    for own, other in zip(loss_and_gradients(model, source), expected, strict=True):
        assert_close(own, other)


def test_outputs_of_the_encoder_that_are_given_are_read(model, calls, source):
    outputs = model.get_encoder()(**source)
    calls.clear()
    labels = random_tokens(3, 7, seed=9)
    loss = model(encoder_outputs=outputs, attention_mask=source["attention_mask"], labels=labels).loss
    assert_close(loss, model(**source, labels=labels).loss)
    assert calls == dict.fromkeys(range(4), 4)
