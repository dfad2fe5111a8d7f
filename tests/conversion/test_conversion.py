"""The conversion: every tensor of the model is copied or initialised as the options say."""

import json
import re
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from support.encoders import (
    Tensors,
    edit_tensors,
    make_masked_lm,
    read_tensors,
    xlm_roberta_tokenizer,
)
from support.folders import bits, different_tensors, load
from transformers import PreTrainedModel

from modeling_xlm_swcm import XLMSWCMConfig, XLMSWCMForConditionalGeneration
from modeling_xlm_swcm.conversion import ConversionError, ConversionReport, convert, from_encoder
from modeling_xlm_swcm.conversion.options import ConversionOptions, DecoderPlan


# The package exports a function with the name of the module.
module = sys.modules["modeling_xlm_swcm.conversion.from_encoder"]

WORD_EMBEDDINGS = "model.encoder.embeddings.word_embeddings.weight"

# The paper's method: both attentions and both FFNs of a custom layer are copies of the encoder layer.
ATTENTION = {
    "q_proj": "attention.self.query",
    "k_proj": "attention.self.key",
    "v_proj": "attention.self.value",
    "out_proj": "attention.output.dense",
    "layer_norm": "attention.output.LayerNorm",
}
FEED_FORWARD = {"fc1": "intermediate.dense", "fc2": "output.dense", "layer_norm": "output.LayerNorm"}
HALVES = [{"self_attn": ATTENTION, "ffn1": FEED_FORWARD}, {"cross_attn": ATTENTION, "ffn2": FEED_FORWARD}]

# Number of encoder layers, options, and custom layer -> encoder layers of its two halves.
CASES = {
    "same map, X = 1": (4, {"normal_layer_interval": 1}, {0: (0, 0), 2: (1, 1), 4: (2, 2), 6: (3, 3)}),
    "same map, X = 3": (4, {"normal_layer_interval": 3}, {0: (0, 0), 1: (1, 1), 2: (2, 2), 4: (3, 3)}),
    "same map, X = 4": (4, {"normal_layer_interval": 4}, {0: (0, 0), 1: (1, 1), 2: (2, 2), 3: (3, 3)}),
    "same map, no X": (4, {"normal_layer_interval": None}, {0: (0, 0), 1: (1, 1), 2: (2, 2), 3: (3, 3)}),
    "interleaved, X = 1": (
        6,
        {"layer_map": "interleaved", "normal_layer_interval": 1},
        {0: (0, 1), 2: (2, 3), 4: (4, 5)},
    ),
    "interleaved, X = 2": (
        6,
        {"layer_map": "interleaved", "normal_layer_interval": 2},
        {0: (0, 1), 1: (2, 3), 3: (4, 5)},
    ),
    "interleaved, X = 3": (
        6,
        {"layer_map": "interleaved", "normal_layer_interval": 3},
        {0: (0, 1), 1: (2, 3), 2: (4, 5)},
    ),
    "interleaved, no X": (
        6,
        {"layer_map": "interleaved", "normal_layer_interval": None},
        {0: (0, 1), 1: (2, 3), 2: (4, 5)},
    ),
    "copies for normal layers": (
        4,
        {"normal_layers": "copy", "normal_layer_interval": 2},
        {0: (0, 0), 1: (1, 1), 2: (1, 1), 3: (2, 2), 4: (3, 3)},
    ),
    "copies for normal layers, interleaved": (
        6,
        {"normal_layers": "copy", "layer_map": "interleaved", "normal_layer_interval": 1},
        {0: (0, 1), 1: (0, 1), 2: (2, 3), 3: (2, 3), 4: (4, 5)},
    ),
    "normal layers left out": (
        4,
        {"normal_layers": "none", "normal_layer_interval": 1},
        {0: (0, 0), 1: (1, 1), 2: (2, 2), 3: (3, 3)},
    ),
}


@dataclass
class Conversion:
    encoder: PreTrainedModel
    model: XLMSWCMForConditionalGeneration
    report: ConversionReport
    made_from: dict[int, tuple[int, int]]


