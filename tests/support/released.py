"""A plain implementation of the released architecture, with the tensor names of the release."""

from pathlib import Path

import torch
from torch import nn
from transformers import XLMRobertaModel


START, PAD, END = 0, 1, 2


class PlainLayer(nn.Module):
    """A layer of a plain implementation, with the tensor names of the released file."""

    def __init__(self, config, num_norms: int, ffns: tuple[str, ...]):
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.self_attention = nn.MultiheadAttention(width, config.num_attention_heads, batch_first=True)
        self.cross_attention = nn.MultiheadAttention(width, config.num_attention_heads, batch_first=True)
        for ffn in ffns:
            setattr(self, ffn, nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width)))
        for number in range(1, num_norms + 1):
            setattr(self, f"norm{number}", nn.LayerNorm(width))


class PlainCustomLayer(PlainLayer):
    def __init__(self, config):
        super().__init__(config, num_norms=4, ffns=("ffn1", "ffn2"))

    def forward(self, x, future, padding, source, source_padding):
        h = self.norm1(x)
        h, _ = self.self_attention(h, h, h, attn_mask=future, key_padding_mask=padding)
        h = h + self.ffn1(self.norm2(h))
        h = h + self.cross_attention(self.norm3(h), source, source, key_padding_mask=source_padding)[0]
        return h + self.ffn2(self.norm4(h))


class PlainNormalLayer(PlainLayer):
    def __init__(self, config):
        super().__init__(config, num_norms=2, ffns=("ffn",))

    def forward(self, x, future, padding, source, source_padding):
        h = self.norm1(x)
        h = h + self.self_attention(h, h, h, attn_mask=future, key_padding_mask=padding)[0]
        h = self.norm1(h)
        h = h + self.cross_attention(h, source, source, key_padding_mask=source_padding)[0]
        h = self.norm2(h)
        return h + self.ffn(h)


class PlainDecoder(nn.Module):
    def __init__(self, config, embed_layer: nn.Module):
        super().__init__()
        kinds = 3 * [PlainCustomLayer] + [PlainNormalLayer, PlainCustomLayer]
        self.layers = nn.ModuleList(kind(config) for kind in kinds)
        self.embed_layer = embed_layer
        self.last_linear = nn.Linear(config.hidden_size, config.vocab_size)


class PlainRelease(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.encoder = XLMRobertaModel(config)
        self.embed_layer = self.encoder.embeddings
        self.decoder = PlainDecoder(config, self.embed_layer)

    def forward(self, input_ids, decoder_input_ids, attention_mask=None) -> torch.Tensor:
        source_padding = None if attention_mask is None else attention_mask == 0
        source = self.encoder(input_ids, attention_mask=attention_mask).last_hidden_state
        length = decoder_input_ids.shape[1]
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        x = self.embed_layer(decoder_input_ids)
        for layer in self.decoder.layers:
            x = layer(x, future, decoder_input_ids == PAD, source, source_padding)
        return self.decoder.last_linear(x)


def make_release(encoder: Path, **options) -> PlainRelease:
    torch.manual_seed(0)
    plain = PlainRelease(XLMRobertaModel.config_class.from_pretrained(encoder, **options)).eval()
    # Noise makes all tensors different and gives every tensor an effect.
    for parameter in plain.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return plain
