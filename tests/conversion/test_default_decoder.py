"""The decoder that a conversion builds if the decoder is not named."""

import pytest
from support.commands import run

from modeling_xlm_swcm import cli
from modeling_xlm_swcm.conversion import ConversionError, from_encoder
from modeling_xlm_swcm.conversion.options import ConversionOptions


# options that only the paper's decoder has
PAPER = [
    {"normal_layer_interval": 3},
    {"normal_layer_interval": 2},
    {"normal_layers": "random"},
    {"normal_layers": "copy"},
    {"normal_layers": "none"},
    {"layer_map": "interleaved"},
    {"decoder_init": "silent"},
]
# options that both decoders have
BOTH = [
    {},
    {"layer_map": "same"},
    {"decoder_init": "shared"},
    {"decoder_init": "random"},
    {"weight_sharing": "init"},
    {"weight_sharing": "tied"},
]
CASES = [(options, "paper") for options in PAPER] + [(options, "prefix") for options in BOTH]


@pytest.mark.parametrize(("options", "decoder"), [*CASES, ({"normal_layer_interval": None}, "paper")], ids=str)
def test_the_options_choose_the_decoder(options, decoder):
    assert ConversionOptions(**options) == ConversionOptions(decoder=decoder, **options)
    assert ConversionOptions(**options).decoder == decoder


@pytest.mark.parametrize(("options", "decoder"), CASES, ids=str)
def test_the_command_line_chooses_as_python_does(options, decoder, output, monkeypatch):
    chosen = []

    def record(encoder, output, *, revision, overwrite, dry_run, license, **options):
        chosen.append(ConversionOptions(**options))
        raise ConversionError("This test converts nothing.")

    monkeypatch.setattr(cli, "convert", record)
    run("encoder", output, *(f"--{name.replace('_', '-')}={value}" for name, value in options.items()))
    assert chosen == [ConversionOptions(**options)]


@pytest.mark.parametrize("option", [{"normal_layers": "random"}, {"normal_layer_interval": 3}])
def test_a_prefix_decoder_refuses_normal_layers_that_are_asked_for(option):
    with pytest.raises(ConversionError, match='^`decoder="prefix"` cannot be combined with `normal_layer'):
        ConversionOptions(decoder="prefix", **option)


def test_an_interval_that_is_no_number_is_refused():
    with pytest.raises(ConversionError, match=r"must be a whole number above 0 \(got '3'\)"):
        ConversionOptions(normal_layer_interval="3")


def test_the_report_holds_the_options_that_were_chosen(masked_lm):
    fields = ("decoder", "decoder_init", "normal_layers", "normal_layer_interval")
    for given, chosen in [
        ({}, ("prefix", "shared", "none", None)),
        ({"decoder": "paper"}, ("paper", "silent", "random", 3)),
    ]:
        options = from_encoder(masked_lm, **given)[1].options
        assert tuple(options[name] for name in fields) == chosen
        assert ConversionOptions(**options).to_dict() == options


def test_by_default_each_decoder_layer_is_a_copy_of_an_encoder_layer(masked_lm):
    model, report = from_encoder(masked_lm)
    assert model.config.decoder_blocks == 4 * ["prefix"]
    assert not [name for name in report.new if name.startswith("model.decoder.layers.")]
