"""The silent start: an untrained decoder computes the output of the encoder and its masked LM."""

import json
import re
from collections.abc import Callable

import pytest
import torch
from support.encoders import (
    Tensors,
    edit_config,
    edit_tensors,
    make_encoder,
    make_masked_lm,
    read_tensors,
    xlm_roberta_tokenizer,
)
from support.folders import bits, load
from support.models import assert_close
from torch import nn
from transformers import (
    BertForMaskedLM,
    CamembertForMaskedLM,
    ElectraForMaskedLM,
    PreTrainedModel,
    RobertaForMaskedLM,
    XLMRobertaForMaskedLM,
)

from modeling_xlm_swcm.conversion import ConversionError, convert, from_encoder
from modeling_xlm_swcm.conversion.options import ConversionOptions


TARGET = torch.tensor([[0, 9, 20, 21, 22, 2]])
# A causal mask in the form of an encoder's attention mask.
CAUSAL = torch.full((6, 6), torch.finfo(torch.float32).min).triu(1)[None, None]
PLANS = {"X = 3": {}, "X = 1": {"normal_layer_interval": 1}, "no normal layers": {"normal_layers": "none"}}
HEADS = {
    "xlm-roberta": XLMRobertaForMaskedLM,
    "roberta": RobertaForMaskedLM,
    "camembert": CamembertForMaskedLM,
    "bert": BertForMaskedLM,
    "electra": ElectraForMaskedLM,
}


def assert_silent(masked_lm: PreTrainedModel, **options):
    """Check that the model and the masked LM with a causal mask compute the same logits."""
    model, _ = from_encoder(masked_lm, decoder="paper", **options)
    with torch.no_grad():
        actual = model(torch.tensor([[0, 7, 2]]), decoder_input_ids=TARGET).logits.float()
        expected = masked_lm(TARGET, attention_mask=CAUSAL.to(masked_lm.dtype)).logits.float()
    # The epsilon of a second LayerNorm changes its input slightly.
    tolerance = 1e-4 if model.dtype == torch.float32 else 5e-2
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("options", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("num_layers", [1, 4])
def test_a_silent_decoder_computes_the_masked_lm(options, num_layers):
    assert_silent(make_masked_lm(num_hidden_layers=num_layers, layer_norm_eps=1e-5), **options)


@pytest.mark.parametrize("model_class", HEADS.values(), ids=HEADS)
def test_heads_of_other_models_are_reused_alike(model_class):
    options = {"embedding_size": 32} if model_class is ElectraForMaskedLM else {}
    assert_silent(make_encoder(model_class, xlm_roberta_tokenizer(), **options))


def test_a_silent_decoder_in_bfloat16_computes_the_masked_lm():
    assert_silent(make_masked_lm(layer_norm_eps=1e-5).bfloat16())


def without(*modules: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.startswith(modules)}


@pytest.mark.parametrize("tied", [True, False])
def test_an_output_matrix_or_bias_of_its_own_is_seen(own_encoder, tied):
    """Transformers loads the output matrix from the file and ignores `tie_word_embeddings`."""

    def untie(tensors: Tensors) -> Tensors:
        words, bias = tensors["roberta.embeddings.word_embeddings.weight"], tensors["lm_head.bias"]
        return tensors | {
            "lm_head.decoder.weight": words.clone() if tied else words + 1,
            "lm_head.decoder.bias": bias + 1,
        }

    edit_tensors(own_encoder, untie)
    edit_config(own_encoder, tie_word_embeddings=False)
    masked_lm = XLMRobertaForMaskedLM.from_pretrained(own_encoder).eval()
    model, report = from_encoder(own_encoder, decoder="paper")
    assert torch.equal(model.lm_head.bias, masked_lm.lm_head.decoder.bias)
    assert ("lm_head_transform.dense.weight" in report.copied) is tied
    assert "lm_head.decoder.weight" in report.dropped
    if tied:
        with torch.no_grad():
            logits = model(torch.tensor([[0, 7, 2]]), decoder_input_ids=TARGET).logits
            assert_close(logits, masked_lm(TARGET, attention_mask=CAUSAL).logits)


@pytest.mark.parametrize("lacking", [(), ("lm_head.dense",), ("lm_head.layer_norm",), ("lm_head.",)], ids=str)
@torch.no_grad()
def test_without_a_whole_head_of_one_matrix_a_silent_decoder_computes_the_encoder(own_encoder, lacking):
    masked_lm = XLMRobertaForMaskedLM.from_pretrained(own_encoder).eval()
    edit_tensors(own_encoder, without(*lacking))
    edit_config(own_encoder, tie_word_embeddings=bool(lacking))
    model, report = from_encoder(own_encoder, decoder="paper")
    assert report.new["lm_head_transform.dense.weight"] == "identity"
    transform, some = model.lm_head_transform, torch.randn(3, 32)
    assert_close(transform(some), nn.functional.layer_norm(nn.functional.gelu(some), (32,), eps=1e-12))
    kept = {name for name in read_tensors(own_encoder) if re.match(r"lm_head\.(dense|layer_norm)", name)}
    assert {name for name, why in report.dropped.items() if "no transform or a new transform" in why} == kept
    states = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(1))
    actual = model.model.decoder(TARGET, encoder_hidden_states=states).last_hidden_state
    assert_close(actual, masked_lm.roberta(TARGET, attention_mask=CAUSAL).last_hidden_state)


