"""The prefix decoder computes the encoder over source and target, where the source cannot see the target."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from support.models import (
    CHECKPOINTING,
    PREFIX_DECODERS,
    Batch,
    assert_close,
    logits_of,
    random_tokens,
    tiny_config,
    tiny_model,
)
from transformers import AutoModelForSeq2SeqLM, XLMRobertaForMaskedLM, XLMRobertaModel

from modeling_xlm_swcm import XLMSWCMForConditionalGeneration
from modeling_xlm_swcm.conversion import from_encoder


NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.fixture(params=PREFIX_DECODERS, ids=lambda options: options["weight_sharing"])
def model(request) -> XLMSWCMForConditionalGeneration:
    return tiny_model(**request.param)


def tied_model(**options) -> XLMSWCMForConditionalGeneration:
    return tiny_model(decoder_blocks=4 * ["prefix"], weight_sharing="tied", **options)


def encode_together(encoder: XLMRobertaModel, source: Batch, target: torch.Tensor) -> torch.Tensor:
    """Run XLM-R's layers over source and target as one sequence with the mask of a prefix language model."""
    positions = torch.arange(2, 2 + target.shape[1]).expand_as(target)
    states = torch.cat(
        [encoder.embeddings(source["input_ids"]), encoder.embeddings(target, position_ids=positions)], dim=1
    )
    source_length, length = source["input_ids"].shape[1], states.shape[1]
    visible = torch.ones(length, length, dtype=torch.bool).tril()
    visible[:source_length, :source_length] = True
    tokens = torch.cat([source["attention_mask"].bool(), torch.ones_like(target, dtype=torch.bool)], dim=1)
    mask = (visible & tokens[:, None])[:, None]
    for layer in encoder.encoder.layer:
        states = layer(states, mask)
    return states[:, source_length:]


class TestComputation:
    def test_a_tied_decoder_is_the_encoder_over_source_and_target(self, source, target):
        model = tied_model()
        with torch.no_grad():
            expected = model.lm_head(encode_together(model.model.encoder, source, target))
        assert_close(logits_of(model, **source, decoder_input_ids=target), expected)

    def test_its_gradients_are_those_of_the_encoder_over_source_and_target(self, source, target):
        model = tied_model(**NO_DROPOUT).train()
        labels = random_tokens(3, 7, seed=9)
        loss = torch.nn.functional.cross_entropy(
            model.lm_head(encode_together(model.model.encoder, source, target)).flatten(0, 1), labels.flatten()
        )
        expected = torch.autograd.grad(loss, [*model.parameters()])
        model(**source, decoder_input_ids=target, labels=labels).loss.backward()
        for parameter, gradient in zip(model.parameters(), expected, strict=True):
            assert_close(parameter.grad, gradient)

    @pytest.mark.parametrize("head", [XLMRobertaForMaskedLM, XLMRobertaModel])
    def test_a_converted_model_starts_as_the_encoder(self, head, source, target):
        torch.manual_seed(0)
        encoder = head(tiny_config_of_xlm_roberta()).eval()
        models = [from_encoder(encoder, decoder="prefix", weight_sharing=sharing)[0] for sharing in ("init", "tied")]
        base = getattr(encoder, "roberta", encoder)
        with torch.no_grad():
            states = encode_together(base, source, target)
            new_head = models[0].lm_head(models[0].lm_head_transform(states))
            expected = encoder.lm_head(states) if head is XLMRobertaForMaskedLM else new_head
        for model in models:
            assert_close(logits_of(model, **source, decoder_input_ids=target), expected)

    def test_a_source_does_not_see_the_target_and_a_target_not_its_future(self, model, source, target):
        outputs = model(**source, decoder_input_ids=target)
        changed = target.clone()
        changed[:, 5:] = random_tokens(3, 2, seed=11)
        other = model(**source, decoder_input_ids=changed)
        assert torch.equal(outputs.encoder_last_hidden_state, other.encoder_last_hidden_state)
        assert_close(outputs.logits[:, :5], other.logits[:, :5])
        assert not torch.allclose(outputs.logits[:, 5:], other.logits[:, 5:])

    def test_every_position_reads_the_source(self, model, source, target):
        other = {**source, "input_ids": source["input_ids"].where(source["input_ids"] == 1, 5)}
        difference = logits_of(model, **source, decoder_input_ids=target) - logits_of(
            model, **other, decoder_input_ids=target
        )
        assert (difference.abs().amax(-1) > 1e-3).all()

    def test_attention_weights_of_source_and_target_sum_to_one(self, source, target):
        model = tied_model(attn_implementation="eager")
        outputs = model(**source, decoder_input_ids=target, output_attentions=True)
        assert len(outputs.decoder_attentions) == len(outputs.cross_attentions) == 4
        for own, cross in zip(outputs.decoder_attentions, outputs.cross_attentions, strict=True):
            assert_close(own.sum(-1) + cross.sum(-1), torch.ones(3, 4, 7))
            # padding of the second source
            assert cross[1, ..., 6:].max() == 0

    # Transformers passes a flag that PyTorch deprecates.
    @pytest.mark.filterwarnings("ignore:_compile flag:DeprecationWarning")
    @pytest.mark.parametrize("implementation", ["eager", pytest.param("flex_attention", marks=pytest.mark.slow)])
    def test_other_attention_implementations_compute_the_same(self, model, source, target, implementation):
        expected = logits_of(model, **source, decoder_input_ids=target)
        model.model.decoder.set_attn_implementation(implementation)
        assert_close(logits_of(model, **source, decoder_input_ids=target), expected)


