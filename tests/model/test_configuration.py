import pytest
from huggingface_hub.errors import StrictDataclassError
from support.models import tiny_config
from transformers import AutoConfig

from modeling_xlm_swcm import XLMSWCMConfig


TWELVE_CUSTOM = ["custom"] * 12


@pytest.mark.parametrize(
    ("interval", "normal_layers"),
    [
        (1, [1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21]),
        (2, [2, 5, 8, 11, 14]),
        (3, [3, 7, 11]),
        (6, [6]),
        (12, []),
        (None, []),
    ],
)
def test_a_normal_layer_follows_every_interval_of_custom_layers_and_none_the_last(interval, normal_layers):
    config = XLMSWCMConfig(normal_layer_interval=interval)
    assert [index for index, block in enumerate(config.decoder_blocks) if block == "normal"] == normal_layers
    assert config.decoder_blocks.count("custom") == 12
    assert config.decoder_layers == len(config.decoder_blocks) == 12 + len(normal_layers)


def test_the_default_is_the_decoder_of_the_paper():
    assert XLMSWCMConfig().decoder_blocks == 3 * ["custom", "custom", "custom", "normal"] + 3 * ["custom"]
    assert XLMSWCMConfig().weight_sharing == "init"


def test_an_interval_that_does_not_divide_the_layers_leaves_a_short_end():
    assert tiny_config(normal_layer_interval=3).decoder_blocks == ["custom", "custom", "custom", "normal", "custom"]


def test_blocks_that_are_given_win_over_the_interval():
    blocks = ["normal", "custom", "normal"]
    config = XLMSWCMConfig(decoder_blocks=blocks, normal_layer_interval=1)
    assert config.decoder_blocks == blocks
    assert config.decoder_layers == 3


def test_the_encoder_and_the_decoder_each_say_how_many_layers_they_have():
    config = tiny_config()
    assert config.get_text_config(encoder=True).num_hidden_layers == 4
    assert config.get_text_config(decoder=True).num_hidden_layers == 5


@pytest.mark.parametrize(
    "options",
    [
        {"normal_layer_interval": None},
        {"decoder_blocks": ["normal", "custom"], "normal_layer_interval": 1},
        {"weight_sharing": "tied", "tie_word_embeddings": False},
        {"pad_token_id": 5, "bos_token_id": 6, "eos_token_id": [7, 8], "decoder_start_token_id": 9},
    ],
)
def test_json_gives_back_the_same_config(options, tmp_path):
    config = tiny_config(**options)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is XLMSWCMConfig
    assert loaded.to_json_string() == config.to_json_string()
    for name, value in options.items():
        assert getattr(loaded, name) == value


@pytest.mark.parametrize(
    ("field", "options"),
    [
        (r"normal_layer_interval .*\(got 0\). Use None for no", {"normal_layer_interval": 0}),
        ("normal_layer_interval", {"normal_layer_interval": -3}),
        ("normal_layer_interval", {"normal_layer_interval": "3"}),
        ("normal_layer_interval", {"normal_layer_interval": 1.5}),
        ("decoder_blocks", {"decoder_blocks": ["custom", "shared"]}),
        ("decoder_blocks", {"decoder_blocks": []}),
        ("decoder_blocks", {"decoder_blocks": "custom"}),
        ("num_attention_heads", {"num_attention_heads": 7}),
        ("num_attention_heads", {"num_attention_heads": 0}),
        ("hidden_size", {"hidden_size": 0}),
        ("vocab_size", {"vocab_size": 0}),
        ("hidden_dropout_prob must be from 0 to 1", {"hidden_dropout_prob": 1.5}),
        ("attention_probs_dropout_prob must be from 0 to 1", {"attention_probs_dropout_prob": -0.1}),
        ("initializer_range must not be negative", {"initializer_range": -1.0}),
        ("pad_token_id", {"pad_token_id": None}),
        ("pad_token_id", {"pad_token_id": 9, "vocab_size": 9}),
        ("max_position_embeddings must be at least 3", {"max_position_embeddings": 2}),
        ("decoder_layers", {"decoder_layers": 12}),
        (
            "decoder_layers is 3, but decoder_blocks has 2 layers. Leave out decoder_layers",
            {"decoder_blocks": ["custom", "custom"], "decoder_layers": 3},
        ),
        ("decoder_layers", {"decoder_layers": 0}),
        ("weight_sharing", {"weight_sharing": "copied"}),
        ("weight_sharing", {"weight_sharing": None}),
        ("weight_sharing", {"weight_sharing": "tied", "decoder_blocks": TWELVE_CUSTOM[1:]}),
        ("weight_sharing", {"weight_sharing": "tied", "decoder_blocks": TWELVE_CUSTOM + ["custom"]}),
    ],
    ids=str,
)
def test_a_value_that_describes_no_model_is_refused_by_name(field, options):
    with pytest.raises((ValueError, StrictDataclassError), match=field):
        XLMSWCMConfig(**options)


def test_tied_layers_need_one_custom_layer_per_encoder_layer_wherever_the_normal_ones_stand():
    config = XLMSWCMConfig(weight_sharing="tied", decoder_blocks=["normal"] + TWELVE_CUSTOM + ["normal"])
    assert config.decoder_layers == 14


def test_a_config_that_was_made_wrong_later_is_not_saved(tmp_path):
    config = tiny_config()
    config.decoder_blocks = ["custom"]
    with pytest.raises(StrictDataclassError, match="decoder_layers"):
        config.save_pretrained(tmp_path)
