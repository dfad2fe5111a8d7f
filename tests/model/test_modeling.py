"""Layers, cache, masks, inputs and outputs of the model, with every attention implementation."""

import itertools
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version
from support.models import (
    ATTENTIONS,
    PREFIX_DECODERS,
    SHARINGS,
    Batch,
    assert_close,
    logits_of,
    random_tokens,
    tiny_model,
)
from support.processes import run_in_two_processes
from torch import nn
from transformers.distributed import DistributedConfig
from transformers.masking_utils import create_bidirectional_mask

from modeling_xlm_swcm import XLMSWCMForConditionalGeneration
from modeling_xlm_swcm.compat_xlm_swcm import CACHE
from modeling_xlm_swcm.modeling_xlm_swcm import CUSTOM_LAYER_SOURCES


def pad(tokens: torch.Tensor, length: int, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad the tokens to `length` on one side, and return them with their mask."""
    amount = (length - tokens.shape[1], 0) if side == "left" else (0, length - tokens.shape[1])
    return nn.functional.pad(tokens, amount, value=1), nn.functional.pad(torch.ones_like(tokens), amount)


class TestCopiedSublayers:
    """A sublayer with the weights of an encoder layer has the output of the encoder layer."""

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
    """Order of the sublayers in both types of decoder layer."""

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
                **{CACHE: cache},
                use_cache=True,
            )
            logits.append(output.logits)
            cache, start = getattr(output, CACHE), stop
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
            output = model(**source, decoder_inputs_embeds=chunk, **{CACHE: cache}, use_cache=True)
            logits.append(output.logits)
            cache = getattr(output, CACHE)
        assert_close(torch.cat(logits, dim=1), logits_of(model, **source, decoder_input_ids=target))

    def test_a_cached_step_attends_to_every_earlier_token(self, model, source, target):
        logits = self.cached_logits(model, [1] * 7, source, target)
        for changed in range(6):
            other = target.clone()
            other[:, changed] = (other[:, changed] + 1) % 99
            last = self.cached_logits(model, [1] * 7, source, other)[:, -1]
            assert (last - logits[:, -1]).abs().amax(-1).min() > 1e-3

    def test_training_keeps_no_cache(self, model, batch):
        assert getattr(model(**batch), CACHE) is None


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

    @pytest.mark.parametrize("decoder", [{}, *PREFIX_DECODERS], ids=str)
    @pytest.mark.parametrize("columns", [-2, 2])
    @pytest.mark.parametrize("name", ["source", "target"])
    def test_a_mask_needs_a_column_for_each_token(self, source, target, decoder, columns, name):
        model, width = tiny_model(**decoder), 9 if name == "source" else 7
        mask = torch.ones(3, width + columns)
        masks = {"attention_mask": mask} if name == "source" else {"decoder_attention_mask": mask}
        outputs = model.get_encoder()(**source)
        with pytest.raises(ValueError, match=f"mask of the {name} has {width + columns} columns, .* {width} tokens"):
            model(encoder_outputs=outputs, decoder_input_ids=target, **masks)


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

    # Transformers compiles flex attention, which takes half a minute and gives a warning.
    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask:DeprecationWarning")
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
        with pytest.raises(ValueError, match="^labels need all logits. Remove logits_to_keep."):
            model(**source, labels=target, logits_to_keep=positions)


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

    @pytest.mark.skipif(
        Version(transformers.__version__) < Version("5.23"), reason="Transformers resolves negative indices since 5.23"
    )
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


def compute_in_parallel(folders: list[Path], inputs: Batch):
    """Compute in one of two processes, each with half of every matrix. The first process saves the logits."""
    for folder in folders:
        config = DistributedConfig(tp_size=2)
        model = XLMSWCMForConditionalGeneration.from_pretrained(folder, distributed_config=config)
        assert model.model.decoder.layers[0].cross_attn.q_proj.weight.to_local().shape == (16, 32)
        logits = logits_of(model, **inputs)
        if torch.distributed.get_rank() == 0:
            torch.save(logits, folder / "logits.pt")


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
            # Two processes need an even vocabulary size.
            model = tiny_model(vocab_size=100, **options)
            folders.append(tmp_path / str(number))
            model.save_pretrained(folders[-1])
            expected.append(logits_of(model, **batch))
        run_in_two_processes(tmp_path, compute_in_parallel, folders, batch)
        for folder, logits in zip(folders, expected, strict=True):
            assert_close(torch.load(folder / "logits.pt"), logits)


class TestWhatOthersPassIn:
    def test_left_padded_embeddings_of_a_source_give_what_its_ids_give(self, model, target):
        ids, mask = pad(random_tokens(3, 6), 9, "left")
        by_ids = logits_of(model, input_ids=ids, attention_mask=mask, decoder_input_ids=target)
        embeds = model.get_input_embeddings()(ids)
        assert_close(logits_of(model, inputs_embeds=embeds, attention_mask=mask, decoder_input_ids=target), by_ids)
        options = dict(attention_mask=mask, max_new_tokens=6, output_scores=True, return_dict_in_generate=True)
        written, expected = model.generate(inputs_embeds=embeds, **options), model.generate(ids, **options)
        assert torch.equal(written.sequences, expected.sequences)
        assert_close(torch.stack(written.scores), torch.stack(expected.scores))

    def test_the_encoders_own_output_keeps_its_fields(self, model, source, target):
        model.set_attn_implementation("eager")
        encoded = model.get_encoder()(**source, output_attentions=True)
        outputs = model(encoder_outputs=encoded, attention_mask=source["attention_mask"], decoder_input_ids=target)
        assert outputs.encoder_hidden_states is None
        assert len(outputs.encoder_attentions) == model.config.num_hidden_layers

    def test_cross_attention_takes_the_mask_that_flash_attention_gets(self, model):
        """Flash attention would unpad the queries with a 2D mask of the source, so it must not get this mask."""
        attention = model.model.decoder.layers[0].cross_attn
        hidden, encoded = torch.randn(2, 3, 32), torch.randn(2, 5, 32)
        mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
        expected, _ = attention(hidden[1:], None, encoded[1:, :2])
        actual, _ = attention(hidden, mask, encoded)
        assert_close(actual[1:], expected)
