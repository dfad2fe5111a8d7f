"""The encoder: XLM-R, which also returns the input of every layer if the decoder reads it."""

from functools import partial

import torch
from torch import nn
from transformers import XLMRobertaModel
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaLayer
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.output_capturing import capture_outputs

from .compat_xlm_swcm import CACHE, checked_forward
from .configuration_xlm_swcm import XLMSWCMConfig
from .layers_xlm_swcm import AttentionModules, FeedForwardModules, modules_of
from .loss_xlm_swcm import SharedEmbedding
from .positions_xlm_swcm import position_ids_from_mask


class XLMSWCMEncoder(XLMRobertaModel):
    """Transformers' XLM-R without its pooler, with a tensor-parallel plan."""

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

    def get_layers(self) -> list[nn.Module]:
        """Return the layers."""
        return [*self.encoder.layer]

    def tied_modules(self) -> list[tuple[AttentionModules, FeedForwardModules]]:
        """Return the modules of each layer, which a tied prefix decoder calls."""
        return [modules_of(layer) for layer in self.encoder.layer]

    def unread_modules(self) -> list[nn.Module]:
        """Return the modules whose output no copied prefix decoder reads. It reads only the inputs of the layers."""
        return [self.encoder.layer[-1]]

    def fills_cache_once(self) -> bool:
        """Return True if each layer adds its keys to a cache once. Activation checkpointing computes a layer again."""
        return all(type(layer) is XLMRobertaLayer and not layer.gradient_checkpointing for layer in self.encoder.layer)

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
        # Transformers counts the positions of `inputs_embeds` from the first column, even if it is padding.
        is_padded = inputs_embeds is not None and attention_mask is not None and attention_mask.ndim == 2
        if position_ids is None and is_padded:
            position_ids = position_ids_from_mask(attention_mask, self.config.pad_token_id)
        embedding, padding_idx = self.embeddings.word_embeddings, self.embeddings.padding_idx
        if input_ids is not None and shared_embedding is not None and shared_embedding.supports(embedding):
            if position_ids is None:
                position_ids = self.embeddings.create_position_ids_from_input_ids(input_ids, padding_idx)
            inputs_embeds, input_ids = shared_embedding.look_up(embedding, input_ids), None
        hidden_states = self.embeddings(input_ids=input_ids, position_ids=position_ids, inputs_embeds=inputs_embeds)
        attention_mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden_states, attention_mask=attention_mask
        )
        layer_inputs = []
        for layer in self.encoder.layer:
            layer_inputs.append(hidden_states)
            # Each layer adds its keys and values to the cache, from which a tied decoder reads them.
            hidden_states = layer(hidden_states, attention_mask, **{CACHE: source_cache}, **kwargs)
        return BaseModelOutput(
            last_hidden_state=hidden_states,
            hidden_states=(*layer_inputs, hidden_states) if self.config.has_prefix_decoder else None,
        )