def test_what_is_silent_is_zero_in_the_file_and_learns_from_the_first_step(encoder_folder, tmp_path):
    report = convert(encoder_folder, tmp_path / "model", decoder="paper")
    model = load(tmp_path / "model")
    zeros = {name for name, how in report.new.items() if how == "zero"}
    assert len(zeros) == 2 * (2 * 4 + 3) and not any(model.get_parameter(name).any() for name in zeros)
    model.train()(torch.tensor([[0, 7, 8, 2]]), labels=TARGET).loss.backward()
    assert all(model.get_parameter(name).grad.any() for name in zeros)


@pytest.mark.parametrize("options", PLANS.values(), ids=PLANS)
def test_a_silent_start_says_of_every_tensor_where_it_is_from(masked_lm, options):
    model, report = from_encoder(masked_lm, decoder="paper", **options)
    source, result = masked_lm.state_dict(), model.state_dict()
    for target, name in report.copied.items():
        name = name if name in source else f"roberta.{name}"
        assert torch.equal(bits(result[target]), bits(source[name])), target
    told = {name for name in result if not name.startswith(("model.decoder.embeddings.", "lm_head.weight"))}
    assert {*report.copied} | report.new.keys() == told and not {*report.copied} & report.new.keys()
    assert not [name for name in report.dropped if "dense" in name or "layer_norm" in name]


def test_the_papers_decoder_starts_silent_unless_it_is_asked_for_otherwise():
    for options, start in [
        ({}, "silent"),
        ({"normal_layers": "none"}, "silent"),
        ({"normal_layers": "copy"}, "shared"),
        ({"layer_map": "interleaved"}, "shared"),
        ({"weight_sharing": "tied"}, "shared"),
    ]:
        assert ConversionOptions(decoder="paper", **options).decoder_init == start
        if start == "shared":
            ((option, value),) = options.items()
            with pytest.raises(ConversionError) as refused:
                ConversionOptions(decoder_init="silent", **options)
            wanted = (
                f'`decoder_init="silent"` cannot be combined with `{option}="{value}"`. Use `decoder_init="shared"`.'
            )
            assert str(refused.value) == wanted


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("decoder_init", "random", '`decoder_init="shared"`'),
        ("layer_map", "interleaved", '`layer_map="same"`'),
        ("normal_layers", "copy", '`normal_layers="random"` or `normal_layers="none"`'),
    ],
)
def test_tied_weights_name_the_option_that_does_not_fit(option, value, allowed):
    with pytest.raises(ConversionError) as refused:
        ConversionOptions(weight_sharing="tied", **{option: value})
    wanted = f'`weight_sharing="tied"` cannot be combined with `{option}="{value}"`. Use {allowed}.'
    assert str(refused.value) == wanted


@pytest.mark.parametrize(
    ("option", "value"), [("layer_map", '"interleaved"'), ("normal_layers", '"copy"'), ("normal_layer_interval", "2")]
)
def test_a_prefix_decoder_names_the_option_that_does_not_fit(option, value):
    with pytest.raises(ConversionError) as refused:
        ConversionOptions(decoder="prefix", **{option: json.loads(value)})
    assert str(refused.value) == (
        f'`decoder="prefix"` cannot be combined with `{option}={value}`. A prefix decoder has one layer for each '
        "encoder layer. Leave out this option."
    )
