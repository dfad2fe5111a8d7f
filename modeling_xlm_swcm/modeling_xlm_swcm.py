"""XLM-SWCM: an XLM-R encoder with a decoder made of its own layers.

Source: "Multilingual Encoder Knows more than You Realize: Shared Weights Pretraining for Extremely Low-Resource
Languages" (Su et al., ACL 2025, arXiv 2502.10852).
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
from torch import nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel, XLMRobertaModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaEmbeddings
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, auto_docstring, can_return_tuple, logging
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .compat_xlm_swcm import CACHE, OLD_CACHE, checked_forward, output_recorder, slice_logits_to_keep
from .configuration_xlm_swcm import XLMSWCMConfig
from .hub_xlm_swcm import XLMSWCMHubMixin
from .linear_xlm_swcm import activate_and_project, drop, is_plain, product_dtype, project
from .loss_xlm_swcm import OneGradient, cross_entropy, linear_cross_entropy
from .pipeline_xlm_swcm import XLMSWCMPipeline


logger = logging.get_logger(f"transformers.{__name__}")

# module of a custom decoder layer -> module of the encoder layer that it is a copy of. The converter makes its weight
# map from this table, and a model with `weight_sharing="tied"` its tied keys.
CUSTOM_LAYER_SOURCES = {
    f"{attention}.{module}": source
    for attention in ("self_attn", "cross_attn")
    for module, source in {
        "q_proj": "attention.self.query",
        "k_proj": "attention.self.key",
        "v_proj": "attention.self.value",
        "out_proj": "attention.output.dense",
        "layer_norm": "attention.output.LayerNorm",
    }.items()
} | {
    f"{ffn}.{module}": source
    for ffn in ("ffn1", "ffn2")
    for module, source in {
        "fc1": "intermediate.dense",
        "fc2": "output.dense",
        "layer_norm": "output.LayerNorm",
    }.items()
}


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling  # (batch, heads, query_len, key_len)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class XLMSWCMAttention(nn.Module):
    """Self-attention, or cross-attention where `key_value_states` are given, with its residual and LayerNorm."""

    def __init__(self, config: XLMSWCMConfig, layer_idx: int, is_causal: bool):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = is_causal
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        key_value_states: torch.Tensor | None = None,
        cache: EncoderDecoderCache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query = self._split_heads(project(self.q_proj, hidden_states))
        key, value = self._keys_and_values(hidden_states, key_value_states, cache)

        implementation = self.config._attn_implementation
        is_padding_mask = isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2
        if key_value_states is not None and is_padding_mask:
            # flash attention would take the padding of the source for that of the target
            implementation, attention_mask = "sdpa", attention_mask[:, None, None, :].bool()
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        attended, weights = attention_interface(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        attended = project(self.out_proj, attended.flatten(2))  # (batch, target_len, hidden_size)
        return self._add_and_norm(hidden_states, attended), weights

    def _add_and_norm(self, hidden_states: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        return self.layer_norm(hidden_states + drop(self.dropout, attended))

    def _split_heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (batch, heads, len, head_dim)

    def _keys_and_values(
        self,
        hidden_states: torch.Tensor,
        key_value_states: torch.Tensor | None,
        cache: EncoderDecoderCache | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        is_cross_attention = key_value_states is not None
        if is_cross_attention and cache is not None and cache.is_updated.get(self.layer_idx):
            # the source does not change while the target grows
            cached = cache.cross_attention_cache.layers[self.layer_idx]
            return cached.keys, cached.values

        states = key_value_states if is_cross_attention else hidden_states
        key, value = (self._split_heads(project(linear, states)) for linear in (self.k_proj, self.v_proj))
        if cache is None:
            return key, value
        if not is_cross_attention:
            return cache.self_attention_cache.update(key, value, self.layer_idx)
        cache.is_updated[self.layer_idx] = True
        return cache.cross_attention_cache.update(key, value, self.layer_idx)


class XLMSWCMFeedForward(nn.Module):
    """Feed-forward network with its residual and LayerNorm."""

    def __init__(self, config: XLMSWCMConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        inner = project(self.fc1, hidden_states)  # (batch, target_len, intermediate_size)
        output = activate_and_project(self.activation, self.fc2, inner)
        return self.layer_norm(hidden_states + drop(self.dropout, output))


class XLMSWCMDecoderLayer(GradientCheckpointingLayer):
    """Self-attention, then cross-attention; the two kinds of layer differ in where an FFN stands."""

    attention_class = XLMSWCMAttention

    def __init__(self, config: XLMSWCMConfig, layer_idx: int):
        super().__init__()
        self.self_attn = self.attention_class(config, layer_idx, is_causal=True)
        self.cross_attn = self.attention_class(config, layer_idx, is_causal=False)

    @checked_forward
    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None = None,
        cache: EncoderDecoderCache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        hidden_states, _ = self.self_attn(hidden_states, attention_mask, None, cache, **kwargs)
        hidden_states = self.feed_forward_between(hidden_states)
        hidden_states, _ = self.cross_attn(
            hidden_states, encoder_attention_mask, encoder_hidden_states, cache, **kwargs
        )
        return self.feed_forward_after(hidden_states)


class XLMSWCMCustomDecoderLayer(XLMSWCMDecoderLayer):
    """Self-attention, FFN, cross-attention, FFN: the two halves of an encoder layer, each used twice."""

    def __init__(self, config: XLMSWCMConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.ffn1 = XLMSWCMFeedForward(config)
        self.ffn2 = XLMSWCMFeedForward(config)

    def feed_forward_between(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.ffn1(hidden_states)

    def feed_forward_after(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.ffn2(hidden_states)


class XLMSWCMNormalDecoderLayer(XLMSWCMDecoderLayer):
    """Self-attention, cross-attention, FFN: a plain decoder layer, put between the custom ones."""

    def __init__(self, config: XLMSWCMConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.ffn = XLMSWCMFeedForward(config)

    def feed_forward_between(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states

    def feed_forward_after(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.ffn(hidden_states)


@auto_docstring
class XLMSWCMPreTrainedModel(XLMSWCMHubMixin, PreTrainedModel):
    config: XLMSWCMConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = [
        "XLMRobertaEmbeddings",
        "XLMRobertaLayer",
        "XLMSWCMCustomDecoderLayer",
        "XLMSWCMNormalDecoderLayer",
    ]
    _skip_keys_device_placement = ["cache", OLD_CACHE]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, XLMRobertaEmbeddings):
            # buffers that no checkpoint holds: models are built on the meta device, which leaves them empty
            init.copy_(module.position_ids, torch.arange(module.position_ids.shape[-1]).expand((1, -1)))
            init.zeros_(module.token_type_ids)


class XLMSWCMEncoder(XLMRobertaModel):
    """Transformers' own XLM-R without its pooler, with a tensor-parallel plan."""

    _tp_plan = {
        "embeddings.word_embeddings": "embedding_rowwise",
        "encoder.layer.*.attention.self.query": "colwise",
        "encoder.layer.*.attention.self.key": "colwise",
        "encoder.layer.*.attention.self.value": "colwise",
        "encoder.layer.*.attention.output.dense": "rowwise",
        "encoder.layer.*.intermediate.dense": "colwise",
        "encoder.layer.*.output.dense": "rowwise",
    }

    def __init__(self, config: XLMSWCMConfig):
        super().__init__(config, add_pooling_layer=False)

    # `generate` passes the keywords of the whole model on to the encoder
    @partial(checked_forward, ignored=("labels", "logits_to_keep"))
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        # upstream counts those of embeddings from the first column, padding or not
        is_padded = inputs_embeds is not None and attention_mask is not None and attention_mask.ndim == 2
        if position_ids is None and is_padded:
            position_ids = position_ids_from_mask(attention_mask, self.config.pad_token_id)
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )


