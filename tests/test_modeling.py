import itertools
from pathlib import Path

import pytest
import torch
from conftest import tiny_config, tiny_model
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, AutoModelForSeq2SeqLM, Trainer, TrainingArguments
from transformers.distributed import DistributedConfig
from transformers.masking_utils import create_bidirectional_mask

from modeling_xlm_swcm import XLMSWCMForConditionalGeneration, XLMSWCMModel
from modeling_xlm_swcm.modeling_xlm_swcm import CUSTOM_LAYER_SOURCES


ATTENTIONS = ("eager", "sdpa")
SHARINGS = [
    {"weight_sharing": sharing, "tie_word_embeddings": tie}
    for sharing, tie in itertools.product(("init", "tied"), (True, False))
]

Batch = dict[str, torch.Tensor]


def assert_close(actual: torch.Tensor, expected: torch.Tensor):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def logits_of(model: XLMSWCMForConditionalGeneration, **inputs) -> torch.Tensor:
    return model(**inputs).logits


def random_tokens(*shape: int, seed: int = 3) -> torch.Tensor:
    return torch.randint(4, 99, shape, generator=torch.Generator().manual_seed(seed))


def pad(tokens: torch.Tensor, length: int, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens with padding to `length` on one side, and their mask."""
    amount = (length - tokens.shape[1], 0) if side == "left" else (0, length - tokens.shape[1])
    return nn.functional.pad(tokens, amount, value=1), nn.functional.pad(torch.ones_like(tokens), amount)


def tensors_of(folder: Path) -> Batch:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.fixture
def source(batch) -> Batch:
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}


@pytest.fixture
def target() -> torch.Tensor:
    return random_tokens(3, 7)


@pytest.fixture
def left_padded_target(target) -> Batch:
    """Targets of 7, 5 and 2 tokens."""
    mask = torch.ones_like(target)
    for row, padding in enumerate((0, 2, 5)):
        mask[row, :padding] = 0
    return {"decoder_input_ids": target.masked_fill(mask == 0, 1), "decoder_attention_mask": mask}


class TestCopiedSublayers:
    """A sublayer that holds an encoder layer's weights computes what it computed in the encoder."""

    @pytest.fixture(params=ATTENTIONS)
    def layers(self, request) -> tuple[nn.Module, nn.Module]:
        model = tiny_model(attn_implementation=request.param).model
        encoder_layer, decoder_layer = model.encoder.encoder.layer[1], model.decoder.layers[1]
        for target, source in CUSTOM_LAYER_SOURCES.items():
            weights = encoder_layer.get_submodule(source).state_dict()
            decoder_layer.get_submodule(target).load_state_dict(weights)
        return encoder_layer, decoder_layer

    @pytest.fixture
    def states(self) -> torch.Tensor:
        return torch.randn(3, 9, 32, generator=torch.Generator().manual_seed(4))

    @pytest.fixture
    def mask(self, layers, states, batch) -> torch.Tensor:
        config = layers[1].cross_attn.config
        return create_bidirectional_mask(config, states, batch["attention_mask"])

    @torch.no_grad()
    def test_cross_attention_to_itself_is_the_encoders_attention(self, layers, states):
        encoder_layer, decoder_layer = layers
        actual, _ = decoder_layer.cross_attn(states, key_value_states=states)
        assert torch.equal(actual, encoder_layer.attention(states)[0])

    @torch.no_grad()
    @pytest.mark.parametrize("sublayer", ["self_attn", "cross_attn"])
    def test_attention_under_a_mask_is_the_encoders_attention(self, layers, states, mask, sublayer):
        encoder_layer, decoder_layer = layers
        key_value_states = states if sublayer == "cross_attn" else None
        actual, _ = getattr(decoder_layer, sublayer)(states, mask, key_value_states)
        assert torch.equal(actual, encoder_layer.attention(states, mask)[0])

    @torch.no_grad()
    @pytest.mark.parametrize("sublayer", ["ffn1", "ffn2"])
    def test_a_feed_forward_network_is_the_encoders(self, layers, states, sublayer):
        encoder_layer, decoder_layer = layers
        expected = encoder_layer.output(encoder_layer.intermediate(states), states)
        assert torch.equal(getattr(decoder_layer, sublayer)(states), expected)

    @torch.no_grad()
    def test_a_custom_layer_that_reads_its_own_middle_is_the_encoder_layer_twice(self, layers, states, mask):
        encoder_layer, decoder_layer = layers
        middle = encoder_layer(states, mask)
        assert torch.equal(decoder_layer(states, mask, middle, mask), encoder_layer(middle, mask))


class TestLayers:
    """The order of sublayers in the two kinds of decoder layer."""

    @pytest.fixture
    def inputs(self) -> tuple[torch.Tensor, torch.Tensor]:
        target, source = torch.randn(2, 3, 9, 32, generator=torch.Generator().manual_seed(4))
        return target, source

    @torch.no_grad()
    def test_a_custom_layer_is_self_attention_ffn1_cross_attention_ffn2(self, model, inputs):
        layer, (target, source) = model.model.decoder.layers[1], inputs
        middle = layer.ffn1(layer.self_attn(target)[0])
        assert torch.equal(layer(target, None, source), layer.ffn2(layer.cross_attn(middle, None, source)[0]))

    @torch.no_grad()
    def test_a_normal_layer_is_self_attention_cross_attention_ffn(self, model, inputs):
        layer, (target, source) = model.model.decoder.layers[2], inputs
        middle, _ = layer.self_attn(target)
        assert torch.equal(layer(target, None, source), layer.ffn(layer.cross_attn(middle, None, source)[0]))

    def test_the_layers_stand_in_the_order_of_the_blocks(self):
        model = tiny_model(decoder_blocks=["normal", "custom", "custom", "normal"])
        kinds = ["custom" if hasattr(layer, "ffn1") else "normal" for layer in model.model.decoder.layers]
        assert kinds == model.config.decoder_blocks


class TestCache:
    @torch.no_grad()
    def cached_logits(self, model, chunks, source, decoder_input_ids, decoder_attention_mask=None) -> torch.Tensor:
        logits, cache, start = [], None, 0
        for length in chunks:
            stop = start + length
            output = model(
                **source,
                decoder_input_ids=decoder_input_ids[:, start:stop],
                decoder_attention_mask=None if decoder_attention_mask is None else decoder_attention_mask[:, :stop],
                past_key_values=cache,
                use_cache=True,
            )
            logits.append(output.logits)
            cache, start = output.past_key_values, stop
        assert start == decoder_input_ids.shape[1]
        return torch.cat(logits, dim=1)

    @pytest.fixture(params=[[1] * 7, [3, 1, 2, 1], [7], [6, 1]], ids=str)
    def chunks(self, request) -> list[int]:
        return request.param

    @pytest.mark.parametrize("attention", ATTENTIONS)
    def test_logits_with_a_cache_equal_those_without(self, attention, chunks, source, target):
        model = tiny_model(attn_implementation=attention)
        cached = self.cached_logits(model, chunks, source, target)
        assert_close(cached, logits_of(model, **source, decoder_input_ids=target))

    @pytest.mark.parametrize("attention", ATTENTIONS)
    def test_logits_of_left_padded_targets_with_a_cache_equal_those_without(
        self, attention, chunks, source, left_padded_target
    ):
        model = tiny_model(attn_implementation=attention)
        cached = self.cached_logits(model, chunks, source, **left_padded_target)
        is_token = left_padded_target["decoder_attention_mask"].bool()
        assert_close(cached[is_token], logits_of(model, **source, **left_padded_target)[is_token])

    @torch.no_grad()
    @pytest.mark.parametrize("attention", ATTENTIONS)
    def test_embeddings_with_a_cache_equal_ids_without(self, attention, chunks, source, target):
        model = tiny_model(attn_implementation=attention)
        logits, cache = [], None
        for chunk in model.get_input_embeddings()(target).split(chunks, dim=1):
            output = model(**source, decoder_inputs_embeds=chunk, past_key_values=cache, use_cache=True)
            logits.append(output.logits)
            cache = output.past_key_values
        assert_close(torch.cat(logits, dim=1), logits_of(model, **source, decoder_input_ids=target))

    def test_a_cached_step_attends_to_every_earlier_token(self, model, source, target):
        logits = self.cached_logits(model, [1] * 7, source, target)
        for changed in range(6):
            other = target.clone()
            other[:, changed] = (other[:, changed] + 1) % 99
            last = self.cached_logits(model, [1] * 7, source, other)[:, -1]
            assert (last - logits[:, -1]).abs().amax(-1).min() > 1e-3

    def test_training_keeps_no_cache(self, model, batch):
        assert model(**batch).past_key_values is None


class TestMasks:
    @pytest.mark.parametrize("side", ["left", "right"])
    def test_padding_of_the_source_never_changes_logits(self, model, target, side):
        tokens = random_tokens(3, 6)
        padded, mask = pad(tokens, 10, side)
        actual = logits_of(model, input_ids=padded, attention_mask=mask, decoder_input_ids=target)
        assert_close(actual, logits_of(model, input_ids=tokens, decoder_input_ids=target))

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_padding_of_the_target_never_changes_logits_of_its_tokens(self, model, source, target, side):
        padded, mask = pad(target, 11, side)
        actual = logits_of(model, **source, decoder_input_ids=padded, decoder_attention_mask=mask)
        assert_close(actual[mask.bool()].view(3, 7, -1), logits_of(model, **source, decoder_input_ids=target))

    def test_rows_of_a_batch_are_what_each_is_alone(self, model, source, left_padded_target):
        together = logits_of(model, **source, **left_padded_target)
        for row, padding in enumerate((0, 2, 5)):
            length = source["attention_mask"][row].sum()
            alone = logits_of(
                model,
                input_ids=source["input_ids"][row, None, :length],
                decoder_input_ids=left_padded_target["decoder_input_ids"][row, None, padding:],
            )
            assert_close(together[row, None, padding:], alone)

    def test_every_source_token_moves_every_logit_row(self, model, source, target):
        logits = logits_of(model, **source, decoder_input_ids=target)
        for position in range(4):
            changed = source["input_ids"].clone()
            changed[:, position] = (changed[:, position] - 3) % 95 + 4
            other = logits_of(model, **source | {"input_ids": changed}, decoder_input_ids=target)
            assert (other - logits).abs().amax(-1).min() > 1e-3

    def test_a_masked_source_token_moves_nothing(self, model, source, target):
        mask = source["attention_mask"].clone()
        mask[:, 2] = 0
        changed = source["input_ids"].clone()
        changed[:, 2] = 50
        logits = logits_of(model, **source | {"attention_mask": mask}, decoder_input_ids=target)
        other = logits_of(model, input_ids=changed, attention_mask=mask, decoder_input_ids=target)
        assert_close(other, logits)
        assert (logits - logits_of(model, **source, decoder_input_ids=target)).abs().max() > 1e-2

    def test_a_masked_target_token_moves_nothing_after_it(self, model, source, target):
        mask = torch.ones_like(target)
        mask[:, 2] = 0
        changed = target.clone()
        changed[:, 2] = 50
        logits = logits_of(model, **source, decoder_input_ids=target, decoder_attention_mask=mask)
        other = logits_of(model, **source, decoder_input_ids=changed, decoder_attention_mask=mask)
        assert_close(other[:, 3:], logits[:, 3:])

    def test_a_target_token_moves_its_own_logits_and_later_ones_but_no_earlier_one(self, model, source, target):
        logits = logits_of(model, **source, decoder_input_ids=target)
        for position in range(7):
            changed = target.clone()
            changed[:, position] = (changed[:, position] - 3) % 95 + 4
            moved = (logits_of(model, **source, decoder_input_ids=changed) - logits).abs().amax(-1)
            assert moved[:, :position].sum() == 0
            assert moved[:, position:].min() > 1e-3

    def test_no_mask_means_that_all_are_tokens(self, model, target):
        tokens = random_tokens(3, 6)
        ones = {"attention_mask": torch.ones_like(tokens), "decoder_attention_mask": torch.ones_like(target)}
        actual = logits_of(model, input_ids=tokens, decoder_input_ids=target)
        assert_close(actual, logits_of(model, input_ids=tokens, decoder_input_ids=target, **ones))

    def test_the_order_of_target_tokens_matters(self, model, source, target):
        flipped = target.clone()
        flipped[:, :6] = target[:, :6].flip(1)
        logits = logits_of(model, **source, decoder_input_ids=target)
        assert (logits - logits_of(model, **source, decoder_input_ids=flipped))[:, -1].abs().max() > 1e-3


class TestAttentionImplementations:
    @pytest.fixture
    def eager_logits(self, source, left_padded_target) -> torch.Tensor:
        return logits_of(tiny_model(attn_implementation="eager"), **source, **left_padded_target)

    def test_sdpa_equals_eager(self, eager_logits, source, left_padded_target):
        is_token = left_padded_target["decoder_attention_mask"].bool()
        logits = logits_of(tiny_model(attn_implementation="sdpa"), **source, **left_padded_target)
        assert_close(logits[is_token], eager_logits[is_token])

    def test_the_implementation_can_be_changed_later(self, eager_logits, source, left_padded_target):
        model = tiny_model(attn_implementation="sdpa")
        model.set_attn_implementation("eager")
        assert torch.equal(logits_of(model, **source, **left_padded_target), eager_logits)

    @pytest.mark.slow  # Transformers compiles it, which takes half a minute
    @pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask:DeprecationWarning")  # Transformers' own
    def test_flex_attention_equals_eager(self, eager_logits, source, left_padded_target):
        is_token = left_padded_target["decoder_attention_mask"].bool()
        logits = logits_of(tiny_model(attn_implementation="flex_attention"), **source, **left_padded_target)
        assert_close(logits[is_token], eager_logits[is_token])


class TestInputs:
    @torch.no_grad()
    def test_embeddings_may_stand_in_for_ids(self, model, source, target):
        embed = model.get_input_embeddings()
        tokens = random_tokens(3, 9)
        actual = logits_of(model, inputs_embeds=embed(tokens), decoder_inputs_embeds=embed(target))
        assert_close(actual, logits_of(model, input_ids=tokens, decoder_input_ids=target))

    @torch.no_grad()
    def test_embeddings_of_left_padded_targets_are_counted_from_the_mask(self, model, source, left_padded_target):
        embedded = model.get_input_embeddings()(left_padded_target["decoder_input_ids"])
        mask = left_padded_target["decoder_attention_mask"]
        actual = logits_of(model, **source, decoder_inputs_embeds=embedded, decoder_attention_mask=mask)
        assert_close(actual[mask.bool()], logits_of(model, **source, **left_padded_target)[mask.bool()])

    @torch.no_grad()
    @pytest.mark.parametrize("return_dict", [True, False])
    def test_the_encoders_output_may_be_given(self, model, source, target, return_dict):
        encoder_outputs = model.get_encoder()(**source, return_dict=return_dict)
        mask = source["attention_mask"]
        actual = logits_of(model, encoder_outputs=encoder_outputs, attention_mask=mask, decoder_input_ids=target)
        assert torch.equal(actual, logits_of(model, **source, decoder_input_ids=target))

    @torch.no_grad()
    def test_positions_may_be_given(self, model, source, target):
        positions = torch.arange(2, 9).expand(3, 7)
        logits = logits_of(model, **source, decoder_input_ids=target)
        given = logits_of(model, **source, decoder_input_ids=target, decoder_position_ids=positions)
        shifted = logits_of(model, **source, decoder_input_ids=target, decoder_position_ids=positions + 1)
        assert torch.equal(given, logits)
        assert (shifted - logits).abs().max() > 1e-2

    def test_a_decoder_without_input_or_with_two_is_refused(self, model, source, target):
        with pytest.raises(ValueError, match="decoder_input_ids"):
            model(**source)
        with pytest.raises(ValueError, match="decoder_input_ids"):
            embeds = model.get_input_embeddings()(target)
            model(**source, decoder_input_ids=target, decoder_inputs_embeds=embeds)

    def test_a_decoder_without_an_encoder_is_refused(self, model, target):
        with pytest.raises(ValueError, match="encoder_hidden_states"):
            model.get_decoder()(input_ids=target)

    def test_a_tuple_holds_what_the_output_holds(self, model, batch):
        output = model(**batch)
        as_tuple = model(**batch, return_dict=False)
        assert torch.equal(as_tuple[0], output.loss)
        assert torch.equal(as_tuple[1], output.logits)

    @pytest.mark.parametrize("last", [1, 3])
    def test_logits_to_keep_counts_from_the_end(self, model, source, target, last):
        kept = logits_of(model, **source, decoder_input_ids=target, logits_to_keep=last)
        assert_close(kept, logits_of(model, **source, decoder_input_ids=target)[:, -last:])

    def test_logits_to_keep_may_name_positions(self, model, source, target):
        positions = torch.tensor([0, 4, 5])
        kept = logits_of(model, **source, decoder_input_ids=target, logits_to_keep=positions)
        assert_close(kept, logits_of(model, **source, decoder_input_ids=target)[:, positions])


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
    """Four steps of four make the update that one step of sixteen makes, however long the targets are."""

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
        torch.manual_seed(0)  # of dropout
        model.train()(**batch).loss.backward()
        return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}

    @pytest.mark.parametrize("sharing", ["init", "tied"])
    def test_activation_checkpointing_gives_the_same_gradients(self, batch, sharing):
        expected = self.gradients(tiny_model(weight_sharing=sharing), batch)
        model = tiny_model(weight_sharing=sharing)
        model.activation_checkpointing_enable()
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
            # a constant added to all keys of a query changes no attention weight
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