def tiny_config_of_xlm_roberta():
    fields = tiny_config(initializer_range=0.3).to_dict()
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    names += ("max_position_embeddings", "type_vocab_size", "initializer_range")
    return XLMRobertaModel.config_class(**{name: fields[name] for name in names})


class TestErrors:
    def test_an_output_of_the_encoder_without_the_inputs_of_its_layers(self, model, source, target):
        states = model.get_encoder()(**source).last_hidden_state
        with pytest.raises(ValueError, match="encoder_outputs has no hidden_states, which a prefix decoder needs"):
            model(encoder_outputs=(states,), decoder_input_ids=target)

    @pytest.mark.parametrize("name", ["attention_mask", "decoder_attention_mask"])
    def test_masks_of_more_than_two_dimensions(self, model, source, target, name):
        masks = {"encoder_outputs": model.get_encoder()(**source), name: torch.ones(3, 1, 7, 7)}
        with pytest.raises(ValueError, match=r"needs masks of shape \(batch_size, length\) \(got \(3, 1, 7, 7\)\)"):
            model(decoder_input_ids=target, **masks)

    @pytest.mark.parametrize("blocks", [["prefix"], 3 * ["prefix"] + ["custom"], 5 * ["prefix"]], ids=str)
    def test_blocks_that_do_not_fit_the_encoder(self, blocks):
        message = rf'of the 4 encoder layers \(got {len(blocks)} layers: .*Use decoder_blocks=4 \* \["prefix"\]'
        with pytest.raises(StrictDataclassClassValidationError, match=message):
            tiny_config(decoder_blocks=blocks)


@pytest.mark.parametrize("device_map", ["layers", "every second layer"])
def test_weights_that_are_offloaded_to_disk(model, source, target, device_map, tmp_path):
    expected = logits_of(model, **source, decoder_input_ids=target)
    model.save_pretrained(tmp_path / "model")
    devices = dict.fromkeys(["model.encoder.embeddings", "model.decoder.embeddings", "lm_head"], "cpu")
    if device_map == "layers":
        devices |= {"model.encoder.encoder": "disk", "model.decoder.layers": "disk"}
    else:
        for stack in ("model.encoder.encoder.layer", "model.decoder.layers"):
            devices |= {f"{stack}.{index}": "disk" if index % 2 else "cpu" for index in range(4)}
    loaded = AutoModelForSeq2SeqLM.from_pretrained(
        tmp_path / "model", device_map=devices, offload_folder=str(tmp_path / "offloaded")
    )
    assert_close(logits_of(loaded, **source, decoder_input_ids=target), expected)


class TestTraining:
    def test_only_weights_that_get_a_gradient_are_trained(self, model, batch, tmp_path):
        model.save_pretrained(tmp_path)
        for each in (model, AutoModelForSeq2SeqLM.from_pretrained(tmp_path)):
            each.train()(**batch).loss.backward()
            trained = {name for name, parameter in each.named_parameters() if parameter.requires_grad}
            assert trained == {name for name, parameter in each.named_parameters() if parameter.grad is not None}
            frozen = {name for name, _ in each.named_parameters()} - trained
            is_tied = each.config.weight_sharing == "tied"
            assert frozen == set() if is_tied else {name.split(".layer.")[1][:2] for name in frozen} == {"3."}

    @pytest.mark.parametrize("use_reentrant", [False, True])
    @pytest.mark.parametrize("decoder", PREFIX_DECODERS, ids=lambda options: options["weight_sharing"])
    def test_checkpointing_changes_no_gradient(self, batch, decoder, use_reentrant):
        model, gradients = tiny_model(**decoder, **NO_DROPOUT).train(), []
        for checkpointing in (False, True):
            model.zero_grad()
            if checkpointing:
                getattr(model, CHECKPOINTING)({"use_reentrant": use_reentrant})
            model(**batch).loss.backward()
            gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
        for expected, actual in zip(*gradients, strict=True):
            assert_close(actual, expected)
