"""XLM-SWCM: an XLM-R encoder, and a decoder that is built from the weights of the encoder.

Source: "Multilingual Encoder Knows more than You Realize: Shared Weights Pretraining for Extremely Low-Resource
Languages" (Su et al., ACL 2025, arXiv 2502.10852).
"""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import (
    BaseModelOutput,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
)
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, auto_docstring, can_return_tuple

from .compat_xlm_swcm import CACHE, checked_forward, slice_logits_to_keep
from .configuration_xlm_swcm import XLMSWCMConfig
from .decoder_xlm_swcm import XLMSWCMDecoder, XLMSWCMPreTrainedModel
from .encoder_xlm_swcm import XLMSWCMEncoder
from .generation_xlm_swcm import XLMSWCMGenerationMixin
from .layers_xlm_swcm import (  # noqa: F401  (public import paths)
    CUSTOM_LAYER_SOURCES,
    AttentionModules,
    FeedForwardModules,
    XLMSWCMAttention,
    XLMSWCMCustomDecoderLayer,
    XLMSWCMDecoderLayer,
    XLMSWCMFeedForward,
    XLMSWCMHeadTransform,
    XLMSWCMNormalDecoderLayer,
    eager_attention_forward,
    modules_of,
)
from .linear_xlm_swcm import is_plain_linear
from .loss_xlm_swcm import SharedEmbedding, cross_entropy, linear_cross_entropy
from .peft_xlm_swcm import check_adapters, output_projection
from .pipeline_xlm_swcm import XLMSWCMPipeline
from .positions_xlm_swcm import check_length