class XLMSWCMDecoder(XLMSWCMPreTrainedModel):
    """`config.decoder_blocks` as layers; in a whole model its embeddings are the encoder's."""

    layer_classes = {"custom": XLMSWCMCustomDecoderLayer, "normal": XLMSWCMNormalDecoderLayer}
    _can_record_outputs = {
        "hidden_states": output_recorder(XLMSWCMDecoderLayer, num_hidden_layers_key="decoder_layers"),
        "attentions": OutputRecorder(XLMSWCMAttention, index=1, layer_name="self_attn"),
        "cross_attentions": OutputRecorder(XLMSWCMAttention, index=1, layer_name="cross_attn"),
    }
    _tp_plan = {
        "embeddings.word_embeddings": "embedding_rowwise",
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.out_proj": "rowwise",
        "layers.*.cross_attn.q_proj": "colwise",
        "layers.*.cross_attn.k_proj": "colwise",
        "layers.*.cross_attn.v_proj": "colwise",
        "layers.*.cross_attn.out_proj": "rowwise",
        "layers.*.ffn1.fc1": "colwise",
        "layers.*.ffn1.fc2": "rowwise",
        "layers.*.ffn2.fc1": "colwise",
        "layers.*.ffn2.fc2": "rowwise",
        "layers.*.ffn.fc1": "colwise",
        "layers.*.ffn.fc2": "rowwise",
    }

    def __init__(self, config: XLMSWCMConfig):
        super().__init__(config)
        self.embeddings = XLMRobertaEmbeddings(config)
        self.layers = nn.ModuleList(
            self.layer_classes[block](config, layer_idx) for layer_idx, block in enumerate(config.decoder_blocks)
        )
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    @auto_docstring
    @checked_forward
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        cache: EncoderDecoderCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of decoder_input_ids and decoder_inputs_embeds.")
        if encoder_hidden_states is None:
            raise ValueError("The decoder needs the encoder's output: give encoder_hidden_states.")

        if use_cache and cache is None:
            cache = EncoderDecoderCache(DynamicCache(config=self.config), DynamicCache(config=self.config))
        past_length = cache.get_seq_length() if cache is not None else 0
        length = (input_ids if input_ids is not None else inputs_embeds).shape[1]
        if isinstance(past_length, int):  # a tensor in static caches
            check_length("target", past_length + length, self.config)
        if position_ids is None:
            position_ids = self._position_ids(input_ids, inputs_embeds, attention_mask, past_length)
        hidden_states = self.embeddings(
            input_ids=input_ids, position_ids=position_ids, inputs_embeds=inputs_embeds
        )  # (batch, target_len, hidden_size)

        attention_mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden_states,
            attention_mask=attention_mask,
            **{CACHE: cache.self_attention_cache if cache is not None else None},
        )
        encoder_attention_mask = create_bidirectional_mask(
            config=self.config,
            inputs_embeds=hidden_states,
            attention_mask=encoder_attention_mask,
            encoder_hidden_states=encoder_hidden_states,
        )
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                attention_mask,
                encoder_hidden_states,  # positional, so that gradient checkpointing sees it
                encoder_attention_mask=encoder_attention_mask,
                **{CACHE: cache},
                **kwargs,
            )
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden_states, **{CACHE: cache})

    def _position_ids(
        self,
        input_ids: torch.LongTensor | None,
        inputs_embeds: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        past_length: int | torch.Tensor,
    ) -> torch.LongTensor:
        """XLM-R's positions: `padding_idx + 1` upwards, counting what is not padding."""
        padding_idx = self.embeddings.padding_idx
        if attention_mask is not None and attention_mask.ndim == 2:
            length = (input_ids if input_ids is not None else inputs_embeds).shape[1]
            return position_ids_from_mask(attention_mask, padding_idx)[:, -length:]
        if input_ids is not None:
            return self.embeddings.create_position_ids_from_input_ids(input_ids, padding_idx, past_length)
        return self.embeddings.create_position_ids_from_inputs_embeds(inputs_embeds, padding_idx) + past_length


