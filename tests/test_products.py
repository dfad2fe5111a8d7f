"""The fast product against `nn.Linear`, and that whatever is more than a product keeps its own way."""

import contextlib

import pytest
import torch
from conftest import assert_close, tiny_model
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from modeling_xlm_swcm.products_xlm_swcm import project


STATES = {
    "one": torch.randn(1, 1, 24),
    "some": torch.randn(8, 1, 24),
    "many": torch.randn(3, 50, 24),
    "one dimension": torch.randn(24),
    "none": torch.randn(3, 0, 24),
    "last": torch.randn(4, 9, 24)[:, -1:],
    "transposed": torch.randn(2, 24, 5).transpose(1, 2),
}


class Products(TorchDispatchMode):
    """Counts the products of oneDNN that are done inside of it."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.mkldnn._linear_pointwise.default
        return function(*args, **(kwargs or {}))


@pytest.fixture
def products():
    with Products() as products:
        yield products


@pytest.mark.parametrize("states", STATES.values(), ids=STATES)
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_the_fast_product_is_that_of_the_module(states, bias, products):
    linear = nn.Linear(24, 70, bias=bias).eval()
    actual = project(linear, states)
    assert products.count == 1
    assert_close(actual, linear(states))
    linear.weight = nn.Parameter(torch.randn(24, 70).T)
    assert_close(project(linear, states), linear(states))
    assert products.count == 2


@pytest.mark.parametrize(
    "change", ["gradients", "training", "hook", "replaced", "subclass", "bfloat16", "autocast", "switched off"]
)
def test_what_is_more_than_a_product_goes_its_own_way(change, products):
    linear, states = nn.Linear(24, 70).eval(), STATES["some"]
    context = contextlib.ExitStack()
    if change != "gradients":
        context.enter_context(torch.no_grad())
    if change == "training":
        linear.train()
    elif change == "hook":
        linear.register_forward_hook(lambda module, inputs, output: 2 * output)
    elif change == "replaced":
        linear.forward = lambda states: states[..., :1]
    elif change == "subclass":
        linear.weight = nn.Parameter(linear.weight.as_subclass(type("Quantised", (torch.Tensor,), {})))
    elif change == "bfloat16":
        linear, states = linear.bfloat16(), states.bfloat16()
    elif change == "autocast":
        context.enter_context(torch.autocast("cpu", torch.bfloat16))
    elif change == "switched off":
        context.enter_context(torch.backends.mkldnn.flags(enabled=False, allow_tf32=None))
    with context:
        assert torch.equal(project(linear, states), linear(states))
    assert products.count == 0


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@torch.no_grad()
def test_a_decoding_model_uses_it_and_an_adapter_is_heard(source, products):
    model = tiny_model()
    inputs = source | {"decoder_input_ids": torch.zeros(len(source["input_ids"]), 1, dtype=torch.long)}
    before = model(**inputs).logits
    assert products.count == 4 * (8 + 4) + 8 + 2 + 1
    with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
        assert_close(before, model(**inputs).logits)
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()
    assert (adapted(**inputs).logits - before).abs().max() > 1e-3
