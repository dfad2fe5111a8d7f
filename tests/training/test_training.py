"""Training: loss and gradients, and models and adapters that learn."""

import itertools

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.models import (
    ATTENTIONS,
    CHECKPOINTING,
    Batch,
    assert_close,
    logits_of,
    random_tokens,
    tiny_config,
    tiny_model,
)
from torch import nn
from transformers import Trainer, TrainingArguments

from modeling_xlm_swcm import XLMSWCMForConditionalGeneration
from modeling_xlm_swcm.modeling_xlm_swcm import CUSTOM_LAYER_SOURCES


class TestLoss:
    def test_decoder_inputs_are_the_labels_behind_the_start_token(self):
        model = tiny_model(decoder_start_token_id=9)
        labels = torch.tensor([[4, 20, 21, 2], [5, 30, 2, -100], [-100, 31, -100, 2]])
        expected = torch.tensor([[9, 4, 20, 21], [9, 5, 30, 2], [9, 1, 31, 1]])
        assert torch.equal(model.prepare_decoder_input_ids_from_labels(labels), expected)

    def test_labels_alone_give_the_logits_of_their_decoder_inputs(self, model, source, batch):
        decoder_input_ids = model.prepare_decoder_input_ids_from_labels(batch["labels"])
        expected = logits_of(model, **source, decoder_input_ids=decoder_input_ids)
        assert torch.equal(logits_of(model, **batch), expected)

    def test_the_loss_compares_each_logit_row_with_the_label_at_its_place(self, model, batch):
        output = model(**batch)
        log_probabilities = output.logits.log_softmax(-1)
        taken = [
            log_probabilities[row, place, label]
            for row, labels in enumerate(batch["labels"].tolist())
            for place, label in enumerate(labels)
            if label != -100
        ]
        assert len(taken) == 19
        assert_close(output.loss, -torch.stack(taken).mean())

    def test_ignored_places_have_no_influence(self, model, batch):
        logits = model(**batch).logits
        decoder_input_ids = model.prepare_decoder_input_ids_from_labels(batch["labels"])
        labels = batch["labels"].clone()
        labels[:, 3] = -100
        loss = model(**batch | {"labels": labels}, decoder_input_ids=decoder_input_ids).loss
        assert_close(loss, nn.functional.cross_entropy(logits[labels != -100], labels[labels != -100]))

    @pytest.mark.parametrize("count", [40, torch.tensor(40)])
    def test_the_loss_is_divided_by_the_number_of_items_that_is_given(self, model, batch, count):
        assert_close(model(**batch, num_items_in_batch=count).loss, model(**batch).loss * 19 / 40)


class TestGradientAccumulation:
    """Four accumulated batches of four give the update of one batch of sixteen, for any target lengths."""

    LEARNING_RATE = 0.1

    @pytest.fixture
    def samples(self) -> list[Batch]:
        labels = random_tokens(16, 12, seed=5)
        for row in range(16):
            labels[row, 1 + 11 * row // 15 :] = -100
        sources = random_tokens(16, 6, seed=6)
        return [{"input_ids": source, "labels": label} for source, label in zip(sources, labels, strict=True)]

    def new_model(self) -> XLMSWCMForConditionalGeneration:
        return tiny_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()

    def train(self, samples, folder, batch_size, accumulation) -> XLMSWCMForConditionalGeneration:
        model = self.new_model()
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            optim="sgd",
            learning_rate=self.LEARNING_RATE,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        )
        Trainer(model, arguments, train_dataset=samples).train()
        return model

    def step_by_hand(self, samples) -> XLMSWCMForConditionalGeneration:
        model = self.new_model()
        model(**{name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}).loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= self.LEARNING_RATE * parameter.grad
        return model

    @pytest.mark.parametrize(("batch_size", "accumulation"), [(16, 1), (4, 4)])
    def test_trainer_makes_the_step_of_the_whole_batch(self, samples, tmp_path, batch_size, accumulation):
        trained = dict(self.train(samples, tmp_path, batch_size, accumulation).named_parameters())
        before = dict(self.new_model().named_parameters())
        moved = 0.0
        for name, expected in self.step_by_hand(samples).named_parameters():
            assert_close(trained[name], expected)
            moved = max(moved, (expected - before[name]).abs().max().item())
        assert moved > 1e-2