@pytest.fixture(scope="module", params=CASES)
def conversion(request) -> Conversion:
    num_layers, options, made_from = CASES[request.param]
    encoder = make_masked_lm(num_hidden_layers=num_layers)
    return Conversion(encoder, *from_encoder(encoder, decoder_init="shared", **options), made_from)


def expected_copies(conversion: Conversion) -> dict[str, str]:
    """Return the tensor of the masked LM for each tensor of the model, as the paper defines it."""
    copies = {"lm_head.bias": "lm_head.bias"}
    for name, _ in conversion.encoder.roberta.named_parameters():
        copies[f"model.encoder.{name}"] = f"roberta.{name}"
    for index, layers in conversion.made_from.items():
        for half, layer in zip(HALVES, layers, strict=True):
            for sublayer, modules in half.items():
                for target, source in modules.items():
                    for kind in ("weight", "bias"):
                        name = f"model.decoder.layers.{index}.{sublayer}.{target}.{kind}"
                        copies[name] = f"roberta.encoder.layer.{layer}.{source}.{kind}"
    return copies


def test_every_tensor_that_the_method_names_is_bit_equal_to_its_source(conversion):
    source, result = conversion.encoder.state_dict(), conversion.model.state_dict()
    for target, name in expected_copies(conversion).items():
        assert torch.equal(bits(result[target]), bits(source[name])), target


def test_the_report_lists_the_copies_that_the_method_names(conversion):
    expected = {target: name.removeprefix("roberta.") for target, name in expected_copies(conversion).items()}
    assert conversion.report.copied == expected


def test_custom_and_normal_layers_stand_where_the_method_puts_them(conversion):
    blocks = conversion.model.config.decoder_blocks
    assert [index for index, block in enumerate(blocks) if block == "custom"] == list(conversion.made_from)
    assert blocks[-1] == "custom"


def test_every_tensor_of_the_model_is_either_copied_or_new(conversion):
    tied = {}
    for name, tensor in conversion.model.state_dict().items():
        tied.setdefault(tensor.data_ptr(), []).append(name)
    told = [*conversion.report.copied, *conversion.report.new]
    assert len(told) == len(tied)
    for names in tied.values():
        assert sum(name in told for name in names) == 1, names


def test_every_tensor_of_the_source_is_either_copied_or_dropped(conversion):
    told = {*conversion.report.copied.values()} | conversion.report.dropped.keys()
    assert told == {name.removeprefix("roberta.") for name in conversion.encoder.state_dict()}
    assert all(name.startswith("lm_head.") for name in conversion.report.dropped)


def test_the_report_keeps_the_order_of_the_source(masked_lm):
    _, report = from_encoder(masked_lm)
    assert list(report.dropped) == [name for name in masked_lm.state_dict() if name in report.dropped]


def test_a_normal_layer_is_a_copy_of_nothing(conversion):
    result = conversion.model.state_dict()
    normal = [i for i, block in enumerate(conversion.model.config.decoder_blocks) if block == "normal"]
    names = [name for name in result if re.match(rf"model\.decoder\.layers\.({'|'.join(map(str, normal))})\.", name)]
    assert len(names) == 26 * len(normal)
    for name in names:
        others = [tensor for other, tensor in result.items() if other != name and tensor.shape == result[name].shape]
        # Biases and LayerNorms start at zero and one, so only matrices can differ.
        if result[name].ndim == 2:
            assert not any(torch.equal(result[name], other) for other in others), name


@pytest.mark.parametrize("index", range(4))
def test_the_second_half_of_a_custom_layer_computes_what_the_encoder_layer_computes(masked_lm, index):
    model, _ = from_encoder(masked_lm, decoder_init="shared", normal_layers="none")
    custom, layer = model.model.decoder.layers[index], masked_lm.roberta.encoder.layer[index]
    hidden = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(index))
    with torch.no_grad():
        attended = layer.attention(hidden)[0]
        encoded = layer.output(layer.intermediate(attended), attended)
        torch.testing.assert_close(custom.cross_attn(hidden, key_value_states=hidden)[0], attended)
        torch.testing.assert_close(custom.self_attn(hidden[:, :1])[0], layer.attention(hidden[:, :1])[0])
        torch.testing.assert_close(custom.ffn1(attended), encoded)
        torch.testing.assert_close(custom.ffn2(attended), encoded)


