"""Models that the benchmarks compare, with random weights and the size of XLM-R base."""

import torch
from transformers import (
    EncoderDecoderConfig,
    EncoderDecoderModel,
    MBartConfig,
    MBartForConditionalGeneration,
    PreTrainedModel,
    XLMRobertaConfig,
)

from modeling_xlm_swcm import (
    XLMSWCMConfig,
    XLMSWCMForConditionalGeneration,
    XLMSWCMModernConfig,
    XLMSWCMModernForConditionalGeneration,
)


WORDS = 250002
# tokens of a vocabulary that is trimmed to a few languages
TRIMMED = 30000
PREFIX = "prefix-"
# batch size and beams
DECODING = {"batch 1": (1, 1), "batch 8": (8, 1), "beam 5": (1, 5)}
GPU_BATCHES = {"batch 1": 1, "batch 8": 8, "batch 64": 64}


def make_model(name: str, quick: bool, decoder_layers: int | None = None, words: int = WORDS) -> PreTrainedModel:
    """
    Make a model without dropout of attention weights, as in MBart's default.

    That dropout costs memory and prevents fast attention kernels.

    Args:
        name (`str`):
            "MBart", "EncoderDecoder", or the `weight_sharing` of an XLM-SWCM: "init" or "tied" for the decoder of the
            paper, "prefix-init" or "prefix-tied" for a prefix decoder.
        quick (`bool`):
            Whether to make a small model.
        decoder_layers (`int`, *optional*):
            Decoder layers of MBart. Defaults to the number of encoder layers.
        words (`int`, *optional*, defaults to 250002):
            Size of the vocabulary. A small model has 5,000 tokens.
    """
    torch.manual_seed(0)
    layers, words = (2, 5000) if quick else (12, words)
    ids = dict(pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=0)
    if name == "MBart":
        sizes = dict(d_model=768, encoder_layers=layers, decoder_layers=decoder_layers or layers)
        sizes |= dict(encoder_attention_heads=12, decoder_attention_heads=12, encoder_ffn_dim=3072)
        config = MBartConfig(vocab_size=words, decoder_ffn_dim=3072, forced_eos_token_id=None, **sizes, **ids)
        return MBartForConditionalGeneration(config)
    if name == "EncoderDecoder":
        half = XLMRobertaConfig(
            vocab_size=words, num_hidden_layers=layers, max_position_embeddings=514, attention_probs_dropout_prob=0.0
        )
        return EncoderDecoderModel(EncoderDecoderConfig.from_encoder_decoder_configs(half, half, **ids))
    config = XLMSWCMConfig(
        vocab_size=words,
        num_hidden_layers=layers,
        decoder_blocks=layers * ["prefix"] if name.startswith(PREFIX) else None,
        weight_sharing=name.removeprefix(PREFIX),
        attention_probs_dropout_prob=0.0,
    )
    return XLMSWCMForConditionalGeneration(config)


def make_modern_model(**decoder) -> XLMSWCMModernForConditionalGeneration:
    """Make a small model with a global and two local layers of ModernBERT in encoder and decoder."""
    torch.manual_seed(0)
    sizes = dict(vocab_size=5000, hidden_size=128, num_hidden_layers=3, num_attention_heads=2, intermediate_size=192)
    return XLMSWCMModernForConditionalGeneration(XLMSWCMModernConfig(**sizes, **decoder))


def random_tokens(*shape: int) -> torch.Tensor:
    """Return random token ids that are not special."""
    return torch.randint(10, 4990, shape, generator=torch.Generator().manual_seed(0))