def check_length(name: str, length: int, config: XLMSWCMConfig):
    if length > config.longest_input:
        raise ValueError(
            f"The {name} has {length} tokens, and the model's positions end at {config.longest_input}: shorten it."
        )


def position_ids_from_mask(attention_mask: torch.Tensor, padding_idx: int) -> torch.LongTensor:
    """Rows of the position table for a mask of shape (batch, len) that is 1 on tokens and 0 on padding."""
    is_token = attention_mask.ne(0).long()
    return is_token.cumsum(-1) * is_token + padding_idx


@auto_docstring
class XLMSWCMModel(XLMSWCMPreTrainedModel):
    decoder_class = XLMSWCMDecoder
    _keys_to_ignore_on_load_unexpected = [r"^lm_head(_transform)?\."]

    def __init__(self, config: XLMSWCMConfig):
        super().__init__(config)
        config.validate_architecture()  # fields may have been set one by one
        self.encoder = XLMSWCMEncoder(config)
        self.decoder = self.decoder_class(config)
        self._tied_weights_keys = self._shared_keys()
        self.post_init()

    def _shared_keys(self) -> dict[str, str]:
        """Parameters that encoder and decoder have in common: the embeddings, and layers if the config ties them."""
        keys = {
            f"decoder.embeddings.{name}": f"encoder.embeddings.{name}"
            for name, _ in self.encoder.embeddings.named_parameters()
        }
        if self.config.weight_sharing == "tied":
            custom = [index for index, block in enumerate(self.config.decoder_blocks) if block == "custom"]
            for encoder_index, decoder_index in enumerate(custom):
                for target, source in CUSTOM_LAYER_SOURCES.items():
                    for parameter in ("weight", "bias"):
                        keys[f"decoder.layers.{decoder_index}.{target}.{parameter}"] = (
                            f"encoder.encoder.layer.{encoder_index}.{source}.{parameter}"
                        )
        return keys

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict:
        # Transformers ties nothing where `tie_word_embeddings` is off; here that only concerns the output projection
        return super().get_expanded_tied_weights_keys(all_submodels) if all_submodels else self._shared_keys()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding):
        self.encoder.embeddings.word_embeddings = value
        self.decoder.embeddings.word_embeddings = value

    @can_return_tuple
    @auto_docstring
    @checked_forward
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        decoder_position_ids: torch.LongTensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqModelOutput:
        r"""
        decoder_position_ids (`torch.LongTensor` of shape `(batch_size, target_len)`, *optional*):
            Rows of the position table for the target, the first token at `pad_token_id + 1`. By default counted from
            `decoder_attention_mask`, or else from the tokens that are not padding.
        """
        if encoder_outputs is None:
            if (source := input_ids if input_ids is not None else inputs_embeds) is not None:
                check_length("source", source.shape[1], self.config)
            encoder_outputs = self.encoder(
                input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **kwargs
            )
        elif not isinstance(encoder_outputs, ModelOutput):
            encoder_outputs = BaseModelOutput(
                last_hidden_state=encoder_outputs[0],
                hidden_states=encoder_outputs[1] if len(encoder_outputs) > 1 else None,
                attentions=encoder_outputs[2] if len(encoder_outputs) > 2 else None,
            )
        decoder_outputs = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            position_ids=decoder_position_ids,
            encoder_hidden_states=encoder_outputs.last_hidden_state,
            encoder_attention_mask=attention_mask,
            **{CACHE: cache},
            inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=decoder_outputs.last_hidden_state,
            **{CACHE: getattr(decoder_outputs, CACHE)},
            decoder_hidden_states=decoder_outputs.hidden_states,
            decoder_attentions=decoder_outputs.attentions,
            cross_attentions=decoder_outputs.cross_attentions,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            encoder_hidden_states=encoder_outputs.hidden_states,
            encoder_attentions=encoder_outputs.attentions,
        )