class XLMSWCMModel(XLMSWCMPreTrainedModel):
    """
    XLM-R encoder, and a decoder with the layers of `config.decoder_blocks`, without an output projection.

    `XLMSWCMModel(config)` has random weights. `from_pretrained` loads a converted or trained model.

    Args:
        config ([`XLMSWCMConfig`]):
            Sizes and decoder layers of the model.
    """

    encoder_class: type[PreTrainedModel] = XLMSWCMEncoder
    decoder_class = XLMSWCMDecoder
    # Name of the encoder layers, and the modules of them that a custom layer copies.
    encoder_layers = "encoder.encoder.layer"
    layer_sources = CUSTOM_LAYER_SOURCES
    _keys_to_ignore_on_load_unexpected = [r"^lm_head(_transform)?\."]

    def __init__(self, config: XLMSWCMConfig):
        super().__init__(config)
        # Fields that were set after the config was made are not validated yet.
        config.validate_architecture()
        self.encoder = self.encoder_class(config)
        self.decoder = self.decoder_class(config)
        self._tied_weights_keys = self._shared_keys()
        self.post_init()
        self.freeze_unread_layer()

    def _shared_keys(self) -> dict[str, str]:
        """Return the tied keys: the embeddings, and with `weight_sharing="tied"` the custom layers."""
        keys = {
            f"decoder.embeddings.{name}": f"encoder.embeddings.{name}"
            for name, _ in self.encoder.embeddings.named_parameters()
        }
        if self.config.weight_sharing == "tied":
            # A tied prefix decoder calls the modules of the encoder, so its layers have no weights to tie.
            custom = [index for index, block in enumerate(self.config.decoder_blocks) if block == "custom"]
            # Layers of ModernBERT can lack norms and biases.
            names = {name for name, _ in self.named_parameters(remove_duplicate=False)}
            for encoder_index, decoder_index in enumerate(custom):
                for target, source in self.layer_sources.items():
                    for parameter in ("weight", "bias"):
                        name = f"{self.encoder_layers}.{encoder_index}.{source}.{parameter}"
                        if name in names:
                            keys[f"decoder.layers.{decoder_index}.{target}.{parameter}"] = name
        return keys

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict:
        """Return the names of tied weights, for Transformers."""
        # `tie_word_embeddings=False` unties only the output projection. Transformers would untie everything.
        return super().get_expanded_tied_weights_keys(all_submodels) if all_submodels else self._shared_keys()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the word embeddings."""
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding):
        """Replace the word embeddings of encoder and decoder."""
        for module in (self.encoder, self.decoder):
            setattr(module.embeddings, self.embedding_name, value)

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
        shared_embedding: SharedEmbedding | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqModelOutput:
        r"""
        decoder_position_ids (`torch.LongTensor` of shape `(batch_size, target_len)`, *optional*):
            Positions of the target. The first token has the position `config.padding_position + 1`. By default they
            count the tokens in `decoder_attention_mask`, or else the tokens that are not padding.
        shared_embedding (`SharedEmbedding`, *optional*):
            Word embeddings that share one gradient with the output projection, for training.
        """
        check_adapters(self)
        source_cache = None
        if encoder_outputs is None:
            source_cache = self._source_cache() if cache is None and use_cache is False else None
            encoder_outputs = self._encode(
                input_ids, attention_mask, inputs_embeds, shared_embedding, source_cache, **kwargs
            )
        elif not isinstance(encoder_outputs, ModelOutput):
            # last_hidden_state, hidden_states, attentions
            encoder_outputs = BaseModelOutput(*encoder_outputs[:3])
        source_states, tied_modules = self._source_of_decoder(encoder_outputs)
        if source_cache is not None:
            cache = EncoderDecoderCache(DynamicCache(config=self.config), source_cache)
        decoder_outputs = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            position_ids=decoder_position_ids,
            encoder_hidden_states=source_states,
            encoder_attention_mask=attention_mask,
            **{CACHE: cache},
            inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            shared_embedding=shared_embedding,
            tied_modules=tied_modules,
            **kwargs,
        )
        # The encoder always returns the hidden states that a prefix decoder reads.
        wants_states = kwargs.get("output_hidden_states", self.config.output_hidden_states)
        has_states = wants_states or not self.config.has_prefix_decoder
        return Seq2SeqModelOutput(
            last_hidden_state=decoder_outputs.last_hidden_state,
            **{CACHE: getattr(decoder_outputs, CACHE) if source_cache is None else None},
            decoder_hidden_states=decoder_outputs.hidden_states,
            decoder_attentions=decoder_outputs.attentions,
            cross_attentions=decoder_outputs.cross_attentions,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            encoder_hidden_states=encoder_outputs.hidden_states if has_states else None,
            encoder_attentions=encoder_outputs.attentions,
        )

    def _source_cache(self) -> DynamicCache | None:
        """Return an empty cache for the keys and values of the source, which a tied decoder reads."""
        if not self.config.has_prefix_decoder or self.config.weight_sharing != "tied":
            return None
        return DynamicCache(config=self.config) if self.encoder.fills_cache_once() else None

    def _source_of_decoder(
        self, encoder_outputs: BaseModelOutput
    ) -> tuple[torch.Tensor | tuple[torch.Tensor, ...], list | None]:
        """Return the states of the source that the decoder reads, and the modules of the encoder that it calls."""
        if not self.config.has_prefix_decoder:
            return encoder_outputs.last_hidden_state, None
        if encoder_outputs.hidden_states is None:
            raise ValueError(
                "encoder_outputs has no hidden_states, which a prefix decoder needs. Pass the output of "
                "model.get_encoder()."
            )
        is_tied = self.config.weight_sharing == "tied"
        return encoder_outputs.hidden_states, self.encoder.tied_modules() if is_tied else None

    def _encode(
        self,
        input_ids: torch.LongTensor | None,
        attention_mask: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        shared_embedding: SharedEmbedding | None,
        source_cache: DynamicCache | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        source = input_ids if input_ids is not None else inputs_embeds
        if source is not None:
            check_length("source", source.shape[1], self.config)
        if self.config.has_prefix_decoder and kwargs.get("output_hidden_states"):
            # Transformers drops the states that a list leaves out, but the decoder reads all of them.
            kwargs["output_hidden_states"] = True
        return self.encoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            shared_embedding=shared_embedding,
            source_cache=source_cache,
            **kwargs,
        )


class XLMSWCMForConditionalGeneration(XLMSWCMPreTrainedModel, XLMSWCMGenerationMixin):
    """
    [`XLMSWCMModel`] with an output projection, for training and `generate`.

    Args:
        config ([`XLMSWCMConfig`]):
            Sizes and decoder layers of the model.
    """

    base_class = XLMSWCMModel
    transform_class: type[nn.Module] = XLMSWCMHeadTransform
    _tied_weights_keys = {"lm_head.weight": "model.encoder.embeddings.word_embeddings.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    model_tags = ["xlm-swcm"]
    # Transformers saves the file of the pipeline with the model because this module imports it.
    pipeline_class = XLMSWCMPipeline

    def __init__(self, config: XLMSWCMConfig):
        super().__init__(config)
        self.model = self.base_class(config)
        self.lm_head_transform = self.transform_class(config) if config.lm_head_transform else None
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=True)
        # Transformers' default loss for this class name would shift the labels again.
        self.loss_function = cross_entropy
        self.post_init()

    def tie_weights(self, missing_keys: set[str] | None = None, recompute_mapping: bool = True):
        """
        Tie the weights as in Transformers.

        A separate output projection that a checkpoint lacks gets a copy of the word embeddings.
        """
        super().tie_weights(missing_keys, recompute_mapping)
        source_name = self._tied_weights_keys["lm_head.weight"]
        # `from_pretrained` passes the names of the tensors that the checkpoint lacks.
        if missing_keys is None or "lm_head.weight" not in missing_keys or source_name in missing_keys:
            return
        weight, source = self.lm_head.weight, self.get_parameter(source_name)
        if source.is_meta and not weight.is_meta:
            raise ValueError(
                "The output projection cannot start as a copy of the word embeddings, because device_map keeps them "
                "on disk. Put the word embeddings on a device."
            )
        with torch.no_grad():
            weight.copy_(source)
        missing_keys.discard("lm_head.weight")

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
            Positions of the target. The first token has the position `config.padding_position + 1`. By default they
            count the tokens in `decoder_attention_mask`, or else the tokens that are not padding.
        labels (`torch.LongTensor` of shape `(batch_size, target_len)`, *optional*):
            Token ids `<tgt> ... </s>`, padded on the right. The label -100 is ignored. By default `decoder_input_ids`
            are the labels shifted right. In training mode, the output has a loss but no logits. Set
            `config.logits_in_training` to get logits. The keyword `label_smoothing=0.1` spreads a tenth of each label
            over the whole vocabulary.
        """
        check_adapters(self)
        if labels is not None:
            if isinstance(logits_to_keep, torch.Tensor) or logits_to_keep:
                raise ValueError("labels need all logits. Remove logits_to_keep.")
            use_cache = False
            if decoder_input_ids is None and decoder_inputs_embeds is None:
                decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        has_logits = labels is None or not self._supports_chunked_loss()
        shared_embedding = None if has_logits else self._shared_embedding()
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
            shared_embedding=shared_embedding,
            **kwargs,
        )
        hidden_states = slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep)
        loss, logits = self._loss_and_logits(hidden_states, labels, has_logits, shared_embedding, **kwargs)
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

    def _loss_and_logits(
        self,
        hidden_states: torch.Tensor,
        labels: torch.LongTensor | None,
        has_logits: bool,
        shared_embedding: SharedEmbedding | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if self.lm_head_transform is not None:
            hidden_states = self.lm_head_transform(hidden_states)
        if shared_embedding is not None:
            shared_embedding.is_used = True
        if not has_logits:
            weight = self.lm_head.weight if shared_embedding is None else shared_embedding.weight
            return linear_cross_entropy(hidden_states, weight, self.lm_head.bias, labels, **kwargs), None
        logits = output_projection(self.lm_head, hidden_states)
        if labels is None:
            return None, logits
        return self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs), logits

    def _supports_chunked_loss(self) -> bool:
        return (
            self.training
            and not self.config.logits_in_training
            and self.loss_function is cross_entropy
            and is_plain_linear(self.lm_head)
        )

    def _shared_embedding(self) -> SharedEmbedding | None:
        weight = self.lm_head.weight
        if torch.compiler.is_compiling() or not (weight.requires_grad and torch.is_grad_enabled()):
            return None
        return SharedEmbedding(weight)

    def prepare_decoder_input_ids_from_labels(self, labels: torch.LongTensor) -> torch.LongTensor:
        """
        Shift the labels right, put the start token in front, and replace -100 by the padding token.

        Args:
            labels (`torch.LongTensor` of shape `(batch_size, target_length)`):
                Labels.

        Returns:
            `torch.LongTensor` of shape `(batch_size, target_length)`: the input of the decoder.
        """
        if self.config.decoder_start_token_id is None:
            raise ValueError("decoder_start_token_id of the config is None. Set it, for example to bos_token_id.")
        start = labels.new_full((labels.shape[0], 1), self.config.decoder_start_token_id)
        shifted = torch.cat([start, labels[:, :-1]], dim=1)
        return shifted.masked_fill(shifted == -100, self.config.pad_token_id)


__all__ = ["XLMSWCMForConditionalGeneration", "XLMSWCMModel", "XLMSWCMPreTrainedModel"]
