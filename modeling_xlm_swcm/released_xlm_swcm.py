"""The decoder layers of the checkpoint that the paper's authors released (KEVVVV/xlm-swcm).

They differ from the layers of XLM-SWCM. LayerNorms come before sublayers, the self-attention of a custom layer has no
residual, and a normal layer uses its first LayerNorm twice. The released code cannot run, because it embeds its input
again in every layer. Its masks are inconsistent. Here the input is embedded once, padding is masked in all
attentions, and self-attention is causal.
"""

import torch
from huggingface_hub.dataclasses import strict
from torch import nn

from .configuration_xlm_swcm import XLMSWCMConfig
from .layers_xlm_swcm import Attend, XLMSWCMAttention, XLMSWCMDecoderLayer
from .linear_xlm_swcm import fast_linear
from .modeling_xlm_swcm import XLMSWCMDecoder, XLMSWCMForConditionalGeneration, XLMSWCMModel


@strict
class ReleasedXLMSWCMConfig(XLMSWCMConfig):
    r"""
    Configuration of [`ReleasedXLMSWCMForConditionalGeneration`].

    It has the fields of [`XLMSWCMConfig`], with two differences. `decoder_blocks` contains `"released_custom"` and
    `"released_normal"`. `tie_word_embeddings` defaults to `False`.
    """

    model_type = "xlm_swcm_released"
    block_types = ("released_custom", "released_normal")
    prefix_block = ""
    export_problem = (
        "uses the authors' original layers, which cannot be exported. Export a model that xlm-swcm convert made."
    )
    auto_classes = {
        "AutoConfig": "released_xlm_swcm.ReleasedXLMSWCMConfig",
        "AutoModel": "released_xlm_swcm.ReleasedXLMSWCMModel",
        "AutoModelForSeq2SeqLM": "released_xlm_swcm.ReleasedXLMSWCMForConditionalGeneration",
    }

    tie_word_embeddings: bool = False


class ReleasedAttention(XLMSWCMAttention):
    """Attention without residual, LayerNorm and dropout, which the decoder layer applies."""

    def __init__(self, config: ReleasedXLMSWCMConfig, layer_idx: int, is_causal: bool):
        super().__init__(config, layer_idx, is_causal)
        del self.layer_norm
        self.attention_dropout = 0.0

    def _add_and_norm(self, hidden_states: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        return attended


class ReleasedFeedForward(nn.Module):
    def __init__(self, config: ReleasedXLMSWCMConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return fast_linear(self.fc2, nn.functional.gelu(fast_linear(self.fc1, hidden_states)))


class ReleasedCustomDecoderLayer(XLMSWCMDecoderLayer):
    """Self-attention, FFN, cross-attention, FFN, each after a LayerNorm. All but self-attention have a residual."""

    attention_class = ReleasedAttention

    def __init__(self, config: ReleasedXLMSWCMConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.ffn1 = ReleasedFeedForward(config)
        self.ffn2 = ReleasedFeedForward(config)
        # The LayerNorms have PyTorch's default epsilon, as in the released code.
        self.norm1 = nn.LayerNorm(config.hidden_size)
        self.norm2 = nn.LayerNorm(config.hidden_size)
        self.norm3 = nn.LayerNorm(config.hidden_size)
        self.norm4 = nn.LayerNorm(config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def apply_sublayers(
        self, hidden_states: torch.Tensor, attend_to_target: Attend, attend_to_source: Attend
    ) -> torch.Tensor:
        """Apply the sublayers in the order of the release."""
        hidden_states = attend_to_target(self.norm1(hidden_states))
        hidden_states = hidden_states + self.dropout(self.ffn1(self.norm2(hidden_states)))
        hidden_states = hidden_states + self.dropout(attend_to_source(self.norm3(hidden_states)))
        return hidden_states + self.dropout(self.ffn2(self.norm4(hidden_states)))


class ReleasedNormalDecoderLayer(XLMSWCMDecoderLayer):
    """Self-attention, cross-attention, FFN, each after a LayerNorm. The residual adds the output of the LayerNorm."""

    attention_class = ReleasedAttention

    def __init__(self, config: ReleasedXLMSWCMConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.ffn = ReleasedFeedForward(config)
        self.norm1 = nn.LayerNorm(config.hidden_size)
        self.norm2 = nn.LayerNorm(config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def apply_sublayers(
        self, hidden_states: torch.Tensor, attend_to_target: Attend, attend_to_source: Attend
    ) -> torch.Tensor:
        """Apply the sublayers in the order of the release."""
        hidden_states = self.norm1(hidden_states)
        hidden_states = self.norm1(hidden_states + self.dropout(attend_to_target(hidden_states)))
        hidden_states = self.norm2(hidden_states + self.dropout(attend_to_source(hidden_states)))
        return hidden_states + self.dropout(self.ffn(hidden_states))


class ReleasedXLMSWCMDecoder(XLMSWCMDecoder):
    config: ReleasedXLMSWCMConfig
    layer_classes = {"released_custom": ReleasedCustomDecoderLayer, "released_normal": ReleasedNormalDecoderLayer}
    _no_split_modules = ["ReleasedCustomDecoderLayer", "ReleasedNormalDecoderLayer"]


class ReleasedXLMSWCMModel(XLMSWCMModel):
    """[`XLMSWCMModel`] with the decoder layers of the release."""

    config: ReleasedXLMSWCMConfig
    decoder_class = ReleasedXLMSWCMDecoder


class ReleasedXLMSWCMForConditionalGeneration(XLMSWCMForConditionalGeneration):
    """[`XLMSWCMForConditionalGeneration`] with the decoder layers of the release."""

    config: ReleasedXLMSWCMConfig
    base_class = ReleasedXLMSWCMModel


__all__ = ["ReleasedXLMSWCMConfig", "ReleasedXLMSWCMForConditionalGeneration", "ReleasedXLMSWCMModel"]
