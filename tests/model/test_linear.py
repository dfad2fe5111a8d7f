"""Fast linear layers and dropout equal PyTorch's modules, forward and backward."""

import contextlib
import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.models import assert_close, tiny_model, tiny_modern_model
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.activations import ACT2FN

from modeling_xlm_swcm.linear_xlm_swcm import activation_linear, byte_mask_dropout, fast_linear


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
    """Count the matrix products that oneDNN computes in this context."""

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
def test_fast_linear_equals_the_module(states, bias, products):
    linear = nn.Linear(24, 70, bias=bias).eval()
    actual = fast_linear(linear, states)
    assert products.count == 1
    assert_close(actual, linear(states))
    linear.weight = nn.Parameter(torch.randn(24, 70).T)
    assert_close(fast_linear(linear, states), linear(states))
    assert products.count == 2


@pytest.mark.parametrize(
    "change", ["gradients", "training", "hook", "replaced", "subclass", "bfloat16", "autocast", "switched off"]
)
def test_a_modified_linear_layer_is_called_as_usual(change, products):
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
        assert torch.equal(fast_linear(linear, states), linear(states))
    assert products.count == 0


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("make_model", "count", "adapted_module"),
    [
        (tiny_model, 4 * (8 + 4) + 8 + 2 + 1, "q_proj"),
        # The cross-attention calls a part of `Wqkv` without oneDNN.
        (lambda: tiny_modern_model(normal_layer_interval=2), 4 * (3 + 4) + 3 + 2 + 2, "Wi"),
    ],
    ids=["XLM-R", "ModernBERT"],
)
@torch.no_grad()
def test_a_decoding_model_uses_onednn_and_calls_adapters(source, products, make_model, count, adapted_module):
    model = make_model()
    inputs = source | {"decoder_input_ids": torch.zeros(len(source["input_ids"]), 1, dtype=torch.long)}
    before = model(**inputs).logits
    assert products.count == count
    with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
        assert_close(before, model(**inputs).logits)
    adapted = get_peft_model(model, LoraConfig(target_modules=[adapted_module], init_lora_weights=False)).eval()
    assert (adapted(**inputs).logits - before).abs().max() > 1e-3


def saved_bytes(function) -> tuple[torch.Tensor, int]:
    """Return the result of `function`, and the bytes that autograd saves for it without parameters."""
    saved = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, nn.Parameter):
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        return function(), sum(saved.values())


class TestActivationLinear:
    @pytest.fixture
    def states(self) -> torch.Tensor:
        return torch.randn(3, 5, 24, requires_grad=True)

    def gradients(self, output: torch.Tensor, states: torch.Tensor, linear: nn.Linear) -> list[torch.Tensor]:
        needed = [tensor for tensor in (states, *linear.parameters()) if tensor.requires_grad]
        return [output, *torch.autograd.grad((output * output.detach().cos()).sum(), needed)]

    @pytest.mark.parametrize("hidden_act", ["gelu", "relu", "gelu_new"])
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("frozen", [None, "states", "weight"])
    @pytest.mark.parametrize("autocast", [False, True])
    def test_it_equals_the_two_modules(self, states, hidden_act, bias, frozen, autocast):
        linear, activation = nn.Linear(24, 7, bias=bias), ACT2FN[hidden_act]
        if frozen:
            {"states": states, "weight": linear.weight}[frozen].requires_grad_(False)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            actual, expected = activation_linear(activation, linear, states), linear(activation(states))
        for one, other in zip(*(self.gradients(output, states, linear) for output in (actual, expected)), strict=True):
            assert one.dtype == other.dtype
            torch.testing.assert_close(one, other, **(dict(atol=0.05, rtol=0.05) if autocast else {}))

    def test_only_its_input_is_saved_for_backward(self, states):
        linear, gelu = nn.Linear(24, 7), ACT2FN["gelu"]
        assert saved_bytes(lambda: activation_linear(gelu, linear, states * 2))[1] == 4 * states.numel()
        assert saved_bytes(lambda: linear(gelu(states * 2)))[1] >= 2 * 4 * states.numel()

    def test_second_derivatives(self):
        linear = nn.Linear(6, 3).double()
        states = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
        function = lambda states, *_: activation_linear(ACT2FN["gelu"], linear, states)  # noqa: E731
        assert torch.autograd.gradgradcheck(function, [states, *linear.parameters()])

    def test_gradients_for_each_example(self, states):
        linear, gelu = nn.Linear(24, 7), ACT2FN["gelu"]
        each = torch.func.vmap(torch.func.grad(lambda one: activation_linear(gelu, linear, one).square().sum()))
        (expected,) = torch.autograd.grad(linear(gelu(states)).square().sum(), states)
        assert_close(each(states), expected)

    def test_hooks_are_called(self, states):
        linear = nn.Linear(24, 7)
        linear.register_forward_hook(lambda module, inputs, output: 0 * output)
        assert not activation_linear(ACT2FN["gelu"], linear, states).any()
        heard = []
        for kind in ("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"):
            for place in (0, 1):
                modules = ACT2FN["gelu"], nn.Linear(24, 7)
                getattr(modules[place], kind)(lambda *_, call=(kind, place): heard.append(call))
                activation_linear(*modules, states).sum().backward()
        assert len(set(heard)) == 6


@pytest.mark.parametrize("p", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_elements_are_dropped(p, training, dtype):
    dropout, states = nn.Dropout(p).train(training), torch.randn(4, 9, 33, dtype=dtype, requires_grad=True)
    results = []
    for function in (dropout, lambda states: byte_mask_dropout(dropout, states)):
        torch.manual_seed(0)
        output, kept = saved_bytes(lambda function=function: function(states))
        results.append([output, *torch.autograd.grad(output.square().sum(), states)])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one == 0, other == 0)
        torch.testing.assert_close(one, other)  # bfloat16 may round differently
    assert kept == (training and p > 0) * states.numel()


@pytest.mark.parametrize("replaced", ["module", "hook"])
def test_another_dropout_is_called(replaced):
    dropout = nn.Identity() if replaced == "module" else nn.Dropout(0.1)
    if replaced == "hook":
        dropout.register_forward_hook(lambda module, inputs, output: inputs[0])
    states = torch.randn(4, 9)
    assert torch.equal(byte_mask_dropout(dropout.train(), states), states)


def test_a_training_step_equals_that_of_the_modules(batch, monkeypatch):
    """The model has dropout, with the same random numbers in both steps."""
    model, results = tiny_model().train(), []
    for plain in (False, True):
        if plain:
            functions = "modeling_xlm_swcm.layers_xlm_swcm."
            monkeypatch.setattr(functions + "byte_mask_dropout", lambda dropout, states: dropout(states))
            monkeypatch.setattr(functions + "activation_linear", lambda act, linear, states: linear(act(states)))
        torch.manual_seed(0)
        copied = copy.deepcopy(model)
        loss = copied(**batch).loss
        loss.backward()
        results.append([loss.detach(), *(parameter.grad for parameter in copied.parameters())])
    for one, other in zip(*results, strict=True):
        assert_close(one, other)
