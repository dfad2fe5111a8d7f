"""The paper's decoder with the layers of ModernBERT."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from peft import LoraConfig, get_peft_model
from support.encoders import make_encoder, xlm_roberta_tokenizer
from support.models import Batch, assert_close, logits_of, random_tokens, tiny_modern_config, tiny_modern_model
from torch import nn
from transformers import ModernBertForMaskedLM

from modeling_xlm_swcm import (
    XLMSWCMModernForConditionalGeneration,
    long_attention_xlm_swcm,
    modern_layers_xlm_swcm,
    modern_xlm_swcm,
)
from modeling_xlm_swcm.compat_xlm_swcm import CACHE
from modeling_xlm_swcm.conversion import from_encoder
from modeling_xlm_swcm.modern_layers_xlm_swcm import MODERN_CUSTOM_LAYER_SOURCES, rotate


PAPER = {"normal_layer_interval": 2}


@pytest.fixture(params=["init", "tied"])
def model(request) -> XLMSWCMModernForConditionalGeneration:
    return tiny_modern_model(weight_sharing=request.param, attention_bias=True, **PAPER)


@pytest.fixture
def source() -> Batch:
    """Return a right-padded and a left-padded source."""
    tokens, mask = random_tokens(3, 14), torch.ones(3, 14, dtype=torch.long)
    mask[1, 9:] = mask[2, :3] = 0
    return {"input_ids": tokens.masked_fill(mask == 0, 1), "attention_mask": mask}


@pytest.fixture
def target() -> torch.Tensor:
    return random_tokens(3, 11, seed=4)


def make_causal_masks(length: int) -> dict[str, torch.Tensor]:
    """Return the masks of global and local layers. A local layer of a tiny model reads four tokens before a token."""
    full = torch.ones(length, length, dtype=torch.bool).tril()
    return {"full_attention": full, "sliding_attention": full.triu(-4)}


def attend(
    module: nn.Module,
    states: torch.Tensor,
    others: torch.Tensor,
    mask: torch.Tensor,
    rotation: tuple[torch.Tensor, torch.Tensor] | None,
) -> torch.Tensor:
    """Return the output of a ModernBERT attention of some states to others, with all weights of the projection."""
    query, key, value = (
        module.Wqkv(each).chunk(3, dim=-1)[part].unflatten(-1, (4, -1)).transpose(1, 2)
        for part, each in enumerate((states, others, others))
    )
    if rotation is not None:
        query, key = rotate(query, rotation), rotate(key, rotation)
    attended = nn.functional.scaled_dot_product_attention(query, key, value, mask)
    return module.Wo(attended.transpose(1, 2).flatten(2))


def decode(model: XLMSWCMModernForConditionalGeneration, source: Batch, target: torch.Tensor) -> torch.Tensor:
    """Return the logits, computed layer by layer as the paper orders the sublayers, each as `x + f(norm(x))`."""
    encoder, decoder = model.model.encoder, model.model.decoder
    source_states = encoder(**source).last_hidden_state
    states, masks = decoder.embeddings(target), make_causal_masks(target.shape[1])
    source_mask = source["attention_mask"][:, None, None].bool()
    for kind, layer in zip(model.config.decoder_layer_types, decoder.layers, strict=True):
        own, cross = layer.self_attn, layer.cross_attn
        rotation = decoder.rotary_emb(states, torch.arange(target.shape[1])[None], kind)
        normed = own.layer_norm(states)
        states = states + attend(own, normed, normed, masks[kind], rotation)
        if hasattr(layer, "ffn1"):
            states = layer.ffn1(states)
        states = states + attend(cross, cross.layer_norm(states), source_states, source_mask, None)
        states = (layer.ffn2 if hasattr(layer, "ffn2") else layer.ffn)(states)
    return model.lm_head(model.lm_head_transform(decoder.final_norm(states)))


def test_logits_and_gradients_are_those_of_the_sublayers_in_their_order(model, source, target):
    labels = random_tokens(3, 11, seed=9)
    expected = decode(model, source, target)
    assert_close(logits_of(model, **source, decoder_input_ids=target), expected.detach())
    loss = nn.functional.cross_entropy(expected.flatten(0, 1), labels.flatten())
    gradients = torch.autograd.grad(loss, [*model.parameters()])
    model.train()(**source, decoder_input_ids=target, labels=labels).loss.backward()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert_close(parameter.grad, gradient)


@pytest.mark.parametrize("is_padded", [True, False])
def test_attention_in_parts_changes_no_logits_and_gradients(model, source, target, is_padded, monkeypatch):
    mask, labels = torch.ones_like(target), random_tokens(3, 11, seed=9)
    if is_padded:
        mask[0, :3], labels[0, :3] = 0, -100
    batch = source | {"decoder_input_ids": target, "decoder_attention_mask": mask if is_padded else None}

    def run() -> list[torch.Tensor]:
        model.zero_grad()
        model(**batch, labels=labels).loss.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        first = model(source["input_ids"], decoder_input_ids=target[:, :2], use_cache=True)
        more = model(source["input_ids"], decoder_input_ids=target[:, 2:], cache=getattr(first, CACHE))
        return [logits_of(model, **batch)[mask.bool()], more.logits.detach(), *gradients]

    expected = run()
    for module in (long_attention_xlm_swcm, modern_xlm_swcm):
        monkeypatch.setattr(module, "DECODER_PART", 4)
    calls = []
    attend = modern_layers_xlm_swcm.attend_in_parts
    monkeypatch.setattr(modern_layers_xlm_swcm, "attend_in_parts", lambda *a, **k: calls.append(a) or attend(*a, **k))
    for actual, tensor in zip(run(), expected, strict=True):
        assert_close(actual, tensor)
    assert calls


@pytest.mark.parametrize("options", [PAPER, {"normal_layers": "none"}], ids=str)
@torch.no_grad()
def test_a_silent_decoder_computes_the_masked_lm_with_causal_masks(source, target, options):
    masked_lm = make_encoder(ModernBertForMaskedLM, xlm_roberta_tokenizer(), norm_bias=True, attention_bias=True)
    model, report = from_encoder(masked_lm, decoder="paper", **options)
    encoder, masks = masked_lm.model, make_causal_masks(11)
    states = encoder.embeddings(target)
    for layer in encoder.layers:
        rotation = encoder.rotary_emb(states, torch.arange(11)[None], layer.attention_type)
        states = layer(states, masks[layer.attention_type][None, None], rotation)
    expected = masked_lm.decoder(masked_lm.head(encoder.final_norm(states)))
    assert_close(logits_of(model, **source, decoder_input_ids=target), expected)
    zeros = [name for name, how in report.new.items() if how == "zero"]
    # Output matrix and bias of cross-attention and second FFN, which has no bias. The normal layer has one more.
    assert len(zeros) == 4 * 3 + (5 if options is PAPER else 0)
    assert not any(model.get_parameter(name).any() for name in zeros)


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        (PAPER, "fsfsf"),
        ({"layer_map": "interleaved", "normal_layers": "none"}, "fs"),
        ({"normal_layers": "copy", "normal_layer_interval": 1}, "ffssssf"),
        (PAPER | {"weight_sharing": "tied"}, "fsfsf"),
    ],
    ids=str,
)
def test_every_tensor_of_a_decoder_is_copied_from_its_layer(options, kinds):
    masked_lm = make_encoder(ModernBertForMaskedLM, xlm_roberta_tokenizer())
    model, report = from_encoder(masked_lm, decoder="paper", **{"decoder_init": "shared"} | options)
    assert "".join(kind[0] for kind in model.config.decoder_layer_types) == kinds
    copied = report.copied
    assert copied["model.decoder.layers.0.cross_attn.Wqkv.weight"] == f"layers.{int(kinds == 'fs')}.attn.Wqkv.weight"
    assert {name for name in copied if name.startswith("model.decoder.layers.1.")} == {
        f"model.decoder.layers.1.{module}.weight" for module in MODERN_CUSTOM_LAYER_SOURCES
    }
    # The norm of the embeddings is the norm of the first layer.
    norm = "layers.1.attn_norm" if kinds == "fs" else "embeddings.norm"
    assert copied["model.decoder.layers.0.cross_attn.layer_norm.weight"] == f"{norm}.weight"
    new = {name for name in report.new if name.startswith("model.decoder.")}
    assert new == {name for name in new if name.startswith("model.decoder.layers.2.")}


def test_the_first_self_attention_has_no_norm_and_a_tied_decoder_adds_only_normal_layers(model):
    first, *others = model.model.decoder.layers
    assert isinstance(first.self_attn.layer_norm, nn.Identity)
    assert all(isinstance(layer.self_attn.layer_norm, nn.LayerNorm) for layer in others)
    own = {name for name, _ in model.named_parameters() if name.startswith("model.decoder.")}
    if model.config.weight_sharing == "tied":
        assert own == {name for name in own if name.startswith("model.decoder.layers.2.")} != set()
        assert first.cross_attn.layer_norm.weight is model.model.encoder.embeddings.norm.weight
        assert model.model.decoder.final_norm.weight is model.model.encoder.final_norm.weight


def test_attention_weights_are_distributions_of_each_layer(model, source, target):
    expected = logits_of(model, **source, decoder_input_ids=target)
    model.set_attn_implementation("eager")
    outputs = model(**source, decoder_input_ids=target, output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(outputs.logits, expected, atol=1e-4, rtol=1e-4)
    assert (len(outputs.encoder_hidden_states), len(outputs.decoder_hidden_states)) == (5, 6)
    for weights, length in ((outputs.decoder_attentions, 11), (outputs.cross_attentions, 14)):
        assert [tuple(layer.shape) for layer in weights] == 5 * [(3, 4, 11, length)]
        assert_close(torch.stack(weights).sum(-1), torch.ones(5, 3, 4, 11))


# PEFT reads a property that Transformers deprecates.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_lora_on_the_fused_projections_is_merged(source, target):
    model = tiny_modern_model(**PAPER)
    lora = LoraConfig(r=2, target_modules=model.lora_targets["init"], init_lora_weights=False)
    adapted = get_peft_model(model, lora).eval()
    # self-attention and cross-attention with two matrices each, and two FFNs or one
    assert len([name for name, _ in adapted.named_parameters() if "lora_A" in name]) == 4 * 8 + 6
    expected = logits_of(adapted, **source, decoder_input_ids=target)
    merged = logits_of(adapted.merge_and_unload(), **source, decoder_input_ids=target)
    torch.testing.assert_close(merged, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kinds", [["full_attention"], 5 * ["chunked_attention"]], ids=str)
def test_types_of_layers_that_do_not_fit_are_refused(kinds):
    with pytest.raises(StrictDataclassError, match="decoder_layer_types must have 5 types of layer_types"):
        tiny_modern_config(decoder_layer_types=kinds, **PAPER)