def test_the_encoder_encodes_as_before(masked_lm):
    model, _ = from_encoder(masked_lm, languages=["bo"], tokenizer=xlm_roberta_tokenizer())
    input_ids = torch.randint(4, 100, (2, 11), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        encoded = model.model.encoder(input_ids).last_hidden_state
        assert torch.equal(encoded, masked_lm.roberta(input_ids).last_hidden_state)


def off_by_a_bit(tensor: torch.Tensor):
    tensor.view(torch.int32)[-1] ^= 1


@pytest.mark.parametrize(("decoder", "sublayer"), [("paper", "ffn2"), ("prefix", "ffn")])
def test_a_copy_in_memory_that_is_off_by_a_bit_is_noticed(masked_lm, monkeypatch, decoder, sublayer):
    def load_wrongly(plan, state_dict, instantiate_model=module.instantiate_model):
        model = instantiate_model(plan, state_dict)
        off_by_a_bit(model.get_parameter(f"model.decoder.layers.1.{sublayer}.fc1.bias").data)
        return model

    monkeypatch.setattr(module, "instantiate_model", load_wrongly)
    with pytest.raises(
        RuntimeError, match=rf"decoder\.layers\.1\.{sublayer}\.fc1\.bias differs from .+\. Report this bug\.$"
    ):
        from_encoder(masked_lm, decoder=decoder)


@pytest.mark.parametrize(("decoder", "sublayer"), [("paper", "cross_attn"), ("prefix", "self_attn")])
def test_a_copy_in_the_file_that_is_off_by_a_bit_is_noticed(encoder_folder, tmp_path, monkeypatch, decoder, sublayer):
    def save_wrongly(model, folder, save_pretrained=XLMSWCMForConditionalGeneration.save_pretrained):
        off_by_a_bit(model.get_parameter(f"model.decoder.layers.1.{sublayer}.k_proj.weight").data[3])
        save_pretrained(model, folder)

    monkeypatch.setattr(XLMSWCMForConditionalGeneration, "save_pretrained", save_wrongly)
    with pytest.raises(
        RuntimeError, match=rf"layers\.1\.{sublayer}\.k_proj\.weight differs from .+\. Report this bug\.$"
    ):
        convert(encoder_folder, tmp_path / "model", decoder=decoder)
    assert list(tmp_path.iterdir()) == []


def plan_decoder(num_layers: int, options: dict) -> DecoderPlan:
    return ConversionOptions(**options).plan_decoder(num_layers)


@given(st.integers(1, 40), st.one_of(st.none(), st.integers(1, 45)), st.sampled_from(["random", "none"]))
def test_the_same_map_takes_every_encoder_layer_once_and_in_order(num_layers, interval, normal_layers):
    options = {"layer_map": "same", "normal_layer_interval": interval, "normal_layers": normal_layers}
    plan = plan_decoder(num_layers, options)
    assert [layers for layers in plan if layers] == [(index, index) for index in range(num_layers)]
    check_normal_layers(plan, interval if normal_layers == "random" else None)


@given(st.integers(1, 20), st.one_of(st.none(), st.integers(1, 25)), st.sampled_from(["random", "none"]))
def test_the_interleaved_map_takes_every_encoder_layer_once_for_one_half(half_as_many, interval, normal_layers):
    options = {"layer_map": "interleaved", "normal_layer_interval": interval, "normal_layers": normal_layers}
    plan = plan_decoder(2 * half_as_many, options)
    custom = [layers for layers in plan if layers]
    assert [layer for layers in custom for layer in layers] == list(range(2 * half_as_many))
    assert all(first % 2 == 0 for first, _ in custom)
    check_normal_layers(plan, interval if normal_layers == "random" else None)


@given(st.integers(1, 20), st.integers(1, 25), st.sampled_from(["same", "interleaved"]))
def test_copies_stand_where_normal_layers_would_and_repeat_the_layer_before(half_as_many, interval, layer_map):
    options = {"layer_map": layer_map, "normal_layer_interval": interval}
    plain = plan_decoder(2 * half_as_many, options | {"normal_layers": "random"})
    if None not in plain:
        with pytest.raises(
            ConversionError, match='"copy"` needs at least one normal layer. .* inserts no normal layer'
        ):
            plan_decoder(2 * half_as_many, options | {"normal_layers": "copy"})
        return
    copied = plan_decoder(2 * half_as_many, options | {"normal_layers": "copy"})
    assert copied == [layers or plain[index - 1] for index, layers in enumerate(plain)]


def check_normal_layers(plan: list, interval: int | None):
    """Check that X custom layers precede each normal layer and that the last layer is a custom layer."""
    runs = [len(run) for run in "".join("c" if layers else "n" for layers in plan).split("n")]
    assert all(run == interval for run in runs[:-1])
    assert 1 <= runs[-1] <= (interval or runs[-1])


def test_twelve_layers_make_fifteen_as_in_the_paper():
    plan = plan_decoder(12, {"layer_map": "same", "normal_layer_interval": 3, "normal_layers": "random"})
    assert [index for index, layers in enumerate(plan) if layers is None] == [3, 7, 11]
    assert len(plan) == 15


@pytest.mark.parametrize("decoder", ["paper", "prefix"])
def test_a_random_decoder_has_the_shapes_but_nothing_of_the_encoder(masked_lm, decoder):
    shared, _ = from_encoder(masked_lm, decoder=decoder, decoder_init="shared")
    model, report = from_encoder(masked_lm, decoder=decoder, decoder_init="random")
    result = model.state_dict()
    assert {k: v.shape for k, v in result.items()} == {k: v.shape for k, v in shared.state_dict().items()}
    encoder = [tensor for name, tensor in result.items() if name.startswith("model.encoder.")]
    for name, tensor in result.items():
        if name.startswith("model.decoder.layers."):
            assert not any(torch.equal(tensor, other) for other in encoder if other.shape == tensor.shape), name
            assert name in report.new


@pytest.mark.parametrize("decoder", ["paper", "prefix"])
def test_a_random_decoder_keeps_encoder_and_output_bias(masked_lm, decoder):
    model, report = from_encoder(masked_lm, decoder=decoder, decoder_init="random")
    encoder = masked_lm.roberta.state_dict()
    assert different_tensors(encoder, model.model.encoder.state_dict()) == []
    assert report.copied == {f"model.encoder.{name}": name for name in encoder} | {"lm_head.bias": "lm_head.bias"}


@pytest.mark.parametrize(
    "options", [{}, {"decoder": "paper"}, {"normal_layers": "none"}, {"normal_layer_interval": 1}]
)
def test_parameter_counts_are_those_of_the_models(encoder_folder, tmp_path, options):
    for weight_sharing in ("init", "tied"):
        report = convert(encoder_folder, tmp_path / weight_sharing, weight_sharing=weight_sharing, **options)
        assert report.parameters[weight_sharing] == load(tmp_path / weight_sharing).num_parameters()
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("init", "tied")]
    assert sizes[1] < 0.75 * sizes[0]


