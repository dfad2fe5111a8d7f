"""The decoder, and the base class of all XLM-SWCM models."""

import re
from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaEmbeddings
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .compat_xlm_swcm import CACHE, OLD_CACHE, checked_forward, output_recorder
from .configuration_xlm_swcm import XLMSWCMConfig
from .hub_xlm_swcm import XLMSWCMHubMixin
from .layers_xlm_swcm import (
    AttentionModules,
    FeedForwardModules,
    XLMSWCMAttention,
    XLMSWCMCustomDecoderLayer,
    XLMSWCMDecoderLayer,
    XLMSWCMNormalDecoderLayer,
    XLMSWCMPrefixAttention,
    XLMSWCMPrefixDecoderLayer,
    make_prefix_mask,
)
from .loss_xlm_swcm import SharedEmbedding
from .peft_xlm_swcm import XLMSWCMPeftMixin, check_cache_layers
from .positions_xlm_swcm import check_length, check_mask, position_ids_from_mask, select_positions


# Tensor-parallel style of each linear layer in a decoder layer.
TP_STYLES = dict.fromkeys(("q_proj", "k_proj", "v_proj", "fc1"), "colwise") | dict.fromkeys(
    ("out_proj", "fc2"), "rowwise"
)


class XLMSWCMPreTrainedModel(XLMSWCMHubMixin, XLMSWCMPeftMixin, PreTrainedModel):
    """
    Base class of the XLM-SWCM models: weight initialisation, loading and saving.

    Args:
        config ([`XLMSWCMConfig`]):
            Sizes and decoder layers of the model.
    """

    config: XLMSWCMConfig
    base_model_prefix = "model"
    # Name of the word embeddings in the module of all embeddings.
    embedding_name = "word_embeddings"
    supports_gradient_checkpointing = True
    _no_split_modules = [
        "XLMRobertaEmbeddings",
        "XLMRobertaLayer",
        "XLMSWCMCustomDecoderLayer",
        "XLMSWCMNormalDecoderLayer",
        "XLMSWCMPrefixDecoderLayer",
    ]
    _skip_keys_device_placement = ["cache", OLD_CACHE, "tied_modules"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """Load a model as in Transformers, and freeze the encoder layer that no decoder layer reads."""
        loaded = super().from_pretrained(*args, **kwargs)
        # Transformers replaces the parameters when it loads them.
        (loaded[0] if isinstance(loaded, tuple) else loaded).freeze_unread_layer()
        return loaded

    def freeze_unread_layer(self):
        """
        Freeze the last encoder layer of a prefix decoder with `weight_sharing="init"`.

        A prefix decoder reads the input of each encoder layer. So nothing reads the output of the last encoder layer,
        and its weights get no gradient. Distributed training refuses such weights.
        """
        is_copied_prefix = self.config.has_prefix_decoder and self.config.weight_sharing == "init"
        encoder = getattr(self.base_model, "encoder", None)
        if is_copied_prefix and encoder is not None:
            for module in encoder.unread_modules():
                module.requires_grad_(False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, XLMRobertaEmbeddings):
            # Checkpoints do not contain these buffers, and the meta device leaves them empty.
            init.copy_(module.position_ids, torch.arange(module.position_ids.shape[-1]).expand((1, -1)))
            init.zeros_(module.token_type_ids)


class XLMSWCMDecoder(XLMSWCMPreTrainedModel):
    """Decoder with the layers of `config.decoder_blocks`. In [`XLMSWCMModel`] it shares the encoder's embeddings."""

    embeddings_class: type[nn.Module] = XLMRobertaEmbeddings
    layer_classes = {
        "custom": XLMSWCMCustomDecoderLayer,
        "normal": XLMSWCMNormalDecoderLayer,
        "prefix": XLMSWCMPrefixDecoderLayer,
    }
    _can_record_outputs = {
        "hidden_states": output_recorder(XLMSWCMDecoderLayer, num_hidden_layers_key="decoder_layers"),
        "attentions": OutputRecorder(XLMSWCMAttention, index=1, layer_name="self_attn"),
        "cross_attentions": [
            OutputRecorder(XLMSWCMAttention, index=1, layer_name="cross_attn"),
            OutputRecorder(XLMSWCMPrefixAttention, index=2, layer_name="self_attn"),
        ],
    }

    def __init__(self, config: XLMSWCMConfig):
        super().__init__(config)
        self.embeddings = self.embeddings_class(config)
        self.layers = nn.ModuleList(
            self.layer_classes[block](config, layer_idx) for layer_idx, block in enumerate(config.decoder_blocks)
        )
        self.gradient_checkpointing = False
        self.post_init()
        self._tp_plan = self._make_tp_plan()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the word embeddings."""
        return getattr(self.embeddings, self.embedding_name)

    def set_input_embeddings(self, value: nn.Embedding):
        """Replace the word embeddings."""
        setattr(self.embeddings, self.embedding_name, value)

    def _make_tp_plan(self) -> dict[str, str]:
        """Return the tensor-parallel plan of the layers that the decoder has."""
        plan = {f"embeddings.{self.embedding_name}": "embedding_rowwise"}
        for name, _ in self.layers.named_modules(prefix="layers"):
            if (style := TP_STYLES.get(name.rpartition(".")[2])) is not None:
                plan[re.sub(r"\.\d+\.", ".*.", name)] = style
        return plan

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
        shared_embedding: SharedEmbedding | None = None,
        tied_modules: list[tuple[AttentionModules, FeedForwardModules]] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        r"""
        encoder_hidden_states (`torch.Tensor` of shape `(batch_size, source_len, hidden_size)` or `tuple` of them):
            Output of the encoder. A prefix decoder needs the input of every encoder layer, as a tuple.
        shared_embedding (`SharedEmbedding`, *optional*):
            Word embeddings that share one gradient with the output projection, for training.
        tied_modules (`list`, *optional*):
            Modules of each encoder layer, which a tied prefix decoder calls.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError(
                "The decoder needs either decoder_input_ids or decoder_inputs_embeds. Pass exactly one of them, or "
                "labels. For label smoothing in Seq2SeqTrainer, use DataCollatorForSeq2Seq(tokenizer, model=model)."
            )
        if encoder_hidden_states is None:
            raise ValueError("encoder_hidden_states is missing. Pass the output of the encoder.")
        if use_cache and cache is None:
            cache = EncoderDecoderCache(DynamicCache(config=self.config), DynamicCache(config=self.config))
        check_cache_layers(cache, len(self.layers))
        past_length = cache.get_seq_length() if cache is not None else 0
        is_prefix = self.config.has_prefix_decoder
        if is_prefix and self.config.weight_sharing == "tied" and tied_modules is None:
            raise ValueError("A tied prefix decoder has no weights. Call the whole model.")
        source_states = encoder_hidden_states[0] if is_prefix else encoder_hidden_states
        check_mask("source", encoder_attention_mask, source_states.shape[1])
        # The mask of a static cache also has columns for tokens that are not generated yet.
        if cache is None or not cache.is_compileable:
            target = input_ids if input_ids is not None else inputs_embeds
            check_mask("target", attention_mask, past_length + target.shape[1])
        if position_ids is None:
            position_ids = self._position_ids(input_ids, inputs_embeds, attention_mask, past_length)
        hidden_states = self._embed(input_ids, inputs_embeds, position_ids, past_length, shared_embedding)

        attention_mask, encoder_attention_mask = self._make_masks(
            attention_mask, encoder_attention_mask, hidden_states, source_states, cache, position_ids
        )
        for index, layer in enumerate(self.layers):
            if tied_modules is not None:
                kwargs["tied_modules"] = tied_modules[index]
            hidden_states = layer(
                hidden_states,
                attention_mask,
                # Reentrant activation checkpointing returns gradients of positional arguments only.
                encoder_hidden_states[index] if is_prefix else encoder_hidden_states,
                encoder_attention_mask=encoder_attention_mask,
                **{CACHE: cache},
                **kwargs,
            )
        hidden_states = self._final_norm(hidden_states, tied_modules)
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden_states, **{CACHE: cache})

    def _final_norm(self, hidden_states: torch.Tensor, tied_modules: list | None) -> torch.Tensor:
        """Return the normalised output of the last layer. Layers with post-LayerNorm have normalised it already."""
        return hidden_states

    def _make_masks(
        self,
        attention_mask: torch.Tensor | None,
        encoder_attention_mask: torch.Tensor | None,
        hidden_states: torch.Tensor,
        source_states: torch.Tensor,
        cache: EncoderDecoderCache | None,
        position_ids: torch.LongTensor,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return the masks of self-attention and cross-attention. A prefix decoder has one mask for both."""
        if self.config.has_prefix_decoder:
            return make_prefix_mask(encoder_attention_mask, attention_mask, source_states, hidden_states, cache), None
        self_attention_mask = self._make_causal_mask(attention_mask, hidden_states, cache)
        # All target tokens read the same source, so one row is enough. FlexAttention needs a row for each token.
        has_one_row = self.config._attn_implementation in ("eager", "sdpa")
        cross_attention_mask = create_bidirectional_mask(
            config=self.config,
            inputs_embeds=hidden_states[:, :1] if has_one_row else hidden_states,
            attention_mask=encoder_attention_mask,
            encoder_hidden_states=source_states,
        )
        return self_attention_mask, cross_attention_mask

    def _make_causal_mask(
        self,
        attention_mask: torch.Tensor | None,
        hidden_states: torch.Tensor,
        cache: EncoderDecoderCache | None,
        and_mask_function: Callable | None = None,
    ) -> torch.Tensor | None:
        """Return the mask of self-attention, which `and_mask_function` can restrict."""
        return create_causal_mask(
            config=self.config,
            inputs_embeds=hidden_states,
            attention_mask=attention_mask,
            and_mask_function=and_mask_function,
            **{CACHE: cache.self_attention_cache if cache is not None else None},
        )

    def _embed(
        self,
        input_ids: torch.LongTensor | None,
        inputs_embeds: torch.Tensor | None,
        position_ids: torch.LongTensor,
        past_length: int | torch.Tensor,
        shared_embedding: SharedEmbedding | None,
    ) -> torch.Tensor:
        length = (input_ids if input_ids is not None else inputs_embeds).shape[1]
        # In a static cache the length is a tensor, which cannot be compared without synchronization.
        if isinstance(past_length, int):
            check_length("target", past_length + length, self.config)
        embedding = self.get_input_embeddings()
        if inputs_embeds is None and shared_embedding is not None and shared_embedding.supports(embedding):
            inputs_embeds = shared_embedding.look_up(embedding, input_ids)
            input_ids = None
        return self._run_embeddings(input_ids, inputs_embeds, position_ids)

    def _run_embeddings(
        self, input_ids: torch.LongTensor | None, inputs_embeds: torch.Tensor | None, position_ids: torch.LongTensor
    ) -> torch.Tensor:
        """Return the input of the first layer, of shape `(batch, target_len, hidden_size)`."""
        return self.embeddings(input_ids=input_ids, position_ids=position_ids, inputs_embeds=inputs_embeds)

    def _position_ids(
        self,
        input_ids: torch.LongTensor | None,
        inputs_embeds: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        past_length: int | torch.Tensor,
    ) -> torch.LongTensor:
        """Return XLM-R's positions, which count the tokens that are not padding from `padding_idx + 1`."""
        padding_idx = self.embeddings.padding_idx
        if attention_mask is not None and attention_mask.ndim == 2:
            length = (input_ids if input_ids is not None else inputs_embeds).shape[1]
            return select_positions(position_ids_from_mask(attention_mask, padding_idx), past_length, length)
        if input_ids is not None:
            return self.embeddings.create_position_ids_from_input_ids(input_ids, padding_idx, past_length)
        return self.embeddings.create_position_ids_from_inputs_embeds(inputs_embeds, padding_idx) + past_length
