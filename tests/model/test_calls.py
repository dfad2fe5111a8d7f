"""Calls that Transformers allows and that need care here, for every kind of decoder."""

import pytest
import torch
import transformers
from accelerate.hooks import attach_align_device_hook_on_blocks
from huggingface_hub.errors import StrictDataclassError
from packaging.version import Version
from support.models import ATTENTIONS, PREFIX_DECODERS, tiny_config, tiny_model, tiny_modern_model
from torch.testing import assert_close
from transformers import DynamicCache, EncoderDecoderCache, StaticCache

from modeling_xlm_swcm.compat_xlm_swcm import CACHE


MODELS = {
    "custom": tiny_model,
    "custom-tied": lambda: tiny_model(weight_sharing="tied"),
    "prefix": lambda: tiny_model(**PREFIX_DECODERS[0]),
    "prefix-tied": lambda: tiny_model(**PREFIX_DECODERS[1]),
    "modern": tiny_modern_model,
    "modern-tied": lambda: tiny_modern_model(weight_sharing="tied"),
    "modern-custom": lambda: tiny_modern_model(normal_layer_interval=2),
}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


@pytest.fixture
def source() -> dict[str, torch.Tensor]:
    tokens = torch.randint(3, 99, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(tokens)
    tokens[1, 6:], mask[1, 6:] = 1, 0
    return {"input_ids": tokens, "attention_mask": mask}


@pytest.fixture
def target() -> torch.Tensor:
    tokens = torch.randint(3, 99, (3, 7), generator=torch.Generator().manual_seed(2))
    tokens[:, 0] = 0
    return tokens


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"), reason="Transformers resolves negative indices since 5.23"
)
@torch.no_grad()
def test_some_hidden_states_are_selected_by_index(model, source, target):
    expected = model(**source, decoder_input_ids=target, output_hidden_states=True)
    actual = model(**source, decoder_input_ids=target, output_hidden_states=[1, -1])
    for part in ("encoder_hidden_states", "decoder_hidden_states"):
        for index in (1, -1):
            assert_close(getattr(actual, part)[index], getattr(expected, part)[index])
    assert_close(actual.logits, expected.logits)


@torch.no_grad()
def test_a_static_cache_takes_a_mask_of_its_own_length(model, source, target):
    expected = model(**source, decoder_input_ids=target).logits
    sizes = (12, source["input_ids"].shape[1])
    cache = EncoderDecoderCache(*(StaticCache(config=model.config, max_cache_len=size) for size in sizes))
    mask = torch.zeros(3, 12, dtype=torch.long)
    for start, end in ((0, 4), (4, 7)):
        mask[:, :end] = 1
        tokens = {"decoder_input_ids": target[:, start:end], "decoder_attention_mask": mask}
        logits = model(**source, **tokens, **{CACHE: cache}, use_cache=True).logits
        assert_close(logits, expected[:, start:end], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_prompt_may_begin_with_the_start_token_of_the_call(model, source):
    padded = torch.tensor([[1, 5, 7], [1, 5, 9], [1, 1, 5]])
    options = {"decoder_start_token_id": 5, "max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    tokens = model.generate(**source, decoder_input_ids=padded, decoder_attention_mask=padded.ne(1).long(), **options)
    assert tokens.shape == (3, 6) and torch.equal(tokens[:, :3], padded)
    alone = model.generate(
        **{name: value[2:] for name, value in source.items()}, decoder_input_ids=padded[2:, 2:], **options
    )
    assert torch.equal(tokens[2:, 2:], alone)


@torch.no_grad()
def test_a_decoder_layer_may_be_on_another_device_than_its_encoder_layer(model, source, target, monkeypatch):
    """The device "meta" stands for a second GPU. What comes back from it has zeros."""
    move = torch.Tensor.to

    def to(tensor, *args, **kwargs):
        device = args[0] if args else kwargs.get("device")
        if tensor.is_meta and isinstance(device, str | torch.device) and torch.device(device).type == "cpu":
            return torch.zeros(tensor.shape, dtype=tensor.dtype)
        return move(tensor, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", to)
    last = len(model.model.decoder.layers) - 1
    devices = dict.fromkeys(
        [name for name, module in model.named_modules() if name and not [*module.children()]], "cpu"
    )
    layer = f"model.decoder.layers.{last}"
    devices = {name: device for name, device in devices.items() if not name.startswith("model.decoder.layers")}
    devices |= {f"model.decoder.layers.{index}": "cpu" for index in range(last)} | {"": "cpu", layer: "meta"}
    attach_align_device_hook_on_blocks(
        model,
        execution_device=devices,
        offload=dict.fromkeys(filter(None, devices), False),
        skip_keys=model._skip_keys_device_placement,
    )
    model.get_submodule(layer).to("meta")
    for use_cache in (False, True):
        for _ in range(2):
            logits = model(**source, decoder_input_ids=target, use_cache=use_cache).logits
            assert logits.device.type == "cpu"
    assert {parameter.device.type for parameter in model.get_encoder().parameters()} == {"cpu"}


@pytest.mark.parametrize("model", ["custom", "modern-custom"], indirect=True)
@pytest.mark.parametrize("attention", ATTENTIONS)
@torch.no_grad()
def test_the_mask_of_the_source_does_not_grow_with_the_target(model, source, target, attention):
    model.set_attn_implementation(attention)
    masks = []
    for layer in model.model.decoder.layers:
        layer.cross_attn.register_forward_pre_hook(lambda module, inputs: masks.append(inputs[1]))
    model(**source, decoder_input_ids=target)
    assert [tuple(mask.shape) for mask in masks] == 5 * [(3, 1, 1, 9)]


def test_labels_need_a_start_token(source, target):
    model = tiny_model(decoder_start_token_id=None)
    with pytest.raises(ValueError, match="decoder_start_token_id of the config is None. Set it, for example to"):
        model(**source, labels=target)


def test_the_decoder_of_a_tied_prefix_model_cannot_run_alone(source, target):
    for name in ("prefix-tied", "modern-tied"):
        model = MODELS[name]()
        states = model.get_encoder()(**source, output_hidden_states=True).hidden_states
        with pytest.raises(ValueError, match="A tied prefix decoder has no weights"):
            model.get_decoder()(input_ids=target, encoder_hidden_states=states)


def test_a_cache_without_a_part_for_the_source(model, source, target):
    with pytest.raises(ValueError, match=r"The cache must be an EncoderDecoderCache \(got DynamicCache\)"):
        model(**source, decoder_input_ids=target, **{CACHE: DynamicCache()})


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"is_encoder_decoder": False}, "is_encoder_decoder must be True. Leave it out"),
        ({"is_decoder": True}, "is_decoder and add_cross_attention must be False"),
        ({"decoder_blocks": ["other"]}, '"custom" and "normal", or only of "prefix" .*Correct'),
    ],
)
def test_configs_that_no_decoder_fits(options, error):
    with pytest.raises(StrictDataclassError, match=error):
        tiny_config(**options)