def test_tied_custom_layers_are_the_encoder_layers_after_loading(encoder_folder, tmp_path):
    convert(encoder_folder, tmp_path / "tied", decoder="paper", weight_sharing="tied")
    model = load(tmp_path / "tied")
    source = read_tensors(encoder_folder)
    encoder = dict(model.model.encoder.encoder.layer.named_parameters())
    decoder = dict(model.model.decoder.layers.named_parameters(remove_duplicate=False))
    for index, layer in enumerate((0, 1, 2, None, 3)):
        for sublayer, modules in {**HALVES[0], **HALVES[1]}.items() if layer is not None else ():
            for target, name in modules.items():
                shared = decoder[f"{index}.{sublayer}.{target}.weight"]
                assert shared is encoder[f"{layer}.{name}.weight"]
                assert torch.equal(bits(shared), bits(source[f"roberta.encoder.layer.{layer}.{name}.weight"]))


def test_a_cast_is_the_cast_of_the_source(encoder_folder, tmp_path):
    report = convert(encoder_folder, tmp_path / "model", dtype="bfloat16")
    source, result = read_tensors(encoder_folder), read_tensors(tmp_path / "model")
    assert {tensor.dtype for tensor in result.values()} == {torch.bfloat16}
    for target, name in report.copied.items():
        original = source[name] if name in source else source[f"roberta.{name}"]
        assert torch.equal(bits(result[target]), bits(original.to(torch.bfloat16))), target


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_dtype_of_the_source_is_kept(own_encoder, tmp_path, dtype):
    edit_tensors(own_encoder, lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()})
    convert(own_encoder, tmp_path / "model", languages=["bo"])
    assert {tensor.dtype for tensor in read_tensors(tmp_path / "model").values()} == {dtype}
    assert load(tmp_path / "model").dtype == dtype