class TestVocabularySize:
    @pytest.fixture(params=[True, False], ids=["one matrix", "two matrices"])
    def tied(self, request) -> bool:
        return request.param

    @pytest.mark.parametrize("size", [112, 60])
    def test_resizing_keeps_rows_bias_and_ties(self, tied, size, tmp_path):
        model = tiny_model(tie_word_embeddings=tied)
        tokens = {"input_ids": random_tokens(2, 6) % 50 + 4, "decoder_input_ids": random_tokens(2, 5) % 50 + 4}
        before = logits_of(model, **tokens)
        model.resize_token_embeddings(size)
        self.check_size(model, tied, size)
        after = logits_of(model, **tokens)
        kept = min(size, 99)
        assert_close(after[..., :kept], before[..., :kept])
        model.save_pretrained(tmp_path)
        loaded = XLMSWCMForConditionalGeneration.from_pretrained(tmp_path)
        self.check_size(loaded, tied, size)
        assert torch.equal(logits_of(loaded, **tokens), after)

    def check_size(self, model, tied, size):
        encoder, decoder = (part.embeddings.word_embeddings for part in (model.model.encoder, model.model.decoder))
        assert model.config.vocab_size == size
        assert encoder.weight.shape == model.lm_head.weight.shape == (size, 32)
        assert model.lm_head.bias.shape == (size,)
        assert encoder.num_embeddings == decoder.num_embeddings == model.lm_head.out_features == size
        assert decoder.weight is encoder.weight
        assert (model.lm_head.weight is encoder.weight) == tied

    def test_a_resized_model_trains(self, batch):
        model = tiny_model()
        model.resize_token_embeddings(112)
        labels = batch["labels"].clone()
        labels[:, 0] = 111
        loss = model(**batch | {"labels": labels}).loss
        loss.backward()
        assert loss.isfinite()
        assert model.lm_head.bias.grad[111] != 0
        assert model.get_input_embeddings().weight.grad[111].abs().max() > 0

    def test_new_input_embeddings_reach_encoder_and_decoder(self, model):
        embeddings = nn.Embedding(120, 32, padding_idx=1)
        model.set_input_embeddings(embeddings)
        assert model.get_input_embeddings() is embeddings
        assert model.model.encoder.embeddings.word_embeddings is embeddings
        assert model.model.decoder.embeddings.word_embeddings is embeddings