class TestTraining:
    def gradients(self, model, batch) -> Batch:
        # Dropout needs a fixed seed.
        torch.manual_seed(0)
        model.train()(**batch).loss.backward()
        return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}

    @pytest.mark.parametrize("sharing", ["init", "tied"])
    def test_activation_checkpointing_gives_the_same_gradients(self, batch, sharing):
        expected = self.gradients(tiny_model(weight_sharing=sharing), batch)
        model = tiny_model(weight_sharing=sharing)
        getattr(model, CHECKPOINTING)()
        calls = []
        layers = [*model.model.encoder.encoder.layer, *model.model.decoder.layers]
        for layer in layers:
            attention = layer.attention if hasattr(layer, "attention") else layer.cross_attn
            attention.register_forward_hook(lambda *_: calls.append(1))
        gradients = self.gradients(model, batch)
        assert len(calls) == 2 * len(layers)
        assert gradients.keys() == expected.keys()
        for name, gradient in gradients.items():
            assert_close(gradient, expected[name])

    def test_every_parameter_gets_a_gradient(self, model, batch):
        gradients = self.gradients(model, batch)
        assert gradients.keys() == dict(model.named_parameters()).keys()
        for name, gradient in gradients.items():
            # The softmax cancels a constant that is added to all keys, so this bias has no gradient.
            assert gradient.abs().max() > (0 if name.endswith(("key.bias", "k_proj.bias")) else 1e-6), name

    @pytest.mark.parametrize("attention", ATTENTIONS)
    def test_bfloat16_trains_without_nan(self, source, left_padded_target, attention):
        model = tiny_model(attn_implementation=attention)
        inputs = source | left_padded_target
        labels = inputs["decoder_input_ids"].masked_fill(inputs["decoder_attention_mask"] == 0, -100)
        expected = model(**inputs, labels=labels).loss
        model = model.to(torch.bfloat16).train()
        gradients = self.gradients(model, inputs | {"labels": labels})
        assert all(gradient.isfinite().all() for gradient in gradients.values())
        loss = model.eval()(**inputs, labels=labels).loss
        torch.testing.assert_close(loss.float(), expected, atol=0.1, rtol=0.05)

    def test_gradients_of_tied_layers_add_up(self, batch):
        tied, apart = tiny_model(weight_sharing="tied"), tiny_model(weight_sharing="init")
        apart.load_state_dict(tied.state_dict())
        tied(**batch).loss.backward()
        apart(**batch).loss.backward()
        custom = [layer for layer in apart.model.decoder.layers if hasattr(layer, "ffn1")]
        for index, layer in enumerate(custom):
            for module, parameter in itertools.product(set(CUSTOM_LAYER_SOURCES.values()), ("weight", "bias")):
                name = f"model.encoder.encoder.layer.{index}.{module}.{parameter}"
                copies = [f"{copy}.{parameter}" for copy, source in CUSTOM_LAYER_SOURCES.items() if source == module]
                assert len(copies) == 2
                expected = apart.get_parameter(name).grad + sum(layer.get_parameter(copy).grad for copy in copies)
                assert_close(tied.get_parameter(name).grad, expected)

    def test_a_trained_model_writes_its_labels(self, trained_model, pairs):
        assert trained_model(**pairs).loss < 0.1
        source = {name: pairs[name] for name in ("input_ids", "attention_mask")}
        written = trained_model.generate(**source, max_new_tokens=9, do_sample=False)
        assert torch.equal(written[:, 1:], pairs["labels"].masked_fill(pairs["labels"] == -100, 1))

    def test_layers_tied_to_the_encoder_learn_too(self, pairs):
        torch.manual_seed(0)
        config = tiny_config(weight_sharing="tied", initializer_range=0.1, hidden_dropout_prob=0.0)
        model = XLMSWCMForConditionalGeneration(config).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(100):
            optimizer.zero_grad()
            loss = model(**pairs).loss
            loss.backward()
            optimizer.step()
        assert loss < 0.2


@pytest.fixture(scope="module")
def adapted(pairs) -> tuple[nn.Module, list[float]]:
    """Return a model with trained LoRA adapters, and the losses of its training."""
    torch.manual_seed(0)
    model = get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj", "v_proj"], r=8, lora_alpha=32)).train()
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = model(**pairs).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model.eval(), losses


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT reads it
class TestLora:
    def test_the_loss_falls(self, adapted):
        _, losses = adapted
        assert losses[-1] < 0.8 * losses[0]

    def test_only_the_named_projections_of_the_decoder_are_adapted(self, adapted):
        model, _ = adapted
        modules = {name.split(".lora_")[0] for name, p in model.named_parameters() if p.requires_grad}
        assert len(modules) == 5 * 2 * 2  # layers, attentions, projections
        assert all(".decoder.layers." in name for name in modules)

    def test_a_saved_adapter_gives_the_same_logits(self, adapted, pairs, tmp_path):
        model, _ = adapted
        model.save_pretrained(tmp_path)
        loaded = tiny_model()
        loaded.load_adapter(str(tmp_path))
        assert torch.equal(logits_of(loaded.eval(), **pairs), logits_of(model, **pairs))

    def test_a_merged_adapter_gives_the_same_logits(self, adapted, pairs):
        model, _ = adapted
        expected = logits_of(model, **pairs)
        assert (expected - logits_of(tiny_model(), **pairs)).abs().max() > 1e-2
        torch.testing.assert_close(logits_of(model.merge_and_unload(), **pairs), expected, atol=1e-4, rtol=1e-4)
