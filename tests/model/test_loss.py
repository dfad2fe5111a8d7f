"""The loss in chunks equals the plain loss in value and gradients, and never holds the logits."""

import contextlib
import threading
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from support.losses import Tensors, assert_same, loss_and_gradients, plain_loss, random_inputs
from support.models import (
    CHECKPOINTING,
    HEAD_TRANSFORM,
    PREFIX_DECODERS,
    SHARINGS,
    Batch,
    assert_close,
    logits_of,
    tiny_model,
)
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

from modeling_xlm_swcm.loss_xlm_swcm import SharedEmbedding, linear_cross_entropy


# PEFT reads the deprecated attribute.
PEFT = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


class Sizes(TorchDispatchMode):
    """Record the number of elements of each new tensor in this context, without views."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        given = {tensor.untyped_storage().data_ptr() for tensor in self.tensors((args, kwargs))}
        self.seen |= {t.numel() for t in self.tensors(output) if t.untyped_storage().data_ptr() not in given}
        return output

    def tensors(self, tree) -> Tensors:
        return [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if torch.is_tensor(leaf)]


@contextlib.contextmanager
def computed_sizes():
    with Sizes() as sizes:
        yield sizes.seen


def count_flops() -> FlopCounterMode:
    def in_place(shape, first, second, out_shape=None, **kwargs) -> int:
        return 2 * first[0] * first[1] * second[1]

    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: in_place})


class TestFunction:
    @given(
        batch=st.integers(1, 4),
        length=st.integers(1, 9),
        vocab=st.integers(2, 60),
        ignored=st.sampled_from([0.0, 0.3, 0.9]),
        max_logits=st.integers(1, 600),
        label_smoothing=st.sampled_from([0.0, 0.1, 0.7]),
        num_items_in_batch=st.sampled_from([None, 3, torch.tensor(40), torch.tensor([5.0])]),
        factor=st.sampled_from([1.0, 0.25]),
        seed=st.integers(0, 99),
    )
    @settings(deadline=None)
    def test_value_and_gradients_are_those_of_the_plain_loss(
        self, batch, length, vocab, ignored, max_logits, label_smoothing, num_items_in_batch, factor, seed
    ):
        inputs = random_inputs(batch, length, vocab=vocab, ignored=ignored, seed=seed)
        options = dict(label_smoothing=label_smoothing, num_items_in_batch=num_items_in_batch)
        actual = loss_and_gradients(linear_cross_entropy, inputs, factor, max_logits=max_logits, **options)
        assert_same(actual, loss_and_gradients(plain_loss, inputs, factor, **options))

    def test_gradients_are_those_of_finite_differences(self):
        *tensors, labels = random_inputs(2, 3, 4, 7, dtype=torch.float64)
        options = dict(label_smoothing=0.2, max_logits=15)
        assert torch.autograd.gradcheck(lambda *inputs: linear_cross_entropy(*inputs, labels, **options), tensors)

    @pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
    def test_smoothing_is_that_of_the_trainer(self, label_smoothing):
        *tensors, labels = random_inputs()
        log_probabilities = nn.functional.linear(*tensors).log_softmax(-1)[labels != -100]
        taken = log_probabilities.gather(1, labels[labels != -100][:, None]).mean()
        expected = -(1 - label_smoothing) * taken - label_smoothing * log_probabilities.mean()
        assert_close(linear_cross_entropy(*tensors, labels, label_smoothing=label_smoothing), expected)

    @pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (1, 2), (0, 1), (0, 1, 2)])
    def test_frozen_tensors_get_no_gradient_and_cost_none(self, frozen):
        inputs = random_inputs(vocab=50, size=8)
        for index in frozen:
            inputs[index].requires_grad_(False)
        with computed_sizes() as sizes:
            loss = linear_cross_entropy(*inputs, max_logits=100)
        assert (400 in sizes) == (1 not in frozen)
        if len(frozen) < 3:
            expected = loss_and_gradients(plain_loss, inputs)
            assert_same(loss_and_gradients(linear_cross_entropy, inputs, max_logits=100), expected)
        assert loss.requires_grad == (len(frozen) < 3)

    def test_no_gradient_is_computed_without_grad_mode(self):
        inputs = random_inputs(vocab=50, size=8)
        with computed_sizes() as sizes, torch.no_grad():
            loss = linear_cross_entropy(*inputs, max_logits=100)
        assert 400 not in sizes and not loss.requires_grad
        assert_close(loss, plain_loss(*inputs))

    def test_the_logits_are_never_held(self):
        inputs = random_inputs(8, 20, size=4, vocab=200, ignored=0.0)
        with computed_sizes() as sizes:
            loss_and_gradients(linear_cross_entropy, inputs, max_logits=1990)
        assert max(sizes) == 9 * 200
        with computed_sizes() as sizes:
            loss_and_gradients(plain_loss, inputs)
        assert max(sizes) == 8 * 20 * 200

    def test_no_product_is_done_twice(self):
        inputs = random_inputs(8, 20, ignored=0.0)
        counted = []
        for function in (plain_loss, linear_cross_entropy):
            with count_flops() as counter:
                loss_and_gradients(function, inputs, max_logits=500)
            counted.append(counter.get_total_flops())
        assert counted[0] == counted[1] == 3 * 2 * 160 * 8 * 37

    def test_ignored_tokens_are_left_out_of_the_products(self):
        inputs = random_inputs(8, 20, ignored=0.5)
        with count_flops() as counter:
            loss_and_gradients(linear_cross_entropy, inputs)
        assert counter.get_total_flops() == 3 * 2 * (inputs[3] != -100).sum() * 8 * 37

    def test_without_any_label_it_is_nan_as_the_plain_loss_is(self):
        inputs = random_inputs()
        inputs[3].fill_(-100)
        actual = loss_and_gradients(linear_cross_entropy, inputs)
        assert actual[0].isnan() and plain_loss(*inputs).isnan()
        assert not loss_and_gradients(linear_cross_entropy, inputs, num_items_in_batch=5)[0]

    def test_compiled_in_one_graph(self):
        compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend="aot_eager")
        options = dict(label_smoothing=0.2, max_logits=150, num_items_in_batch=torch.tensor(9))
        for factor in (1.0, 3.0):
            inputs = random_inputs()
            actual = loss_and_gradients(compiled, inputs, factor, **options)
            assert_same(actual, loss_and_gradients(plain_loss, inputs, factor, **options))

    @pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
    def test_autocast_is_as_close_to_float32_as_the_plain_loss(self, weights):
        exact = random_inputs(8, 20, 64, 400)
        expected = loss_and_gradients(plain_loss, exact)
        inputs = [tensor.detach().to(weights).requires_grad_() for tensor in exact[:3]] + exact[3:]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            plain = loss_and_gradients(plain_loss, inputs)
            actual = loss_and_gradients(linear_cross_entropy, inputs, max_logits=5000)
        assert actual[0].dtype == torch.float32
        for one, other, true in zip(actual, plain, expected, strict=True):
            assert one.dtype == other.dtype
            assert (one - true).norm() <= 1.1 * (other - true).norm() + 1e-3 * true.norm()

    def test_autocast_leaves_no_copy_of_the_weight_behind(self):
        """Autocast would reuse a copy that was made without gradients in later products of the same context."""
        *tensors, labels = random_inputs()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            linear_cross_entropy(*tensors, labels)
            assert nn.functional.linear(tensors[0].detach(), *tensors[1:]).sum().requires_grad

    def test_a_second_backward_gives_the_same_gradients(self):
        *tensors, labels = random_inputs()
        loss = linear_cross_entropy(*tensors, labels)
        first = [gradient.clone() for gradient in torch.autograd.grad(loss, tensors, retain_graph=True)]
        # Later gradients are added in place to the `grad` fields.
        loss.backward()
        (3 * linear_cross_entropy(*tensors, labels)).backward()
        assert_same([tensor.grad for tensor in tensors], [4 * gradient for gradient in first])

    @pytest.mark.parametrize("label", [-1, 10**6])
    def test_a_label_that_is_no_word_is_an_error(self, label):
        *tensors, labels = random_inputs()
        labels[-1] = label
        with pytest.raises(RuntimeError, match="out of bounds"):
            linear_cross_entropy(*tensors, labels)

    def test_second_derivatives_are_refused(self):
        *tensors, labels = random_inputs()
        with pytest.raises(RuntimeError, match="no second derivative. Remove create_graph, or set config.logits_"):
            torch.autograd.grad(linear_cross_entropy(*tensors, labels), tensors, create_graph=True)


class TestSharedEmbedding:
    """A matrix with two lookups and one product, as in a model."""

    @pytest.fixture
    def embedding(self) -> nn.Embedding:
        return nn.Embedding(11, 8, padding_idx=1)

    def loss(self, embedding: nn.Embedding, shared: bool = True) -> torch.Tensor:
        """Return the loss of a batch with many repeated tokens, and some padding."""
        source, target = torch.randint(11, (2, 4, 6), generator=torch.Generator().manual_seed(0))
        shared_embedding = SharedEmbedding(embedding.weight)
        look_up = embedding
        if shared:
            assert shared_embedding.supports(embedding)
            look_up = partial(shared_embedding.look_up, embedding)
        states = look_up(source).tanh() * look_up(target).flip(1)
        return linear_cross_entropy(states, shared_embedding.weight, torch.zeros(11), target, max_logits=90)

    @pytest.mark.parametrize("factor", [1.0, 3.0])
    @pytest.mark.parametrize("padding_idx", [None, 1])
    @pytest.mark.parametrize("hook", [False, True])
    def test_value_and_gradient_are_those_of_separate_uses(self, embedding, factor, padding_idx, hook):
        embedding.padding_idx = padding_idx
        if hook:
            embedding.register_forward_hook(lambda module, inputs, output: 2 * output)
        losses = [self.loss(embedding), self.loss(embedding, shared=False)]
        assert_same(*([loss, torch.autograd.grad(factor * loss, embedding.weight)[0]] for loss in losses))

    @pytest.mark.parametrize("shared", [True, False])
    def test_backward_makes_no_tensor_of_the_size_of_the_matrix(self, embedding, shared):
        loss = self.loss(embedding, shared)
        with computed_sizes() as sizes:
            loss.backward()
        assert (11 * 8 in sizes) == (not shared)

    def test_gradients_accumulate_over_several_losses(self, embedding):
        self.loss(embedding).backward()
        once = embedding.weight.grad.clone()
        self.loss(embedding).backward()
        assert_close(embedding.weight.grad, 2 * once)

    def test_a_second_backward_is_refused(self, embedding):
        loss = self.loss(embedding)
        loss.backward(retain_graph=True)
        with pytest.raises(RuntimeError, match="only once for the loss in chunks. Remove retain_graph, or set"):
            loss.backward()

    @pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
    def test_every_kind_of_hook_is_called_and_the_module_stays_as_it_was(self, embedding):
        called, before = [], set(vars(embedding))
        for kind in ("forward_pre_hook", "forward_hook", "full_backward_pre_hook", "full_backward_hook"):
            getattr(embedding, f"register_{kind}")(lambda *_, kind=kind: called.append(kind))
        self.loss(embedding).backward()
        assert len(called) == 2 * len(set(called)) == 8
        assert set(vars(embedding)) == before

    @pytest.mark.parametrize(
        "change",
        [
            lambda embedding: setattr(embedding, "forward", lambda tokens: tokens),
            lambda embedding: setattr(embedding, "weight", nn.Parameter(embedding.weight.detach())),
            lambda embedding: setattr(embedding, "max_norm", 1.0),
            lambda embedding: setattr(embedding, "scale_grad_by_freq", True),
            lambda embedding: setattr(embedding, "sparse", True),
            lambda embedding: setattr(embedding, "__class__", type("Adapted", (nn.Embedding,), {})),
        ],
        ids=["forward", "weight", "norm", "scale", "sparse", "subclass"],
    )
    def test_a_modified_embedding_is_not_supported(self, embedding, change):
        shared_embedding = SharedEmbedding(embedding.weight)
        assert shared_embedding.supports(embedding)
        change(embedding)
        assert not shared_embedding.supports(embedding)


class TestModel:
    @pytest.fixture
    def long_batch(self) -> Batch:
        """Return a batch with logits that are larger than any other tensor. Some labels are -100."""
        *_, labels = random_inputs(8, 40, vocab=99)
        return {"input_ids": labels.clamp(min=4), "labels": labels}

    def train_step(self, batch, checkpointing=False, autocast=False, compiled=False, **fields) -> tuple[Tensors, bool]:
        """Return loss and gradients of a model without dropout, and whether it returned logits."""
        model = tiny_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **fields).train()
        if checkpointing:
            getattr(model, CHECKPOINTING)()
        forward = torch.compile(model, backend="aot_eager") if compiled else model
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            output = forward(**batch)
        output.loss.backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
        return [output.loss.detach(), *gradients], output.logits is not None

    @pytest.mark.parametrize("sharing", [*SHARINGS, *PREFIX_DECODERS, HEAD_TRANSFORM], ids=str)
    @pytest.mark.parametrize("checkpointing", [False, True])
    @pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "num_items_in_batch": 100}], ids=str)
    def test_a_step_is_that_of_the_plain_loss(self, long_batch, sharing, checkpointing, options, monkeypatch):
        monkeypatch.setattr(linear_cross_entropy, "__defaults__", (None, 0.0, 1000))
        expected, logits = self.train_step(long_batch | options, logits_in_training=True, **sharing)
        assert logits
        actual, logits = self.train_step(long_batch | options, checkpointing, **sharing)
        assert not logits
        assert_same(actual, expected)

    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("given", [True, False], ids=["mask", "no mask"])
    def test_a_step_with_padding_is_that_of_the_plain_loss(self, source, target, side, given):
        """Both losses count positions from the tokens, and give padding no gradient."""
        target[0, 4:] = 1
        batch = {"input_ids": source["input_ids"], "labels": target, "decoder_input_ids": target.clone()}
        if side == "left":
            batch = {name: tokens.flip(1) for name, tokens in batch.items()}
        if given:
            batch |= {"attention_mask": batch["input_ids"].ne(1), "decoder_attention_mask": target.ne(5)}
        expected, _ = self.train_step(batch, logits_in_training=True)
        actual, logits = self.train_step(batch)
        assert not logits
        assert_same(actual, expected)

    @pytest.mark.parametrize("checkpointing", [False, True])
    @pytest.mark.parametrize("resized", [False, True])
    def test_backward_makes_one_gradient_of_the_word_embeddings(self, long_batch, checkpointing, resized):
        model = tiny_model(vocab_size=99 if resized else 101).train()
        if resized:
            model.resize_token_embeddings(101)
        if checkpointing:
            getattr(model, CHECKPOINTING)()
        loss = model(**long_batch).loss
        with computed_sizes() as sizes:
            loss.backward()
        assert 101 * 32 not in sizes
        assert model.lm_head.weight.grad.shape == (101, 32)

    def test_threads_that_share_a_model_get_the_gradients_of_their_own_batches(self, long_batch):
        """Each forward waits for the other one between its encoder and its decoder."""
        model = tiny_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
        batches = [{name: tokens[rows] for name, tokens in long_batch.items()} for rows in (slice(3), slice(3, 8))]
        parameters, results = list(model.parameters()), [None, None]

        def step(index: int):
            results[index] = torch.autograd.grad(model(**batches[index]).loss, parameters)

        expected = []
        for index in (0, 1):
            step(index)
            expected.append(results[index])
        results[:] = None, None
        barrier = threading.Barrier(2, timeout=60)

        def wait_for_the_other_thread(*_):
            barrier.wait()

        model.model.encoder.register_forward_hook(wait_for_the_other_thread)
        threads = [threading.Thread(target=step, args=(index,)) for index in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for actual, wanted in zip(results, expected, strict=True):
            assert_same(actual, wanted)

    @pytest.mark.parametrize("change", ["hook", "inputs_embeds", "encoder_outputs", "frozen"])
    def test_other_ways_to_the_embeddings_are_those_of_the_plain_loss(self, long_batch, change):
        results = []
        for logits_in_training in (True, False):
            model = tiny_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
            model.config.logits_in_training, inputs = logits_in_training, dict(long_batch)
            if change == "hook":
                model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: 2 * output)
            elif change == "inputs_embeds":
                inputs["inputs_embeds"] = 2 * model.get_input_embeddings()(inputs.pop("input_ids"))
            elif change == "encoder_outputs":
                inputs["encoder_outputs"] = (2 * model.model.encoder(inputs.pop("input_ids")).last_hidden_state,)
            else:
                model.lm_head.weight.requires_grad_(False)
            loss = model(**inputs).loss
            loss.backward()
            results.append([loss.detach(), *(p.grad for p in model.parameters() if p.requires_grad)])
        assert_same(*results)

    def test_a_compiled_step_is_that_of_the_plain_loss(self, long_batch):
        expected, _ = self.train_step(long_batch, logits_in_training=True)
        actual, logits = self.train_step(long_batch, compiled=True)
        assert not logits
        assert_same(actual, expected)

    def test_a_step_in_autocast_is_close_to_float32(self, long_batch):
        expected, _ = self.train_step(long_batch)
        actual, logits = self.train_step(long_batch, autocast=True)
        assert not logits
        for one, other in zip(actual, expected, strict=True):
            assert (one - other).norm() <= 0.05 * other.norm() + 1e-3

    def test_the_logits_are_never_held(self, long_batch, monkeypatch):
        monkeypatch.setattr(linear_cross_entropy, "__defaults__", (None, 0.0, 1000))
        with computed_sizes() as sizes:
            self.train_step(long_batch, hidden_size=16, intermediate_size=16)
        assert max(sizes) < 8 * 40 * 99 // 2

    def test_there_are_logits_in_evaluation_and_without_labels(self, model, batch, source, target):
        expected = logits_of(model, **batch)
        assert expected.shape == (3, 7, 99)
        model.train()
        assert model(**source, decoder_input_ids=target).logits.shape == (3, 7, 99)
        assert model(**batch).logits is None
        assert len(model(**batch, return_dict=False)[0].shape) == 0

    def test_smoothing_with_logits_is_that_without(self, batch):
        model = tiny_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        with_logits = model(**batch, label_smoothing=0.3).loss
        assert_close(model.train()(**batch, label_smoothing=0.3).loss, with_logits)
        assert (with_logits - model(**batch).loss).abs() > 1e-2

    @PEFT
    @pytest.mark.parametrize("change", ["hook", "loss", "module"])
    def test_a_modified_head_or_loss_returns_logits(self, model, batch, change):
        model.train()
        if change == "hook":
            model.lm_head.register_forward_hook(lambda module, inputs, output: 0 * output)
        elif change == "loss":
            model.loss_function = lambda logits, labels, **kwargs: logits.sum()
        else:
            model.config.tie_word_embeddings = False
            model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])).train()
        output = model(**batch)
        assert output.logits.shape == (3, 7, 99)
        if change == "hook":
            assert_close(output.loss, torch.tensor(99.0).log())
        if change == "loss":
            assert_close(output.loss, output.logits.sum())

    @PEFT
    def test_lora_computes_no_gradient_of_the_frozen_matrix(self, batch):
        model = get_peft_model(tiny_model(vocab_size=101), LoraConfig(target_modules=["q_proj"], r=2)).train()
        with computed_sizes() as sizes:
            output = model(**batch)
            output.loss.backward()
        assert output.logits is None and 101 * 32 not in sizes
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


class TestTrainer:
    """`Seq2SeqTrainer` with an unchanged model."""

    def make(self, folder, batch, **options) -> Seq2SeqTrainer:
        rows = [{name: value[row] for name, value in batch.items()} for row in range(3)]
        settings = dict(max_steps=1, use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no")
        arguments = Seq2SeqTrainingArguments(folder, **settings, **options)
        metrics = lambda prediction: {"shape": list(prediction.predictions[0].shape)}  # noqa: E731
        return Seq2SeqTrainer(tiny_model(), arguments, train_dataset=rows, eval_dataset=rows, compute_metrics=metrics)

    def test_metrics_get_the_logits(self, batch, tmp_path):
        trainer = self.make(tmp_path, batch)
        trainer.train()
        assert trainer.evaluate()["eval_shape"] == [3, 7, 99]
        assert trainer.predict(trainer.eval_dataset).predictions[0].shape == (3, 7, 99)


def test_a_frozen_encoder_takes_no_gradient_away_from_the_output_projection(batch):
    """Lookups under `no_grad` are not shared."""
    gradients = []
    for logits_in_training in (False, True):
        dropout = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        model = tiny_model(logits_in_training=logits_in_training, **dropout).train()
        model.model.encoder.forward = torch.no_grad()(model.model.encoder.forward)
        model(**batch).loss.backward()
        gradients.append(model.lm_head.weight.grad)
    assert_close(*gradients)
