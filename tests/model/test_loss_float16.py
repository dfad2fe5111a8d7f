"""The loss in chunks in float16: as exact as the plain loss, with and without a gradient scaler."""

from contextlib import nullcontext

import pytest
import torch
from support.losses import Tensors, loss_and_gradients, plain_loss, random_inputs
from support.models import PREFIX_DECODERS, tiny_model
from torch import nn

from modeling_xlm_swcm.loss_xlm_swcm import SharedEmbedding, linear_cross_entropy


def autocast() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.float16)


def scaled_gradients(function, inputs: Tensors, scale: float, **options) -> Tensors:
    """Return the loss, and gradients as an optimizer gets them from a gradient scaler."""
    with autocast():
        loss = function(*inputs, **options)
    return [loss.detach(), *(gradient.float() / scale for gradient in torch.autograd.grad(loss * scale, inputs[:3]))]


class TestFunction:
    @pytest.mark.parametrize("weights", [torch.float32, torch.float16])
    @pytest.mark.parametrize("max_logits", [5000, 10**6])
    @pytest.mark.parametrize("count", [None, 10**6])
    @pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
    def test_it_is_as_close_to_float32_as_the_plain_loss(self, weights, max_logits, count, label_smoothing):
        options = dict(num_items_in_batch=count, label_smoothing=label_smoothing)
        exact = random_inputs(8, 40, 64, 400)
        expected = loss_and_gradients(plain_loss, exact, **options)
        inputs = [tensor.detach().to(weights).requires_grad_() for tensor in exact[:3]] + exact[3:]
        scale = 2.0**12 if count is None else 2.0**24
        plain = scaled_gradients(plain_loss, inputs, scale, **options)
        actual = scaled_gradients(linear_cross_entropy, inputs, scale, max_logits=max_logits, **options)
        for one, other, true in zip(actual, plain, expected, strict=True):
            assert (one - true).norm() <= 1.1 * (other - true).norm() + 1e-4 * true.norm()
            assert (one - true).norm() <= 0.01 * true.norm()

    def test_gradients_have_the_dtype_of_their_tensors(self):
        for weights in (torch.float32, torch.float16):
            inputs = [tensor.detach().to(weights).requires_grad_() for tensor in random_inputs()[:3]]
            for factor in (1.0, 4.0):
                gradients = torch.autograd.grad(
                    linear_cross_entropy(*inputs, random_inputs()[3], num_items_in_batch=9) * factor, inputs
                )
                assert {gradient.dtype for gradient in gradients} == {weights}

    def test_gradients_below_the_smallest_float16_number_survive_the_scale(self):
        """Divided by ten million labels, each gradient is zero in float16."""
        count, inputs = 10**7, random_inputs(8, 20, 16, 200)
        expected = loss_and_gradients(plain_loss, inputs, num_items_in_batch=count)
        assert all((gradient.half() == 0).float().mean() > 0.2 for gradient in expected[1:])
        half = [tensor.detach().half().requires_grad_() for tensor in inputs[:3]] + inputs[3:]
        actual = scaled_gradients(linear_cross_entropy, half, 2.0**26, num_items_in_batch=count)
        for one, true in zip(actual, expected, strict=True):
            assert (one - true).norm() <= 0.01 * true.norm()

    def test_sums_above_the_largest_float16_number_are_exact(self):
        """Each of 30,000 tokens adds up to 40 to the gradient of one row, before the division by their number."""
        states = torch.full((1, 30_000, 8), 40.0, requires_grad=True)
        weight, bias = torch.zeros(7, 8, requires_grad=True), torch.zeros(7, requires_grad=True)
        inputs = [states, weight, bias, torch.full((1, 30_000), 3)]
        expected = loss_and_gradients(plain_loss, inputs)
        actual = scaled_gradients(linear_cross_entropy, inputs, 1.0)
        for one, true in zip(actual, expected, strict=True):
            torch.testing.assert_close(one, true, atol=1e-6, rtol=1e-3)

    def test_an_overflow_of_the_scale_is_infinite(self):
        inputs = random_inputs(8, 20, 16, 200)
        half = [tensor.detach().half().requires_grad_() for tensor in inputs[:3]] + inputs[3:]
        for gradient in scaled_gradients(linear_cross_entropy, half, 2.0**30)[1:]:
            assert not gradient.isfinite().all()

    @pytest.mark.parametrize("value", [torch.inf, torch.nan])
    @pytest.mark.parametrize("index", [0, 1])
    def test_a_state_or_weight_that_is_not_finite_shows(self, value, index):
        inputs = random_inputs()
        inputs[index].data.flatten()[0] = value
        assert any(not tensor.isfinite().all() for tensor in scaled_gradients(linear_cross_entropy, inputs, 8.0))

    def test_without_any_label_it_is_zero_or_nan_as_in_float32(self):
        inputs = random_inputs()
        inputs[3].fill_(-100)
        assert scaled_gradients(linear_cross_entropy, inputs, 2.0)[0].isnan()
        assert not any(map(torch.any, scaled_gradients(linear_cross_entropy, inputs, 2.0, num_items_in_batch=5)))

    def test_lookups_add_to_the_gradient_of_the_loss(self):
        embedding = nn.Embedding(11, 8).half()
        tokens = torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(0))
        gradients = []
        for is_shared in (True, False):
            shared = SharedEmbedding(embedding.weight)
            states = shared.look_up(embedding, tokens) if is_shared else embedding(tokens)
            loss = linear_cross_entropy(states, shared.weight, torch.zeros(11).half(), tokens.flip(1))
            gradients.append(torch.autograd.grad(loss * 64, embedding.weight)[0])
        torch.testing.assert_close(*gradients, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("decoder", [{}, *PREFIX_DECODERS], ids=["paper", "prefix", "tied prefix"])
class TestModel:
    def train(
        self, batch, decoder: dict, logits_in_training: bool, steps: int, scale: float | None = 2.0**14
    ) -> tuple[nn.Module, list[float]]:
        """Make steps with a gradient scaler, or in float32 without a scale. Return the model and the scales."""
        dropout = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        model = tiny_model(logits_in_training=logits_in_training, **dropout, **decoder).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        scales = []
        for _ in range(steps):
            with autocast() if scale else nullcontext():
                output = model(**batch)
            assert (output.logits is not None) == logits_in_training
            scaler.scale(output.loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            scales.append(scaler.get_scale())
        return model, scales

    def test_steps_with_a_gradient_scaler_are_as_close_to_float32_as_those_of_the_plain_loss(self, batch, decoder):
        # More steps would amplify rounding errors, which differ between CPUs.
        (chunked, _), (plain, _) = (self.train(batch, decoder, logits, 2) for logits in (False, True))
        exact, _ = self.train(batch, decoder, True, 2, scale=None)
        before = dict(tiny_model(**decoder).named_parameters())
        for name, parameter in exact.named_parameters():
            moved = (parameter - before[name]).norm()
            error, other = ((model.get_parameter(name) - parameter).norm() for model in (chunked, plain))
            assert error <= 2 * other + 0.005 * moved + 1e-4, name
            assert error <= 0.03 * moved + 1e-4, name

    def test_a_step_that_overflows_is_skipped_and_the_scale_halved(self, batch, decoder):
        (chunked, scales), (plain, expected) = (
            self.train(batch, decoder, logits, 5, 2.0**34) for logits in (False, True)
        )
        assert scales == expected == [2.0**33, 2.0**32, 2.0**31, 2.0**30, 2.0**29]
        for trained in (chunked, plain):
            assert all(map(torch.equal, trained.parameters(), tiny_model(**decoder).parameters()))