class TestSaving:
    @pytest.fixture(
        params=SHARINGS, ids=lambda options: f"{options['weight_sharing']}-{options['tie_word_embeddings']}"
    )
    def model(self, request) -> XLMSWCMForConditionalGeneration:
        return tiny_model(**request.param)

    def groups(self, model) -> set[frozenset[str]]:
        """The names of state-dict entries that are one tensor."""
        entries = sorted(model.state_dict().items(), key=lambda entry: entry[1].data_ptr())
        by_pointer = itertools.groupby(entries, key=lambda entry: entry[1].data_ptr())
        return {frozenset(name for name, _ in group) for _, group in by_pointer}

    def load(self, auto_class, folder):
        model, info = auto_class.from_pretrained(folder, output_loading_info=True)
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")), (
            info
        )
        return model

    def test_sharing_is_what_the_config_says(self, model):
        encoder, decoder = model.model.encoder, model.model.decoder
        for name, parameter in encoder.embeddings.named_parameters():
            assert decoder.embeddings.get_parameter(name) is parameter
        tied_head = model.lm_head.weight is encoder.embeddings.word_embeddings.weight
        assert tied_head == model.config.tie_word_embeddings
        # encoder layer 2 is custom layer 2, which is decoder layer 3
        layer = encoder.encoder.layer[2]
        pairs = [
            (decoder.layers[3].self_attn.k_proj.weight, layer.attention.self.key.weight),
            (decoder.layers[3].cross_attn.out_proj.bias, layer.attention.output.dense.bias),
            (decoder.layers[3].ffn1.fc1.weight, layer.intermediate.dense.weight),
            (decoder.layers[3].ffn2.layer_norm.weight, layer.output.LayerNorm.weight),
        ]
        assert [copy is original for copy, original in pairs] == 4 * [model.config.weight_sharing == "tied"]

    @pytest.mark.parametrize("shard", [None, "20KB"], ids=["one file", "shards"])
    def test_a_saved_model_comes_back_the_same(self, model, batch, tmp_path, shard):
        model.save_pretrained(tmp_path, **({} if shard is None else {"max_shard_size": shard}))
        assert (len(list(tmp_path.glob("*.safetensors"))) > 3) == (shard is not None)
        loaded = self.load(AutoModelForSeq2SeqLM, tmp_path)
        assert type(loaded) is XLMSWCMForConditionalGeneration
        assert self.groups(loaded) == self.groups(model)
        assert loaded.num_parameters() == model.num_parameters()
        assert torch.equal(logits_of(loaded, **batch), logits_of(model, **batch))

    def test_the_base_model_loads_from_the_same_files(self, model, source, target, tmp_path):
        model.save_pretrained(tmp_path)
        loaded = self.load(AutoModel, tmp_path)
        assert type(loaded) is XLMSWCMModel
        assert self.groups(loaded) == self.groups(model.model)
        with torch.no_grad():
            actual = loaded(**source, decoder_input_ids=target).last_hidden_state
            assert torch.equal(actual, model.model(**source, decoder_input_ids=target).last_hidden_state)

    def test_a_file_holds_every_shared_tensor_once(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        assert sum(tensor.numel() for tensor in tensors_of(tmp_path).values()) == model.num_parameters()

    def test_a_head_on_a_saved_base_model_is_reported_as_new(self, model, tmp_path):
        model.model.save_pretrained(tmp_path)
        _, info = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
        new = {"lm_head.bias"} if model.config.tie_word_embeddings else {"lm_head.bias", "lm_head.weight"}
        assert info["missing_keys"] == new
        assert not info["unexpected_keys"]

    @pytest.mark.parametrize("table", ["word_embeddings", "position_embeddings"])
    def test_embeddings_that_a_file_lacks_are_reported(self, model, tmp_path, table):
        model.save_pretrained(tmp_path)
        tensors = {name: tensor for name, tensor in tensors_of(tmp_path).items() if table not in name}
        tensors.pop("lm_head.weight", None)
        save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
        _, info = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
        assert f"model.encoder.embeddings.{table}.weight" in info["missing_keys"]

    def test_a_layer_that_a_file_lacks_is_reported(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        lost = "model.encoder.encoder.layer.1.attention.self.query.weight"
        tensors = {name: tensor for name, tensor in tensors_of(tmp_path).items() if name != lost}
        save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
        _, info = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
        assert lost in info["missing_keys"]

    def test_buffers_that_no_file_holds_are_right_after_loading(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).model
        for embeddings in (loaded.encoder.embeddings, loaded.decoder.embeddings):
            assert torch.equal(embeddings.position_ids, torch.arange(66)[None])
            assert torch.equal(embeddings.token_type_ids, torch.zeros(1, 66, dtype=torch.long))
            assert embeddings.word_embeddings.padding_idx == embeddings.padding_idx == 1

    def test_half_precision_comes_back_with_its_sharing(self, model, tmp_path):
        model.to(torch.bfloat16).save_pretrained(tmp_path)
        loaded = self.load(AutoModelForSeq2SeqLM, tmp_path)
        assert loaded.dtype == torch.bfloat16
        assert self.groups(loaded) == self.groups(model)
        for name, tensor in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor)


# one custom and one normal layer; whoever has a checkpoint depends on every one of these names
NAMES_AND_SHAPES = {
    "model.encoder.embeddings.word_embeddings.weight": (11, 4),
    "model.encoder.embeddings.token_type_embeddings.weight": (1, 4),
    "model.encoder.embeddings.LayerNorm.weight": (4,),
    "model.encoder.embeddings.LayerNorm.bias": (4,),
    "model.encoder.embeddings.position_embeddings.weight": (8, 4),
    "model.encoder.encoder.layer.0.attention.self.query.weight": (4, 4),
    "model.encoder.encoder.layer.0.attention.self.query.bias": (4,),
    "model.encoder.encoder.layer.0.attention.self.key.weight": (4, 4),
    "model.encoder.encoder.layer.0.attention.self.key.bias": (4,),
    "model.encoder.encoder.layer.0.attention.self.value.weight": (4, 4),
    "model.encoder.encoder.layer.0.attention.self.value.bias": (4,),
    "model.encoder.encoder.layer.0.attention.output.dense.weight": (4, 4),
    "model.encoder.encoder.layer.0.attention.output.dense.bias": (4,),
    "model.encoder.encoder.layer.0.attention.output.LayerNorm.weight": (4,),
    "model.encoder.encoder.layer.0.attention.output.LayerNorm.bias": (4,),
    "model.encoder.encoder.layer.0.intermediate.dense.weight": (6, 4),
    "model.encoder.encoder.layer.0.intermediate.dense.bias": (6,),
    "model.encoder.encoder.layer.0.output.dense.weight": (4, 6),
    "model.encoder.encoder.layer.0.output.dense.bias": (4,),
    "model.encoder.encoder.layer.0.output.LayerNorm.weight": (4,),
    "model.encoder.encoder.layer.0.output.LayerNorm.bias": (4,),
    "model.decoder.embeddings.word_embeddings.weight": (11, 4),
    "model.decoder.embeddings.token_type_embeddings.weight": (1, 4),
    "model.decoder.embeddings.LayerNorm.weight": (4,),
    "model.decoder.embeddings.LayerNorm.bias": (4,),
    "model.decoder.embeddings.position_embeddings.weight": (8, 4),
    "model.decoder.layers.0.self_attn.q_proj.weight": (4, 4),
    "model.decoder.layers.0.self_attn.q_proj.bias": (4,),
    "model.decoder.layers.0.self_attn.k_proj.weight": (4, 4),
    "model.decoder.layers.0.self_attn.k_proj.bias": (4,),
    "model.decoder.layers.0.self_attn.v_proj.weight": (4, 4),
    "model.decoder.layers.0.self_attn.v_proj.bias": (4,),
    "model.decoder.layers.0.self_attn.out_proj.weight": (4, 4),
    "model.decoder.layers.0.self_attn.out_proj.bias": (4,),
    "model.decoder.layers.0.self_attn.layer_norm.weight": (4,),
    "model.decoder.layers.0.self_attn.layer_norm.bias": (4,),
    "model.decoder.layers.0.cross_attn.q_proj.weight": (4, 4),
    "model.decoder.layers.0.cross_attn.q_proj.bias": (4,),
    "model.decoder.layers.0.cross_attn.k_proj.weight": (4, 4),
    "model.decoder.layers.0.cross_attn.k_proj.bias": (4,),
    "model.decoder.layers.0.cross_attn.v_proj.weight": (4, 4),
    "model.decoder.layers.0.cross_attn.v_proj.bias": (4,),
    "model.decoder.layers.0.cross_attn.out_proj.weight": (4, 4),
    "model.decoder.layers.0.cross_attn.out_proj.bias": (4,),
    "model.decoder.layers.0.cross_attn.layer_norm.weight": (4,),
    "model.decoder.layers.0.cross_attn.layer_norm.bias": (4,),
    "model.decoder.layers.0.ffn1.fc1.weight": (6, 4),
    "model.decoder.layers.0.ffn1.fc1.bias": (6,),
    "model.decoder.layers.0.ffn1.fc2.weight": (4, 6),
    "model.decoder.layers.0.ffn1.fc2.bias": (4,),
    "model.decoder.layers.0.ffn1.layer_norm.weight": (4,),
    "model.decoder.layers.0.ffn1.layer_norm.bias": (4,),
    "model.decoder.layers.0.ffn2.fc1.weight": (6, 4),
    "model.decoder.layers.0.ffn2.fc1.bias": (6,),
    "model.decoder.layers.0.ffn2.fc2.weight": (4, 6),
    "model.decoder.layers.0.ffn2.fc2.bias": (4,),
    "model.decoder.layers.0.ffn2.layer_norm.weight": (4,),
    "model.decoder.layers.0.ffn2.layer_norm.bias": (4,),
    "model.decoder.layers.1.self_attn.q_proj.weight": (4, 4),
    "model.decoder.layers.1.self_attn.q_proj.bias": (4,),
    "model.decoder.layers.1.self_attn.k_proj.weight": (4, 4),
    "model.decoder.layers.1.self_attn.k_proj.bias": (4,),
    "model.decoder.layers.1.self_attn.v_proj.weight": (4, 4),
    "model.decoder.layers.1.self_attn.v_proj.bias": (4,),
    "model.decoder.layers.1.self_attn.out_proj.weight": (4, 4),
    "model.decoder.layers.1.self_attn.out_proj.bias": (4,),
    "model.decoder.layers.1.self_attn.layer_norm.weight": (4,),
    "model.decoder.layers.1.self_attn.layer_norm.bias": (4,),
    "model.decoder.layers.1.cross_attn.q_proj.weight": (4, 4),
    "model.decoder.layers.1.cross_attn.q_proj.bias": (4,),
    "model.decoder.layers.1.cross_attn.k_proj.weight": (4, 4),
    "model.decoder.layers.1.cross_attn.k_proj.bias": (4,),
    "model.decoder.layers.1.cross_attn.v_proj.weight": (4, 4),
    "model.decoder.layers.1.cross_attn.v_proj.bias": (4,),
    "model.decoder.layers.1.cross_attn.out_proj.weight": (4, 4),
    "model.decoder.layers.1.cross_attn.out_proj.bias": (4,),
    "model.decoder.layers.1.cross_attn.layer_norm.weight": (4,),
    "model.decoder.layers.1.cross_attn.layer_norm.bias": (4,),
    "model.decoder.layers.1.ffn.fc1.weight": (6, 4),
    "model.decoder.layers.1.ffn.fc1.bias": (6,),
    "model.decoder.layers.1.ffn.fc2.weight": (4, 6),
    "model.decoder.layers.1.ffn.fc2.bias": (4,),
    "model.decoder.layers.1.ffn.layer_norm.weight": (4,),
    "model.decoder.layers.1.ffn.layer_norm.bias": (4,),
    "lm_head.weight": (11, 4),
    "lm_head.bias": (11,),
}


class TestNames:
    @pytest.fixture(params=["init", "tied"])
    def model(self, request) -> XLMSWCMForConditionalGeneration:
        sizes = dict(
            vocab_size=11, hidden_size=4, num_attention_heads=2, intermediate_size=6, max_position_embeddings=8
        )
        blocks = dict(num_hidden_layers=1, decoder_blocks=["custom", "normal"])
        return tiny_model(weight_sharing=request.param, **sizes, **blocks)

    def shapes(self, tensors: Batch) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def test_the_state_dict_has_the_names_and_shapes_that_checkpoints_have(self, model):
        assert self.shapes(model.state_dict()) == NAMES_AND_SHAPES

    def test_a_file_leaves_out_what_is_shared(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        shared = ("model.decoder.embeddings.", "lm_head.weight")
        if model.config.weight_sharing == "tied":
            shared += ("model.decoder.layers.0.",)
        on_disk = {name: shape for name, shape in NAMES_AND_SHAPES.items() if not name.startswith(shared)}
        assert len(on_disk) == (48 if model.config.weight_sharing == "tied" else 80)
        assert self.shapes(tensors_of(tmp_path)) == on_disk


class TestRecordedOutputs:
    @pytest.fixture
    def outputs(self, source, target):
        model = tiny_model(attn_implementation="eager")
        with torch.no_grad():
            return model(**source, decoder_input_ids=target, output_hidden_states=True, output_attentions=True)

    def test_hidden_states_are_the_embeddings_and_each_layers_output(self, outputs):
        assert [tuple(states.shape) for states in outputs.encoder_hidden_states] == 5 * [(3, 9, 32)]
        assert [tuple(states.shape) for states in outputs.decoder_hidden_states] == 6 * [(3, 7, 32)]
        for states in (outputs.encoder_hidden_states, outputs.decoder_hidden_states):
            assert all((a - b).abs().max() > 1e-2 for a, b in itertools.pairwise(states))
        assert torch.equal(outputs.encoder_hidden_states[-1], outputs.encoder_last_hidden_state)

    def test_the_first_and_last_hidden_states_are_those_of_the_decoder(self, outputs, source, target):
        model = tiny_model(attn_implementation="eager")
        with torch.no_grad():
            base = model.model(**source, decoder_input_ids=target)
            embedded = model.model.decoder.embeddings(target, position_ids=torch.arange(2, 9).expand(3, 7))
        assert torch.equal(outputs.decoder_hidden_states[0], embedded)
        assert torch.equal(outputs.decoder_hidden_states[-1], base.last_hidden_state)

    @pytest.mark.parametrize(
        ("field", "layers", "shape"),
        [
            ("encoder_attentions", 4, (3, 4, 9, 9)),
            ("decoder_attentions", 5, (3, 4, 7, 7)),
            ("cross_attentions", 5, (3, 4, 7, 9)),
        ],
    )
    def test_attentions_are_distributions_of_each_layer(self, outputs, field, layers, shape):
        attentions = getattr(outputs, field)
        assert [tuple(weights.shape) for weights in attentions] == layers * [shape]
        for weights in attentions:
            assert_close(weights.sum(-1), torch.ones(shape[:-1]))

    def test_attentions_are_zero_where_the_masks_are(self, outputs, source):
        future = torch.ones(7, 7).triu(1).bool()
        padding = source["attention_mask"] == 0
        for weights in outputs.decoder_attentions:
            assert weights[:, :, future].max() == 0
        for weights in outputs.cross_attentions:
            assert weights.transpose(1, 3)[padding].max() == 0

    @torch.no_grad()
    def test_hidden_states_may_be_asked_for_one_by_one_and_from_the_end(self, model, outputs, source, target):
        chosen = model(**source, decoder_input_ids=target, output_hidden_states=[1, -1])
        assert [states is not None for states in chosen.encoder_hidden_states] == [False, True, False, False, True]
        assert [states is not None for states in chosen.decoder_hidden_states] == [False, True, *[False] * 3, True]
        assert_close(chosen.decoder_hidden_states[1], outputs.decoder_hidden_states[1])

    def test_nothing_is_recorded_unasked(self, model, source, target):
        outputs = model(**source, decoder_input_ids=target)
        fields = [f"{part}_{kind}" for part in ("encoder", "decoder") for kind in ("hidden_states", "attentions")]
        assert [getattr(outputs, field) for field in [*fields, "cross_attentions"]] == 5 * [None]


@pytest.fixture(scope="module")
def adapted(pairs) -> tuple[nn.Module, list[float]]:
    """A model with trained LoRA adapters, and the losses on the way."""
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


def compute_in_parallel(rank: int, folders: list[Path], inputs: Batch, store: Path):
    """One of two processes, each with half of every matrix; the first writes down the logits."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
    for folder in folders:
        config = DistributedConfig(tp_size=2)
        model = XLMSWCMForConditionalGeneration.from_pretrained(folder, distributed_config=config)
        assert model.model.decoder.layers[0].cross_attn.q_proj.weight.to_local().shape == (16, 32)
        logits = logits_of(model, **inputs)
        if rank == 0:
            torch.save(logits, folder / "logits.pt")
    torch.distributed.destroy_process_group()


class TestTensorParallelism:
    def test_every_rule_is_about_a_module_that_exists(self, model):
        modules = {
            ".".join("*" if part.isdigit() else part for part in name.split(".")) for name, _ in model.named_modules()
        }
        assert len(model.tp_plan) > 20
        assert model.tp_plan.keys() <= modules

    def test_every_matrix_of_a_layer_has_a_rule(self, model):
        layers = [*model.model.encoder.encoder.layer.named_modules(), *model.model.decoder.layers.named_modules()]
        linears = {name.partition(".")[2] for name, module in layers if isinstance(module, nn.Linear)}
        rules = {rule.partition(".*.")[2] for rule in model.tp_plan}
        assert len(linears) == 20
        assert linears <= rules

    def test_two_processes_compute_what_one_computes(self, batch, tmp_path):
        folders, expected = [], []
        for number, options in enumerate(SHARINGS):
            model = tiny_model(**options)
            folders.append(tmp_path / str(number))
            model.save_pretrained(folders[-1])
            expected.append(logits_of(model, **batch))
        torch.multiprocessing.spawn(compute_in_parallel, (folders, batch, tmp_path / "store"), nprocs=2)
        for folder, logits in zip(folders, expected, strict=True):
            assert_close(torch.load(folder / "logits.pt"), logits)
