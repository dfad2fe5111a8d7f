"""XLM-SWCM with the layers of ModernBERT: pre-norm, rotary positions, and local attention in most layers.

In a prefix decoder, layer `k` is encoder layer `k`, which also reads the source. `modern_layers_xlm_swcm.py` has the
layers of the paper's decoder.
"""

import math
from functools import partial

import torch
from torch import nn
from transformers import ModernBertModel, ModernBertPreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.masking_utils import (
    create_bidirectional_mask,
    create_bidirectional_sliding_window_mask,
    sliding_window_overlay,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.modernbert.modeling_modernbert import (
    ModernBertEmbeddings,
    ModernBertEncoderLayer,
    ModernBertRotaryEmbedding,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .compat_xlm_swcm import checked_forward, output_recorder
from .decoder_xlm_swcm import XLMSWCMDecoder, XLMSWCMPreTrainedModel
from .layers_xlm_swcm import XLMSWCMAttention, attend_to_prefix, check_padding_masks, make_prefix_mask
from .linear_xlm_swcm import fast_linear
from .long_attention_xlm_swcm import (
    DECODER_PART,
    PaddingMasks,
    Part,
    XLMSWCMModernLocalAttention,
    attend_in_parts,
    split_near,
)
from .loss_xlm_swcm import SharedEmbedding
from .modeling_xlm_swcm import XLMSWCMForConditionalGeneration, XLMSWCMModel
from .modern_configuration_xlm_swcm import XLMSWCMModernConfig
from .modern_layers_xlm_swcm import (
    MODERN_CUSTOM_LAYER_SOURCES,
    Rotation,
    TargetContext,
    XLMSWCMModernAttention,
    XLMSWCMModernCustomDecoderLayer,
    XLMSWCMModernNormalDecoderLayer,
    make_norm,
    rotate,
)
from .positions_xlm_swcm import position_ids_from_mask, select_positions


# Mask, rotation of the target, and rotation of the source if its keys are not cached.
Context = tuple[torch.Tensor | PaddingMasks, Rotation, Rotation | None]


def move(context, device: torch.device):
    """Return nested tuples of tensors and `None` on `device`."""
    if isinstance(context, tuple):
        return tuple(move(part, device) for part in context)
    return None if context is None else context.to(device)


def is_read_in_parts(hidden_states: torch.Tensor, cache: EncoderDecoderCache | None) -> bool:
    """Return True for a target that is long enough to be read in parts. A static cache needs masks of a fixed size."""
    is_static = cache is not None and cache.is_compileable
    return hidden_states.shape[1] > DECODER_PART and not is_static


class XLMSWCMModernPreTrainedModel(XLMSWCMPreTrainedModel, ModernBertPreTrainedModel):
    """
    Base class of the XLM-SWCM models with the layers of ModernBERT.

    Args:
        config ([`XLMSWCMModernConfig`]):
            Sizes and decoder layers of the model.
    """

    config: XLMSWCMModernConfig
    embedding_name = "tok_embeddings"
    _no_split_modules = [
        "ModernBertEmbeddings",
        "ModernBertEncoderLayer",
        "XLMSWCMModernCustomDecoderLayer",
        "XLMSWCMModernNormalDecoderLayer",
        "XLMSWCMModernPrefixDecoderLayer",
    ]
    _can_record_outputs = {}
    # Encoder and decoder layers have the same names, so the pattern names the part.
    lora_targets = {
        sharing: rf".*\.{layers}\.\d+\.\w+\.(Wqkv|Wi|Wo)"
        for sharing, layers in (("init", r"decoder\.layers"), ("tied", r"encoder\.layers"))
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, XLMSWCMModernAttention):
            # The range of ModernBERT for output matrices.
            std = self.config.initializer_range / math.sqrt(2 * self.config.num_hidden_layers)
            init.normal_(module.Wo.weight, std=std)


class XLMSWCMModernEncoder(ModernBertModel):
    """Transformers' ModernBERT, which also returns the input of every layer."""

    def __init__(self, config: XLMSWCMModernConfig):
        super().__init__(config)
        for layer in self.layers:
            if layer.attention_type == "sliding_attention":
                layer.attn = XLMSWCMModernLocalAttention(config, layer.layer_idx)
        self.post_init()

    def get_layers(self) -> list[nn.Module]:
        """Return the layers."""
        return [*self.layers]

    def tied_modules(self) -> list[nn.Module]:
        """Return the layers and the final norm, which a tied decoder calls."""
        return [*self.layers, self.final_norm]

    def unread_modules(self) -> list[nn.Module]:
        """Return the modules whose output no copied decoder reads. A copied decoder reads the input of each layer."""
        return [self.layers[-1], self.final_norm]

    def fills_cache_once(self) -> bool:
        """Return False, because the layers of ModernBERT take no cache."""
        return False

    # `generate` passes these keywords of the whole model to the encoder.
    @capture_outputs
    @partial(checked_forward, ignored=("labels", "logits_to_keep"))
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        shared_embedding: SharedEmbedding | None = None,
        source_cache: DynamicCache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """Encode a source."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("The encoder needs either input_ids or inputs_embeds. Pass exactly one of them.")
        embedding = self.embeddings.tok_embeddings
        if input_ids is not None and shared_embedding is not None and shared_embedding.supports(embedding):
            inputs_embeds, input_ids = shared_embedding.look_up(embedding, input_ids), None
        hidden_states = self.embeddings(input_ids=input_ids, inputs_embeds=inputs_embeds)
        if position_ids is None:
            position_ids = torch.arange(hidden_states.shape[1], device=hidden_states.device)[None]
        masks = self._make_masks(hidden_states, attention_mask)
        rotations = {kind: self.rotary_emb(hidden_states, position_ids, kind) for kind in set(self.config.layer_types)}
        layer_inputs = []
        for layer in self.layers:
            layer_inputs.append(hidden_states)
            hidden_states = layer(
                hidden_states,
                attention_mask=masks[layer.attention_type],
                position_embeddings=rotations[layer.attention_type],
                **kwargs,
            )
        hidden_states = self.final_norm(hidden_states)
        return BaseModelOutput(
            last_hidden_state=hidden_states,
            hidden_states=(*layer_inputs, hidden_states) if self.config.has_prefix_decoder else None,
        )

    def _make_masks(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> dict[str, torch.Tensor | list[Part] | None]:
        """Return the mask for each kind of layer. With SDPA, no mask has a value for each pair of tokens."""
        is_padding_mask = attention_mask is None or attention_mask.ndim == 2
        if self.config._attn_implementation == "sdpa" and is_padding_mask:
            return {
                "full_attention": None if attention_mask is None else attention_mask[:, None, None].bool(),
                "sliding_attention": split_near(attention_mask, hidden_states, self.config.sliding_window),
            }
        inputs = {"config": self.config, "inputs_embeds": hidden_states, "attention_mask": attention_mask}
        return {
            "full_attention": create_bidirectional_mask(**inputs),
            "sliding_attention": create_bidirectional_sliding_window_mask(**inputs),
        }


class XLMSWCMModernPrefixAttention(XLMSWCMAttention):
    """
    Attention of the target to the source and to the target so far, under one softmax.

    It has no weights, and uses the modules of a ModernBERT layer.
    """

    def __init__(self, config: XLMSWCMModernConfig, layer_idx: int):
        super().__init__(config, layer_idx, is_causal=False, has_weights=False)
        is_local = config.layer_types[layer_idx] == "sliding_attention"
        self.window = config.sliding_window if is_local else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        context: Context,
        source_states: torch.Tensor,
        cache: EncoderDecoderCache | None,
        layer: ModernBertEncoderLayer,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Return the output, and the attention weights of target and source or `None`."""
        query, key, value = self._project(layer, hidden_states)
        # A tied layer computes on the device of its encoder layer.
        attention_mask, rotation, source_rotation = move(context, query.device)
        if (source := self._cached_source(cache)) is None:
            _, source_key, source_value = self._project(layer, source_states)
            source = self._cache_source(rotate(source_key, source_rotation), source_value, cache)
        target = self._cache_target(rotate(key, rotation), value, cache)
        query, target_weights, source_weights = rotate(query, rotation), None, None
        if isinstance(attention_mask, tuple):
            attended = attend_in_parts(self, query, source, target, attention_mask, self.window, **kwargs)
        else:
            attended, target_weights, source_weights = attend_to_prefix(
                self, query, source, target, attention_mask, **kwargs
            )
        attended = layer.attn.out_drop(fast_linear(layer.attn.Wo, attended.flatten(2)))
        return attended, target_weights, source_weights

    def _project(self, layer: ModernBertEncoderLayer, states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return queries, keys and values of shape `(batch, heads, length, head_dim)`."""
        projected = fast_linear(layer.attn.Wqkv, layer.attn_norm(states))
        return tuple(self._split_heads(part) for part in projected.chunk(3, dim=-1))


class XLMSWCMModernPrefixDecoderLayer(ModernBertEncoderLayer):
    """
    A ModernBERT layer that reads the source and the target so far: one attention, one FFN.

    With `weight_sharing="tied"` the layer has no weights, and calls the modules of its encoder layer.
    """

    def __init__(self, config: XLMSWCMModernConfig, layer_idx: int):
        if config.weight_sharing == "init":
            super().__init__(config, layer_idx)
        else:
            GradientCheckpointingLayer.__init__(self)
        self.attention_type = config.layer_types[layer_idx]
        self.self_attn = XLMSWCMModernPrefixAttention(config, layer_idx)

    @checked_forward
    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: dict[str, Context],
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None = None,
        cache: EncoderDecoderCache | None = None,
        tied_modules: ModernBertEncoderLayer | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Return the output, of the shape of `hidden_states`."""
        layer = self if tied_modules is None else tied_modules
        context = attention_mask[self.attention_type]
        attended, *_ = self.self_attn(hidden_states, context, encoder_hidden_states, cache, layer, **kwargs)
        hidden_states = hidden_states.to(attended.device) + attended
        return hidden_states + layer.mlp(layer.mlp_norm(hidden_states))


class XLMSWCMModernDecoder(XLMSWCMModernPreTrainedModel, XLMSWCMDecoder):
    """Decoder with the layers of ModernBERT. In [`XLMSWCMModernModel`] it shares the encoder's embeddings."""

    embeddings_class = ModernBertEmbeddings
    layer_classes = {
        "custom": XLMSWCMModernCustomDecoderLayer,
        "normal": XLMSWCMModernNormalDecoderLayer,
        "prefix": XLMSWCMModernPrefixDecoderLayer,
    }
    _can_record_outputs = {
        # The base class of all layers.
        "hidden_states": output_recorder(GradientCheckpointingLayer, num_hidden_layers_key="decoder_layers"),
        "attentions": OutputRecorder(XLMSWCMAttention, index=1, layer_name="self_attn"),
        "cross_attentions": [
            OutputRecorder(XLMSWCMAttention, index=1, layer_name="cross_attn"),
            OutputRecorder(XLMSWCMModernPrefixAttention, index=2, layer_name="self_attn"),
        ],
    }

    def __init__(self, config: XLMSWCMModernConfig):
        super().__init__(config)
        self.rotary_emb = ModernBertRotaryEmbedding(config=config)
        # A tied prefix decoder calls the final norm of the encoder.
        is_tied_prefix = config.has_prefix_decoder and config.weight_sharing == "tied"
        self.final_norm = None if is_tied_prefix else make_norm(config)
        self.post_init()

    def _make_tp_plan(self) -> dict[str, str]:
        """Return an empty plan. The fused projections cannot be sharded by rows."""
        return {}

    def _final_norm(self, hidden_states: torch.Tensor, tied_modules: list | None) -> torch.Tensor:
        """Apply the final norm to the output of the last layer."""
        norm = self.final_norm if tied_modules is None else tied_modules[-1]
        return norm(hidden_states)

    def _run_embeddings(
        self, input_ids: torch.LongTensor | None, inputs_embeds: torch.Tensor | None, position_ids: torch.LongTensor
    ) -> torch.Tensor:
        """Return the input of the first layer. Rotary positions enter in the attention."""
        return self.embeddings(input_ids=input_ids, inputs_embeds=inputs_embeds)

    def _position_ids(
        self,
        input_ids: torch.LongTensor | None,
        inputs_embeds: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        past_length: int | torch.Tensor,
    ) -> torch.LongTensor:
        """Return the positions of the target from 0, which count the tokens in the mask."""
        target = input_ids if input_ids is not None else inputs_embeds
        length, device = target.shape[1], target.device
        if attention_mask is not None and attention_mask.ndim == 2:
            positions = position_ids_from_mask(attention_mask, self.config.padding_position)
            return select_positions(positions, past_length, length)
        return past_length + torch.arange(length, device=device)[None]

    def _make_masks(
        self,
        attention_mask: torch.Tensor | None,
        encoder_attention_mask: torch.Tensor | None,
        hidden_states: torch.Tensor,
        source_states: torch.Tensor,
        cache: EncoderDecoderCache | None,
        position_ids: torch.LongTensor,
    ) -> tuple[dict[str, Context | TargetContext], torch.Tensor | None]:
        """Return mask and rotations for each kind of layer, and the mask of cross-attention."""
        if self.config.has_prefix_decoder:
            contexts = self._make_prefix_contexts(
                attention_mask, encoder_attention_mask, hidden_states, source_states, cache, position_ids
            )
            return contexts, None
        mask, cross_attention_mask = super()._make_masks(
            attention_mask, encoder_attention_mask, hidden_states, source_states, cache, position_ids
        )
        masks, kinds = {"full_attention": mask}, set(self.config.decoder_layer_types)
        if "sliding_attention" in kinds:
            masks["sliding_attention"] = self._make_local_mask(attention_mask, hidden_states, cache)
        rotations = {kind: self.rotary_emb(hidden_states, position_ids, kind) for kind in kinds}
        return {kind: (masks[kind], rotation) for kind, rotation in rotations.items()}, cross_attention_mask

    def _make_local_mask(
        self, attention_mask: torch.Tensor | None, hidden_states: torch.Tensor, cache: EncoderDecoderCache | None
    ) -> torch.Tensor | PaddingMasks | None:
        """Return the mask of a local layer of the paper's decoder. With SDPA, a long target is read in parts."""
        is_padding_mask = attention_mask is None or attention_mask.ndim == 2
        if self.config._attn_implementation == "sdpa" and is_padding_mask and is_read_in_parts(hidden_states, cache):
            # Self-attention reads no source.
            return hidden_states.new_ones(hidden_states.shape[0], 0), attention_mask
        # The token itself, and as many tokens before it as in the encoder.
        near = sliding_window_overlay(self.config.sliding_window + 1)
        return self._make_causal_mask(attention_mask, hidden_states, cache, near)

    def _make_prefix_contexts(
        self,
        attention_mask: torch.Tensor | None,
        encoder_attention_mask: torch.Tensor | None,
        hidden_states: torch.Tensor,
        source_states: torch.Tensor,
        cache: EncoderDecoderCache | None,
        position_ids: torch.LongTensor,
    ) -> dict[str, Context]:
        """
        Return the mask, and the rotations of target and source, for each kind of layer of a prefix decoder.

        In global layers, the positions of the target continue after the source, as in one text. In local layers, the
        positions of the target start at 0, so that the whole source is near. A local layer reads only the last tokens
        of the target.
        """
        if encoder_attention_mask is None:
            encoder_attention_mask = torch.ones(source_states.shape[:2], dtype=torch.long, device=hidden_states.device)
        masks: list[torch.Tensor | PaddingMasks]
        if self.config._attn_implementation == "eager" or not is_read_in_parts(hidden_states, cache):
            masks = [
                make_prefix_mask(encoder_attention_mask, attention_mask, source_states, hidden_states, cache, window)
                for window in (None, self.config.sliding_window)
            ]
        else:
            check_padding_masks(encoder_attention_mask, attention_mask)
            masks = 2 * [(encoder_attention_mask, attention_mask)]
        source_positions = position_ids_from_mask(encoder_attention_mask, self.config.padding_position)
        source_length = encoder_attention_mask.ne(0).sum(-1, keepdim=True)
        kinds = {
            "full_attention": (masks[0], position_ids + source_length),
            "sliding_attention": (masks[1], position_ids),
        }
        # The cached keys of a source are already rotated.
        is_cached = cache is not None and cache.is_updated.get(0)
        contexts = {}
        for kind in set(self.config.layer_types):
            mask, positions = kinds[kind]
            source_rotation = None if is_cached else self.rotary_emb(hidden_states, source_positions, kind)
            contexts[kind] = (mask, self.rotary_emb(hidden_states, positions, kind), source_rotation)
        return contexts


class XLMSWCMModernHeadTransform(nn.Module):
    """Dense layer, activation function and LayerNorm of ModernBERT's masked-LM head."""

    def __init__(self, config: XLMSWCMModernConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=config.classifier_bias)
        self.activation = ACT2FN[config.classifier_activation]
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the input of the output projection."""
        return self.layer_norm(self.activation(fast_linear(self.dense, hidden_states)))


class XLMSWCMModernModel(XLMSWCMModernPreTrainedModel, XLMSWCMModel):
    """
    ModernBERT, and a decoder with its layers, without an output projection.

    Args:
        config ([`XLMSWCMModernConfig`]):
            Sizes and decoder layers of the model.
    """

    encoder_class = XLMSWCMModernEncoder
    decoder_class = XLMSWCMModernDecoder
    encoder_layers = "encoder.layers"
    layer_sources = MODERN_CUSTOM_LAYER_SOURCES

    def _shared_keys(self) -> dict[str, str]:
        """Return the tied keys. A tied decoder of the paper also has norms of the encoder outside of its layers."""
        keys = super()._shared_keys()
        if self.config.weight_sharing == "tied" and not self.config.has_prefix_decoder:
            first = f"layers.{self.config.decoder_blocks.index('custom')}.cross_attn.layer_norm"
            for target, source in (("final_norm", "final_norm"), (first, "embeddings.norm")):
                for name, _ in self.encoder.final_norm.named_parameters():
                    keys[f"decoder.{target}.{name}"] = f"encoder.{source}.{name}"
        return keys


class XLMSWCMModernForConditionalGeneration(XLMSWCMModernPreTrainedModel, XLMSWCMForConditionalGeneration):
    """
    [`XLMSWCMModernModel`] with an output projection, for training and `generate`.

    Args:
        config ([`XLMSWCMModernConfig`]):
            Sizes and decoder layers of the model.
    """

    base_class = XLMSWCMModernModel
    transform_class = XLMSWCMModernHeadTransform
    makes_all_masks = True
    _tied_weights_keys = {"lm_head.weight": "model.encoder.embeddings.tok_embeddings.weight"}
    _tp_plan = {}


__all__ = ["XLMSWCMModernForConditionalGeneration", "XLMSWCMModernModel"]