@pytest.mark.parametrize("dtype", ["int8", "half precision", torch.long, "float8_e5m2"])
def test_another_dtype_is_refused(masked_lm, dtype):
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(ConversionError, match=f"A model cannot have the dtype {name}. Use float32, bfloat16 or"):
        from_encoder(masked_lm, dtype=dtype)


def test_what_starts_random_depends_on_the_seed_alone(encoder_folder):
    states = []
    for seed, outside in ((1, 10), (1, 20), (2, 20)):
        torch.manual_seed(outside)
        states.append(from_encoder(encoder_folder, decoder="paper", seed=seed, languages=["bo"])[0].state_dict())
    assert different_tensors(states[0], states[1]) == []
    different = different_tensors(states[0], states[2])
    assert {name for name in different if "layers.3." not in name} == {
        *(WORD_EMBEDDINGS, "model.decoder.embeddings.word_embeddings.weight", "lm_head.weight")
    }
    assert "model.decoder.layers.3.ffn.fc1.weight" in different


def test_the_callers_random_numbers_are_left_alone(encoder_folder, tmp_path):
    before = torch.get_rng_state()
    convert(encoder_folder, tmp_path / "model", languages=["bo"], seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_report_in_a_notebook_does_not_list_every_tensor(masked_lm):
    _, report = from_encoder(masked_lm)
    assert not any(name in repr(report) for name in report.copied) and report.family in repr(report)


def test_a_report_prints_square_brackets_as_they_are(own_encoder, tmp_path, capsys):
    report = convert(own_encoder, tmp_path / "model", languages=["bo"], dry_run=True)
    report.source = "[a][/x]"
    report.print(Console())
    assert "[a][/x]" in capsys.readouterr().out


def test_a_dry_run_reports_and_writes_nothing(own_encoder, tmp_path):
    wet = convert(own_encoder, tmp_path / "model", languages=["bo"])
    before = sorted(tmp_path.rglob("*"))
    dry = convert(own_encoder, tmp_path / "new" / "folder", languages=["bo"], dry_run=True)
    assert sorted(tmp_path.rglob("*")) == before
    assert dry.to_json() == wet.to_json()


def test_the_report_that_is_written_counts_what_it_lists(encoder_folder, tmp_path):
    options = {"decoder": "paper", "decoder_init": "shared"}
    report = convert(encoder_folder, tmp_path / "model", languages=["bo", "kk-Arab"], **options)
    text = (tmp_path / "model" / "conversion_report.json").read_text(encoding="utf-8")
    written = json.loads(text)
    assert text == report.to_json()
    assert written["counts"] == {kind: len(written[kind]) for kind in ("copied", "new", "new_rows", "dropped")}
    assert min(written["counts"].values()) > 0
    assert written["source"] == str(encoder_folder)
    assert list(written["language_ids"]) == ["bo", "kk-Arab"]


def test_both_functions_report_the_options_alike(encoder_folder, tmp_path):
    options = {"languages": ("bo",), "dtype": torch.bfloat16, "seed": 4}
    _, report = from_encoder(encoder_folder, **options)
    assert convert(encoder_folder, tmp_path / "model", **options).options == report.options


def test_both_functions_make_the_same_model(encoder_folder, tmp_path):
    options = {"languages": ["bo"], "normal_layer_interval": 2, "seed": 4}
    convert(encoder_folder, tmp_path / "model", **options)
    model, _ = from_encoder(encoder_folder, **options)
    assert different_tensors(load(tmp_path / "model").state_dict(), model.state_dict()) == []


def test_a_seed_of_numpy_is_saved(masked_lm, tmp_path):
    model, report = from_encoder(masked_lm, seed=np.int64(3))
    model.save_pretrained(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "conversion_report.json").read_text())["options"]["seed"] == 3


