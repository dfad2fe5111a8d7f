"""Models to compare with decoders of XLM-SWCM. Each has the vocabulary of the encoder and the language tags.

Sources: Transformers' EncoderDecoderModel (Rothe et al., 2020), MBart (Liu et al., 2020), the code of Su et al., 2025.
"""

import torch
from torch import nn
from transformers import EncoderDecoderModel, MBartConfig, MBartForConditionalGeneration, PreTrainedModel
from transformers.models.bart.modeling_bart import shift_tokens_right

from modeling_xlm_swcm import XLMSWCMForConditionalGeneration
from modeling_xlm_swcm.layers_xlm_swcm import XLMSWCMCustomDecoderLayer
from modeling_xlm_swcm.loss_xlm_swcm import cross_entropy
from modeling_xlm_swcm.released_xlm_swcm import ReleasedXLMSWCMConfig, ReleasedXLMSWCMForConditionalGeneration


SPECIAL_IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
# LayerNorm of a released custom layer -> sublayer that follows. In a custom layer, the sublayer has the LayerNorm.
RELEASED_NORMS = {"norm1": "self_attn", "norm2": "ffn1", "norm3": "cross_attn", "norm4": "ffn2"}


class SameLoss:
    """The loss of XLM-SWCM for other encoder-decoders. Their losses have other averages."""

    def forward(self, labels=None, decoder_input_ids=None, num_items_in_batch=None, **inputs):
        if labels is not None:
            inputs["use_cache"] = False
            if decoder_input_ids is None:
                decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        outputs = super().forward(decoder_input_ids=decoder_input_ids, **inputs)
        if labels is not None:
            outputs.loss = cross_entropy(outputs.logits, labels, outputs.logits.shape[-1], num_items_in_batch)
        return outputs


class WarmStart(SameLoss, EncoderDecoderModel):
    pass


class FromScratch(SameLoss, MBartForConditionalGeneration):
    def prepare_decoder_input_ids_from_labels(self, labels: torch.LongTensor) -> torch.LongTensor:
        """Shift the labels to the right. MBart's own function begins with the last token."""
        return shift_tokens_right(labels, self.config.pad_token_id, self.config.decoder_start_token_id)


def special_ids(model: XLMSWCMForConditionalGeneration) -> dict[str, int]:
    return {name: getattr(model.config, name) for name in SPECIAL_IDS}


def warm_start(model: XLMSWCMForConditionalGeneration, encoder: str) -> PreTrainedModel:
    """Build Transformers' warm start: random cross-attention, reused masked-LM head, separate embeddings."""
    warm = WarmStart.from_encoder_decoder_pretrained(
        encoder, encoder, encoder_add_pooling_layer=False, encoder_dtype="float32", decoder_dtype="float32"
    )
    # These embeddings include the language tags.
    words = model.get_input_embeddings().weight
    for half in (warm.encoder, warm.decoder):
        half.resize_token_embeddings(len(words), mean_resizing=False)
        half.get_input_embeddings().weight.copy_(words)
    warm.decoder.lm_head.bias.copy_(model.lm_head.bias)
    for name, value in special_ids(model).items():
        setattr(warm.config, name, value)
    warm.generation_config = model.generation_config
    return warm


def from_scratch(model: XLMSWCMForConditionalGeneration, encoder: str) -> PreTrainedModel:
    """Build an MBart with the layers, size and vocabulary of the encoder. All weights are random."""
    config = model.config
    sizes = {"encoder": config.num_hidden_layers, "decoder": config.num_hidden_layers}
    layers = {
        f"{half}_{name}": value
        for half, count in sizes.items()
        for name, value in {
            "layers": count,
            "attention_heads": config.num_attention_heads,
            "ffn_dim": config.intermediate_size,
        }.items()
    }
    mbart = FromScratch(
        MBartConfig(
            vocab_size=config.vocab_size,
            d_model=config.hidden_size,
            max_position_embeddings=config.max_position_embeddings,
            dropout=config.hidden_dropout_prob,
            attention_dropout=config.attention_probs_dropout_prob,
            scale_embedding=True,
            forced_eos_token_id=None,
            **layers,
            **special_ids(model),
        )
    )
    mbart.generation_config = model.generation_config
    return mbart


def released_layers(model: XLMSWCMForConditionalGeneration, encoder: str) -> PreTrainedModel:
    """Copy the encoder into the authors' released layers. Normal layers and the output matrix are random."""
    fields = model.config.to_dict() | {"tie_word_embeddings": False}
    fields["decoder_blocks"] = [f"released_{block}" for block in model.config.decoder_blocks]
    released = ReleasedXLMSWCMForConditionalGeneration(ReleasedXLMSWCMConfig.from_dict(fields))
    released.model.encoder.load_state_dict(model.model.encoder.state_dict())
    for layer, source in zip(released.model.decoder.layers, model.model.decoder.layers, strict=True):
        if isinstance(source, XLMSWCMCustomDecoderLayer):
            copy_custom_layer(source, layer)
    released.generation_config = model.generation_config
    return released


def copy_custom_layer(source: XLMSWCMCustomDecoderLayer, target: nn.Module):
    """Copy the linear layers and the LayerNorm of each sublayer."""
    for norm, name in RELEASED_NORMS.items():
        sublayer, copy = source.get_submodule(name), target.get_submodule(name)
        for child, module in copy.named_children():
            if isinstance(module, nn.Linear):
                module.load_state_dict(sublayer.get_submodule(child).state_dict())
        target.get_submodule(norm).load_state_dict(sublayer.layer_norm.state_dict())
