"""Configuration of XLM-SWCM with the layers of ModernBERT."""

# This import checks the version of Transformers, so it comes first.
from .compat_xlm_swcm import check_transformers  # noqa: F401


# isort: split
from itertools import cycle

from huggingface_hub.dataclasses import strict
from transformers import ModernBertConfig, PreTrainedConfig

from .configuration_xlm_swcm import DecoderConfigMixin


@strict
class XLMSWCMModernConfig(DecoderConfigMixin, ModernBertConfig):
    r"""
    Configuration of [`XLMSWCMModernForConditionalGeneration`], with the layers of ModernBERT (arXiv 2412.13663).

    The fields of the encoder are the fields of Transformers' `ModernBertConfig`. The decoder has the layers of the
    encoder.

    Args:
        decoder_blocks (`list[str]`, *optional*):
            Type of each decoder layer. By default one `"prefix"` layer for each encoder layer. The paper's decoder has
            `"custom"` and `"normal"` layers.
        normal_layer_interval (`int`, *optional*):
            Insert a normal layer after every N custom layers, see [`XLMSWCMConfig`]. If it is set, `decoder_blocks`
            defaults to the layers of the paper's decoder.
        decoder_layer_types (`list[str]`, *optional*):
            Type of the self-attention in each layer of the paper's decoder, as in `layer_types`. By default custom
            layer `k` has the type of encoder layer `k`, and normal layers have the type of the first encoder layer. A
            prefix decoder ignores it.
        decoder_layers (`int`, *optional*):
            Number of decoder layers, which Transformers reads to size caches. By default the length of
            `decoder_blocks`.
        weight_sharing (`str`, *optional*, defaults to `"init"`):
            How prefix and custom layers share weights with the encoder. `"init"`: they start as copies of encoder
            layers, and train independently. `"tied"`: a decoder layer uses the weights of its encoder layer.
        lm_head_transform (`bool`, *optional*, defaults to `True`):
            Whether to apply a dense layer, an activation function and LayerNorm before the output projection, as in
            the masked-LM head of ModernBERT.
        logits_in_training (`bool`, *optional*, defaults to `False`):
            Whether the model also returns logits in training mode when labels are given, see [`XLMSWCMConfig`].
        use_cache (`bool`, *optional*, defaults to `True`):
            Whether the decoder returns its cache of keys and values.
        is_encoder_decoder (`bool`, *optional*, defaults to `True`):
            Always `True`.
        pad_token_id (`int`, *optional*, defaults to 0):
            Id of the padding token.
        eos_token_id (`int` or `list[int]`, *optional*, defaults to 1):
            Id of the last token of a source or target. Generation stops at this token.
        bos_token_id (`int`, *optional*, defaults to 2):
            Id of the first token of a source.
        decoder_start_token_id (`int`, *optional*, defaults to 2):
            Id of the first token of the decoder's input.

    Raises:
        StrictDataclassError: if a value has the wrong type, or if the values do not fit together.
    """

    model_type = "xlm_swcm_modern"
    auto_classes = {
        "AutoConfig": "modern_configuration_xlm_swcm.XLMSWCMModernConfig",
        "AutoModel": "modern_xlm_swcm.XLMSWCMModernModel",
        "AutoModelForSeq2SeqLM": "modern_xlm_swcm.XLMSWCMModernForConditionalGeneration",
    }
    keys_to_ignore_at_inference = ["cache", "past_key_values"]
    # Code that all models share reads XLM-R's names.
    attribute_map = {"hidden_act": "hidden_activation", "attention_probs_dropout_prob": "attention_dropout"}

    # The ids of mmBERT.
    pad_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 1
    bos_token_id: int | None = 2
    decoder_start_token_id: int | None = 2
    cls_token_id: int | None = None
    sep_token_id: int | None = None
    normal_layer_interval: int | None = None
    decoder_blocks: list[str] | None = None
    decoder_layer_types: list[str] | None = None
    decoder_layers: int | None = None
    weight_sharing: str = "init"
    lm_head_transform: bool = True
    logits_in_training: bool = False
    use_cache: bool = True
    is_encoder_decoder: bool = True

    def __post_init__(self, **kwargs):
        if self.decoder_blocks is None and self.normal_layer_interval is None:
            self.decoder_blocks = [self.prefix_block] * self.num_hidden_layers
        super().__post_init__(**kwargs)
        if self.decoder_layer_types is None and not self.has_prefix_decoder:
            kinds, first = cycle(self.layer_types), self.layer_types[0]
            self.decoder_layer_types = [first if block == "normal" else next(kinds) for block in self.decoder_blocks]

    @property
    def padding_position(self) -> int:
        """`int`: Position of padding. The first token has position 0."""
        return -1

    @property
    def export_problem(self) -> str | None:
        """`str` or `None`: Why `xlm-swcm export` refuses a model, and what to do."""
        types = {self.rope_parameters[kind]["rope_type"] for kind in set(self.layer_types)}
        if changing := sorted(types & {"dynamic", "longrope"}):
            return f"has rotary positions of type {changing[0]}, which cannot be exported. Use it with Transformers."
        return None

    def _validate_decoder(self):
        super()._validate_decoder()
        if self.has_prefix_decoder:
            return
        kinds = self.decoder_layer_types or []
        if len(kinds) != len(self.decoder_blocks) or not {*kinds} <= {*self.layer_types}:
            raise ValueError(
                f"decoder_layer_types must have {len(self.decoder_blocks)} types of layer_types, one for each decoder "
                f"layer (got {kinds}). Leave out decoder_layer_types."
            )

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """Return the config of a part. The decoder caches all keys, because its masks hide keys that are too far."""
        config = super().get_text_config(decoder, encoder)
        if decoder and not encoder:
            config.layer_types = ["full_attention"] * config.num_hidden_layers
        return config


__all__ = ["XLMSWCMModernConfig"]