def test_a_model_has_no_revision(masked_lm):
    with pytest.raises(ConversionError, match="^`revision` needs a Hub id, but `encoder` is a model. Remove"):
        from_encoder(masked_lm, revision="main")


def test_rounded_copies_are_reported(encoder_folder):
    assert from_encoder(encoder_folder)[1].dtype is None
    encoder = make_masked_lm()
    encoder.get_input_embeddings().half()
    report = from_encoder(encoder)[1]
    console = Console(width=200)
    with console.capture() as printed:
        report.print(console)
    assert report.dtype == "float16" and "each bit-equal to its source in float16." in printed.get()


def test_a_failed_conversion_leaves_no_folder(tmp_path):
    encoder = make_masked_lm()
    with torch.no_grad():
        encoder.get_input_embeddings().weight[7, 7] = 1e6
    encoder.save_pretrained(tmp_path / "encoder")
    xlm_roberta_tokenizer().save_pretrained(tmp_path / "encoder")
    with pytest.raises(ConversionError, match="too large for float16"):
        convert(tmp_path / "encoder", tmp_path / "new" / "folder" / "model", dtype="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["encoder"]


def test_an_option_that_does_not_exist_is_a_type_error(encoder_folder, tmp_path):
    for function in (from_encoder, lambda encoder, **options: convert(encoder, tmp_path / "model", **options)):
        with pytest.raises(TypeError, match="layermap"):
            function(encoder_folder, layermap="interleaved")


def test_no_interval_means_no_normal_layers_in_the_config_too(encoder_folder, tmp_path):
    convert(encoder_folder, tmp_path / "model", normal_layer_interval=None)
    config = XLMSWCMConfig.from_pretrained(tmp_path / "model")
    assert (config.normal_layer_interval, config.decoder_blocks) == (None, 4 * ["custom"])


def test_a_value_that_an_option_does_not_have_is_refused(masked_lm):
    for option in ("decoder", "layer_map", "decoder_init", "normal_layers", "weight_sharing"):
        with pytest.raises(ConversionError, match=f'`{option}` cannot be "diagonal". Use "'):
            from_encoder(masked_lm, **{option: "diagonal"})


def test_weights_that_are_no_numbers_are_named_and_converted(own_encoder, tmp_path, caplog):
    def spoil(tensors: Tensors) -> Tensors:
        tensors["roberta.encoder.layer.2.output.dense.weight"][3, 5] = float("nan")
        tensors["lm_head.bias"][7] = float("inf")
        return tensors

    edit_tensors(own_encoder, spoil)
    report = convert(own_encoder, tmp_path / "model", decoder="paper")
    assert report.not_finite == ["lm_head.bias", "encoder.layer.2.output.dense.weight"]
    assert all(any(name in message for message in caplog.messages) for name in report.not_finite)
    assert load(tmp_path / "model").model.decoder.layers[2].ffn1.fc2.weight[3, 5].isnan()