class XLMSWCMHeadTransform(nn.Module):
    """What stands before the output projection in XLM-R's masked-LM head, where `hidden_act` changes nothing."""

    def __init__(self, config: XLMSWCMConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.layer_norm(nn.functional.gelu(project(self.dense, hidden_states)))


@auto_docstring
class XLMSWCMForConditionalGeneration(XLMSWCMPreTrainedModel, GenerationMixin):
    base_class = XLMSWCMModel
    _tied_weights_keys = {"lm_head.weight": "model.encoder.embeddings.word_embeddings.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    model_tags = ["xlm-swcm"]
    # named here so that its file is saved with the model
    pipeline_class = XLMSWCMPipeline

    def __init__(self, config: XLMSWCMConfig):
        super().__init__(config)
        self.model = self.base_class(config)
        self.lm_head_transform = XLMSWCMHeadTransform(config) if config.lm_head_transform else None
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=True)
        # the default for this class name shifts the labels a second time
        self.loss_function = cross_entropy
        self.post_init()

    @can_return_tuple
    @auto_docstring
    @checked_forward
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        decoder_position_ids: torch.LongTensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqLMOutput:
        r"""
        decoder_position_ids (`torch.LongTensor` of shape `(batch_size, target_len)`, *optional*):
            Rows of the position table for the target, the first token at `pad_token_id + 1`. By default counted from
            `decoder_attention_mask`, or else from the tokens that are not padding.
        labels (`torch.LongTensor` of shape `(batch_size, target_len)`, *optional*):
            `<tgt> ... </s>`, with -100 where no loss is wanted, padded on the right. `decoder_input_ids` are made from
            them if absent. In training `logits` is then None, unless `config.logits_in_training` is set. With
            `label_smoothing=0.1` a tenth of each label is spread over the whole vocabulary.
        """
        if labels is not None:
            use_cache = False
            if decoder_input_ids is None and decoder_inputs_embeds is None:
                decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        leaves_out_logits = labels is not None and self._leaves_out_logits()

        with self._one_gradient() if leaves_out_logits else nullcontext() as one_gradient:
            outputs = self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                decoder_input_ids=decoder_input_ids,
                decoder_attention_mask=decoder_attention_mask,
                decoder_position_ids=decoder_position_ids,
                encoder_outputs=encoder_outputs,
                **{CACHE: cache},
                inputs_embeds=inputs_embeds,
                decoder_inputs_embeds=decoder_inputs_embeds,
                use_cache=use_cache,
                **kwargs,
            )
        hidden_states = slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep)
        if self.lm_head_transform is not None:
            hidden_states = self.lm_head_transform(hidden_states)
        loss = logits = None
        if leaves_out_logits:
            loss = linear_cross_entropy(hidden_states, one_gradient.weight, self.lm_head.bias, labels, **kwargs)
        else:
            logits = project(self.lm_head, hidden_states)
            if labels is not None:
                loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return Seq2SeqLMOutput(
            loss=loss,
            logits=logits,
            **{CACHE: getattr(outputs, CACHE)},
            decoder_hidden_states=outputs.decoder_hidden_states,
            decoder_attentions=outputs.decoder_attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
            encoder_hidden_states=outputs.encoder_hidden_states,
            encoder_attentions=outputs.encoder_attentions,
        )

    def _leaves_out_logits(self) -> bool:
        return (
            self.training
            and not self.config.logits_in_training
            and self.loss_function is cross_entropy
            and is_plain(self.lm_head)
            # gradients in float16 are scaled by the loss, too late for those that are computed with it
            and product_dtype(self.lm_head.weight) != torch.float16
        )

    def _one_gradient(self) -> OneGradient:
        """Of the output matrix and those word embeddings that have the same weight and can share its gradient."""
        weight = self.lm_head.weight
        if torch.compiler.is_compiling() or not (weight.requires_grad and torch.is_grad_enabled()):
            return OneGradient(weight, [])
        # those of encoder and decoder are one and the same after a resize
        embeddings = {part.embeddings.word_embeddings for part in (self.model.encoder, self.model.decoder)}
        simple = (one for one in embeddings if type(one) is nn.Embedding and "forward" not in vars(one))
        return OneGradient(weight, [one for one in simple if one.weight is weight])

    def prepare_decoder_input_ids_from_labels(self, labels: torch.LongTensor) -> torch.LongTensor:
        """The labels shifted right behind the start token, padding for -100; shape (batch_size, target_len)."""
        start = labels.new_full((labels.shape[0], 1), self.config.decoder_start_token_id)
        shifted = torch.cat([start, labels[:, :-1]], dim=1)
        return shifted.masked_fill(shifted == -100, self.config.pad_token_id)

    def _reorder_cache(self, cache: EncoderDecoderCache, beam_idx: torch.LongTensor) -> EncoderDecoderCache:
        # beams change places within their source alone, whose keys and values they all have
        cache.self_attention_cache.reorder_cache(beam_idx)
        return cache

    def _prepare_text_encoder_decoder_kwargs_for_generation(self, inputs_tensor: torch.Tensor, **kwargs) -> dict:
        # generation calls the encoder by itself
        check_length("source", inputs_tensor.shape[1], self.config)
        return super()._prepare_text_encoder_decoder_kwargs_for_generation(inputs_tensor=inputs_tensor, **kwargs)

    def _prepare_generated_length(self, *args, **kwargs) -> GenerationConfig:
        generation_config = super()._prepare_generated_length(*args, **kwargs)
        longest = self.config.longest_input + 1  # the last token is not read again
        if generation_config.max_length > longest:
            logger.warning_once(f"The model writes at most {longest - 1} tokens: max_new_tokens is cut to that.")
            generation_config.max_length = longest
        return generation_config

    def _prepare_decoder_input_ids_for_generation(
        self, batch_size: int, model_input_name: str, model_kwargs: dict, *args, **kwargs
    ) -> tuple[torch.LongTensor, dict]:
        # upstream looks for the start token in the first column, where a batch of left-padded prompts has none
        prompts, mask = model_kwargs.get("decoder_input_ids"), model_kwargs.get("decoder_attention_mask")
        if prompts is not None and mask is not None:
            first = mask.ne(0).int().argmax(dim=1, keepdim=True)
            if (prompts.gather(1, first) == self.config.decoder_start_token_id).all():
                return model_kwargs.pop("decoder_input_ids"), model_kwargs
        return super()._prepare_decoder_input_ids_for_generation(
            batch_size, model_input_name, model_kwargs, *args, **kwargs
        )

    def prepare_inputs_for_generation(
        self, input_ids: torch.LongTensor, *args, decoder_attention_mask: torch.Tensor | None = None, **kwargs
    ) -> dict:
        # a static cache turns the mask into a 4D one, from which positions can no longer be counted
        if decoder_attention_mask is not None and kwargs.get("decoder_position_ids") is None:
            kwargs["decoder_position_ids"] = position_ids_from_mask(decoder_attention_mask, self.config.pad_token_id)
        return super().prepare_inputs_for_generation(
            input_ids, *args, decoder_attention_mask=decoder_attention_mask, **kwargs
        )


__all__ = ["XLMSWCMForConditionalGeneration", "XLMSWCMModel", "XLMSWCMPreTrainedModel"]
