"""Decoders of the ablation: how each is built from an encoder, and how its training differs.

Each decoder starts from the converter, and this file defines the changes. Sources: Su et al., ACL 2025 (BASE-A,
BASE-B, X, random decoders), DeltaLM (Ma et al., 2021). `baselines.py` has the models that are no XLM-SWCM.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from baselines import from_scratch, released_layers, warm_start
from mask_queries import query_with_masks
from torch import nn
from transformers import PreTrainedModel, XLMRobertaForMaskedLM

from modeling_xlm_swcm import XLMSWCMForConditionalGeneration, XLMSWCMTokenizer
from modeling_xlm_swcm.conversion import ConversionError, from_encoder
from modeling_xlm_swcm.conversion.from_encoder import NEW_VALUES
from modeling_xlm_swcm.conversion.plan import NEW_TRANSFORM
from modeling_xlm_swcm.modeling_xlm_swcm import XLMSWCMHeadTransform


@dataclass(frozen=True)
class Variant:
    """
    A decoder to compare.

    Args:
        title (`str`):
            Title in the table.
        options (`dict`, *optional*):
            Options of the conversion.
        change (`Callable`, *optional*):
            Function of the converted model and the folder of the encoder. Returns the model to train.
        copied_rate (`float`, *optional*, defaults to 1.0):
            Learning rate of copied weights, as a share of the learning rate.
        frozen_share (`float`, *optional*, defaults to 0.0):
            Share of the steps, from the first step on, in which copied weights are frozen.
        pretrainable (`bool`, *optional*, defaults to `True`):
            Whether pretraining keeps what is special about the variant.
    """

    title: str
    options: dict = field(default_factory=dict)
    change: Callable[[XLMSWCMForConditionalGeneration, str], PreTrainedModel] | None = None
    copied_rate: float = 1.0
    frozen_share: float = 0.0
    pretrainable: bool = True


@dataclass
class Start:
    """A model before its training. `copied` names the decoder parameters that are copies of encoder weights."""

    model: PreTrainedModel
    tokenizer: XLMSWCMTokenizer
    copied: set[str]


def build(name: str, encoder: str, languages: list[str], seed: int) -> Start:
    """Build the variant `name` from an encoder."""
    variant = VARIANTS[name]
    model, report = from_encoder(encoder, languages=languages, seed=seed, dtype="float32", **variant.options)
    if variant.options.get("decoder_init") == "silent" and "lm_head_transform.dense.weight" not in report.copied:
        raise ConversionError(
            f"{encoder} has no complete masked-LM head, but {name} needs this head. Use another encoder."
        )
    if variant.change is not None:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            model = variant.change(model, encoder)
    # Only decoder layers count: encoder and embeddings are also copied in a random model.
    copied = {name for name in report.copied if name.startswith("model.decoder.layers.")}
    return Start(model, report.tokenizer, copied)


def custom_layers(model: XLMSWCMForConditionalGeneration) -> list[nn.Module]:
    """Return the custom layers of the decoder."""
    return [
        layer
        for block, layer in zip(model.config.decoder_blocks, model.model.decoder.layers, strict=True)
        if block == "custom"
    ]


def zero_cross_attention(model, encoder):
    """Set the output of cross-attention to zero. Its LayerNorm stays a copy."""
    for layer in model.model.decoder.layers:
        layer.cross_attn.out_proj.weight.zero_()
        layer.cross_attn.out_proj.bias.zero_()
    return model


def cross_attention_from(choose: Callable[[int, int], int]) -> Callable:
    """Copy the cross-attention of custom layer k from the attention of encoder layer `choose(k, layers)`."""

    def change(model, encoder):
        layers = custom_layers(model)
        for index, layer in enumerate(layers):
            # The self-attention of custom layer k is a copy of encoder layer k.
            source = layers[choose(index, len(layers))].self_attn
            layer.cross_attn.load_state_dict(source.state_dict())
        return model

    return change


def fresh_cross_attention(model, encoder):
    """Initialise the cross-attention of custom layers randomly."""
    for layer in custom_layers(model):
        for module in layer.cross_attn.children():
            if isinstance(module, nn.Linear):
                module.weight.normal_(std=model.config.initializer_range)
                module.bias.zero_()
        layer.cross_attn.layer_norm.reset_parameters()
    return model


def plain_layers(model, encoder):
    """Replace the decoder by random normal layers, one per encoder layer (the paper's Cino-Transformer)."""
    layers = model.config.num_hidden_layers
    fields = model.config.to_dict() | {"decoder_blocks": ["normal"] * layers, "decoder_layers": layers}
    plain = type(model)(type(model.config).from_dict(fields))
    kept = {name: tensor for name, tensor in model.state_dict().items() if ".decoder.layers." not in name}
    missing, unexpected = plain.load_state_dict(kept, strict=False)
    assert not unexpected and all(".decoder.layers." in name for name in missing)
    return plain


def with_transform(model, encoder):
    """Add the transform of the masked-LM head."""
    masked_lm, info = XLMRobertaForMaskedLM.from_pretrained(encoder, output_loading_info=True)
    if info["missing_keys"]:
        raise ConversionError(
            f"{encoder} has no masked-LM head: {sorted(info['missing_keys'])[0]} is missing. Use another encoder."
        )
    head = masked_lm.lm_head
    model.config.lm_head_transform = True
    model.lm_head_transform = XLMSWCMHeadTransform(model.config)
    model.lm_head_transform.dense, model.lm_head_transform.layer_norm = head.dense, head.layer_norm
    return model


def new_transform(model, encoder):
    """Add the transform that the converter gives to an encoder without a masked-LM head."""
    model.config.lm_head_transform = True
    model.lm_head_transform = XLMSWCMHeadTransform(model.config)
    for name, value in NEW_TRANSFORM.items():
        NEW_VALUES[value](model.get_parameter(name))
    return model


def continue_positions(model, encoder):
    """Let the target continue the positions of the source. By default it starts at the first position."""
    decoder = model.model.decoder
    count = decoder._position_ids

    def remember_lengths(module, args, kwargs):
        mask = kwargs["encoder_attention_mask"]
        # Without a mask all tokens of the source count.
        module.source_lengths = (
            kwargs["encoder_hidden_states"][0].shape[1] if mask is None else mask.sum(1, keepdim=True)
        )

    decoder.register_forward_pre_hook(remember_lengths, with_kwargs=True)
    decoder._position_ids = lambda *args: count(*args) + decoder.source_lengths
    return model


def without_transform(model, encoder):
    """Remove the transform of the masked-LM head."""
    model.config.lm_head_transform = False
    model.lm_head_transform = None
    return model


# baselines of the comparison
RANDOM, WARM_START = "random", "warm-start"
# The first of these that takes part is the random baseline. All but "random" have the new transform.
RANDOM_DECODERS = ("random-transform", RANDOM, "prefix-random")
PAPER, PREFIX = {"decoder": "paper"}, {"decoder": "prefix"}
SHARED, SILENT, FRESH = (PAPER | {"decoder_init": start} for start in ("shared", "silent", "random"))
SHORT = {"layer_map": "interleaved", "normal_layers": "none"}
VARIANTS = {
    "x1": Variant("shared, X = 1", SHARED | {"normal_layer_interval": 1}),
    "x2": Variant("shared, X = 2", SHARED | {"normal_layer_interval": 2}),
    "x3": Variant("shared, X = 3, as in the paper", SHARED),
    # With six encoder layers x6 equals base-a.
    "x6": Variant("shared, X = 6", SHARED | {"normal_layer_interval": 6}),
    "base-a": Variant("no normal layers (BASE-A)", SHARED | {"normal_layers": "none"}),
    "base-b": Variant("normal layers copied (BASE-B)", SHARED | {"normal_layers": "copy"}),
    "tied": Variant("shared and tied", SHARED | {"weight_sharing": "tied"}),
    "interleaved": Variant("interleaved (DeltaLM)", SHARED | SHORT),
    "interleaved-head": Variant("interleaved, with the masked-LM head's transform", SHARED | SHORT, with_transform),
    RANDOM: Variant("random, same shape", FRESH),
    "random-short": Variant("random, half as many layers", FRESH | SHORT),
    "random-plain": Variant("random, plain layers (Cino-Transformer)", FRESH, plain_layers),
    WARM_START: Variant("EncoderDecoderModel, warm start", FRESH, warm_start, pretrainable=False),
    "mbart": Variant("MBart from scratch", FRESH, from_scratch, pretrainable=False),
    "released": Variant("the authors' released layers", SHARED, released_layers, pretrainable=False),
    "zero-cross": Variant("cross-attention starts at zero", SHARED, zero_cross_attention),
    "cross-last": Variant(
        "cross-attention from the last layer", SHARED, cross_attention_from(lambda k, layers: layers - 1)
    ),
    "cross-next": Variant(
        "cross-attention from the next layer", SHARED, cross_attention_from(lambda k, layers: min(k + 1, layers - 1))
    ),
    "cross-fresh": Variant("cross-attention fresh", SHARED, fresh_cross_attention),
    "slow-copies": Variant("copies learn at 0.3 of the rate", SHARED, copied_rate=0.3, pretrainable=False),
    "late-copies": Variant("copies frozen for 20 % of the steps", SHARED, frozen_share=0.2, pretrainable=False),
    "head-transform": Variant("with the masked-LM head's transform", SHARED, with_transform),
    "silent-fresh": Variant("starts silent, without the transform", SILENT, without_transform),
    "silent-head": Variant("starts silent, with the masked-LM head's transform", SILENT),
    "silent-plain": Variant("starts silent, with the transform, no normal layers", SILENT | {"normal_layers": "none"}),
    "silent-slow": Variant(
        "starts silent, with the transform; copies learn at 0.3 of the rate",
        SILENT,
        copied_rate=0.3,
        pretrainable=False,
    ),
    # Unlike silent-head, this variant needs no masked-LM head.
    "default": Variant("the paper's decoder, silent, with a transform", PAPER),
    # The random decoder of this shape. RANDOM has no transform, as in the paper.
    "random-transform": Variant("random, same shape, with a new transform", FRESH, new_transform),
    "prefix-tied": Variant("prefix decoder, tied", PREFIX | {"weight_sharing": "tied"}),
    "prefix-init": Variant("prefix decoder, copied", PREFIX),
    "prefix-continued": Variant(
        "prefix decoder, tied, positions after the source", PREFIX | {"weight_sharing": "tied"}, continue_positions
    ),
    "prefix-masked": Variant(
        "prefix decoder, tied, mask queries", PREFIX | {"weight_sharing": "tied"}, query_with_masks, pretrainable=False
    ),
    "prefix-random": Variant("prefix decoder, random", FRESH | PREFIX),
}
