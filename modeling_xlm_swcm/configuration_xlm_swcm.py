"""Configuration of XLM-SWCM, an encoder-decoder with a decoder that is built from the weights of the encoder."""

# This import checks the version of Transformers, so it comes first.
from .compat_xlm_swcm import check_transformers  # noqa: F401


# isort: split
from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


def plan_decoder_blocks(num_custom_layers: int, normal_layer_interval: int | None) -> list[str]:
    """
    Return the types of the decoder layers, in order.

    Args:
        num_custom_layers (`int`):
            Number of custom layers.
        normal_layer_interval (`int` or `None`):
            Number of custom layers before each normal layer. No normal layer follows the last custom layer. `None`
            means no normal layers.

    Returns:
        `list[str]`: `"custom"` or `"normal"` for each layer.

    Example:
    >>> plan_decoder_blocks(4, 2)
    ['custom', 'custom', 'normal', 'custom', 'custom']
    """
    blocks = []
    for index in range(num_custom_layers):
        if normal_layer_interval is not None and index > 0 and index % normal_layer_interval == 0:
            blocks.append("normal")
        blocks.append("custom")
    return blocks


class DecoderConfigMixin:
    """Defaults and checks of the decoder's fields, which are the same for every kind of encoder."""

    block_types: tuple[str, ...] = ("custom", "normal")
    prefix_block = "prefix"
    # Fields that must be at least 1.
    sizes: tuple[str, ...] = ("vocab_size", "hidden_size", "intermediate_size")
    # Every saved config names all classes, so that any of them can load the checkpoint.
    auto_classes: dict[str, str] = {}
    # Why `xlm-swcm export` refuses a model, and what to do.
    export_problem: str | None = None

    def __post_init__(self, **kwargs):
        interval = self.normal_layer_interval
        if interval is not None and interval < 1:
            raise ValueError(
                f"normal_layer_interval must be at least 1 (got {interval}). Use None for no normal layers."
            )
        if self.decoder_blocks is None:
            custom, normal = self.block_types
            plan = plan_decoder_blocks(self.num_hidden_layers, interval)
            self.decoder_blocks = [custom if block == "custom" else normal for block in plan]
        if self.decoder_layers is None:
            self.decoder_layers = len(self.decoder_blocks)
        self.auto_map = self.auto_classes | (kwargs.pop("auto_map", None) or {})
        self.custom_pipelines = {
            task: {"impl": "pipeline_xlm_swcm.XLMSWCMPipeline", "pt": ["AutoModelForSeq2SeqLM"], "type": "text"}
            for task in ("translation", "summarization", "question-answering")
        } | (kwargs.pop("custom_pipelines", None) or {})
        super().__post_init__(**kwargs)  # type: ignore[misc]

    @property
    def has_prefix_decoder(self) -> bool:
        """`bool`: Whether the decoder layers are encoder layers that also read the source."""
        return self.prefix_block in self.decoder_blocks

    @property
    def padding_position(self) -> int:
        """`int`: Position of padding. The first token has the position after it."""
        return self.pad_token_id

    @property
    def longest_input(self) -> int:
        """`int`: Maximum length of a source or target in tokens, special tokens included."""
        return self.max_position_embeddings - self.padding_position - 1

    def validate_architecture(self):
        """Raise a `ValueError` if the values do not fit together. `@strict` calls this method."""
        self._validate_sizes()
        self._validate_decoder()

    def _validate_sizes(self):
        if self.num_attention_heads < 1 or self.hidden_size % self.num_attention_heads != 0:
            raise ValueError(
                f"num_attention_heads must divide hidden_size {self.hidden_size} (got {self.num_attention_heads}). "
                "Change one of them."
            )
        for name in self.sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1 (got {getattr(self, name)}). Use a larger number.")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0 <= getattr(self, name, 0) <= 1:
                raise ValueError(f"{name} must be from 0 to 1 (got {getattr(self, name)}). Use, for example, 0.1.")
        if self.initializer_range < 0:
            raise ValueError(
                f"initializer_range must not be negative (got {self.initializer_range}). Use, for example, 0.02."
            )
        if self.pad_token_id is None or not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(
                f"pad_token_id must be from 0 to {self.vocab_size - 1} (got {self.pad_token_id}). Use the id of the "
                "pad token."
            )
        if self.longest_input < 1:
            raise ValueError(
                f"max_position_embeddings must be at least {self.padding_position + 2} (got "
                f"{self.max_position_embeddings}). The first position is {self.padding_position + 1}. Use a larger "
                "number."
            )

    def _validate_decoder(self):
        if not getattr(self, "is_encoder_decoder", True):
            raise ValueError("is_encoder_decoder must be True. Leave it out.")
        if getattr(self, "is_decoder", False) or getattr(self, "add_cross_attention", False):
            raise ValueError("is_decoder and add_cross_attention must be False. Leave them out.")
        if self.has_prefix_decoder:
            if self.decoder_blocks != [self.prefix_block] * self.num_hidden_layers:
                raise ValueError(
                    f'A prefix decoder has one "{self.prefix_block}" layer for each of the {self.num_hidden_layers} '
                    f"encoder layers (got {len(self.decoder_blocks)} layers: {self.decoder_blocks}). Use "
                    f'decoder_blocks={self.num_hidden_layers} * ["{self.prefix_block}"].'
                )
        else:
            self._validate_block_types()
        if self.decoder_layers != len(self.decoder_blocks):
            raise ValueError(
                f"decoder_layers is {self.decoder_layers}, but decoder_blocks has {len(self.decoder_blocks)} layers. "
                "Leave out decoder_layers."
            )
        if self.weight_sharing not in ("init", "tied"):
            raise ValueError(f'weight_sharing must be "init" or "tied" (got "{self.weight_sharing}").')
        num_custom_layers = self.decoder_blocks.count("custom")
        if (
            self.weight_sharing == "tied"
            and not self.has_prefix_decoder
            and num_custom_layers != self.num_hidden_layers
        ):
            raise ValueError(
                f'weight_sharing="tied" needs {self.num_hidden_layers} custom layers, one for each encoder layer '
                f'(got {num_custom_layers}). Change decoder_blocks, or use weight_sharing="init".'
            )

    def _validate_block_types(self):
        unknown = sorted(set(self.decoder_blocks) - set(self.block_types))
        if unknown or not self.decoder_blocks:
            known = '" and "'.join(self.block_types)
            known += f'", or only of "{self.prefix_block}' if self.prefix_block else ""
            raise ValueError(
                f'decoder_blocks must be a list of "{known}" (got {unknown or "an empty list"}). Correct '
                "decoder_blocks."
            )


@strict
class XLMSWCMConfig(DecoderConfigMixin, PreTrainedConfig):
    r"""
    Configuration of [`XLMSWCMModel`] and [`XLMSWCMForConditionalGeneration`] (Su et al., ACL 2025, arXiv 2502.10852).

    The fields of the encoder have XLM-R's names. The decoder has the hidden size, attention heads and FFN size of the
    encoder.

    Args:
        vocab_size (`int`, *optional*, defaults to 250002):
            Size of the vocabulary, language tags included.
        hidden_size (`int`, *optional*, defaults to 768):
            Size of the hidden states.
        num_hidden_layers (`int`, *optional*, defaults to 12):
            Number of encoder layers.
        num_attention_heads (`int`, *optional*, defaults to 12):
            Number of attention heads in each layer. Must divide `hidden_size`.
        intermediate_size (`int`, *optional*, defaults to 3072):
            Inner size of each feed-forward network.
        hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation function of the feed-forward networks, as a key of `transformers.activations.ACT2FN`.
        hidden_dropout_prob (`float`, *optional*, defaults to 0.1):
            Dropout probability of the embeddings and of the output of each sublayer.
        attention_probs_dropout_prob (`float`, *optional*, defaults to 0.1):
            Dropout probability of the attention weights.
        max_position_embeddings (`int`, *optional*, defaults to 514):
            Number of position embeddings. XLM-R reserves the first `pad_token_id + 1`, so 514 position embeddings
            allow 512 tokens.
        type_vocab_size (`int`, *optional*, defaults to 1):
            Number of token types. XLM-R has one.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of new weights.
        layer_norm_eps (`float`, *optional*, defaults to 1e-05):
            Epsilon of the LayerNorms.
        normal_layer_interval (`int`, *optional*, defaults to 3):
            Insert a normal layer after every N custom layers (X in the paper), but not after the last one. `None`
            means no normal layers. Ignored if `decoder_blocks` is given.
        decoder_blocks (`list[str]`, *optional*):
            Type of each decoder layer, in order: `"custom"` or `"normal"`. By default one custom layer for each
            encoder layer, and normal layers as `normal_layer_interval` says. A prefix decoder has one `"prefix"`
            layer for each encoder layer, and no others.
        decoder_layers (`int`, *optional*):
            Number of decoder layers, which Transformers reads to size caches. By default the length of
            `decoder_blocks`.
        weight_sharing (`str`, *optional*, defaults to `"init"`):
            How custom and prefix layers share weights with the encoder. `"init"`: they start as copies of encoder
            layers, and train independently. `"tied"`: a decoder layer and its encoder layer use the same parameters,
            which are saved once. Tied custom layers do not support LoRA, quantization and a `device_map` that splits
            the model. Tied prefix layers do.
        lm_head_transform (`bool`, *optional*, defaults to `False`):
            Whether to apply a dense layer, GELU and LayerNorm before the output projection, as in the masked-LM head
            of XLM-R.
        tie_word_embeddings (`bool`, *optional*, defaults to `True`):
            Whether the output projection uses the word embedding matrix. `False` gives the output projection its own
            matrix. If a checkpoint has no such matrix, `from_pretrained` copies the word embeddings to it.
        logits_in_training (`bool`, *optional*, defaults to `False`):
            Whether the model also returns logits in training mode when labels are given. By default it returns only
            the loss, and computes the loss in chunks of tokens to save memory. In evaluation mode and without labels
            the model always returns logits.
        use_cache (`bool`, *optional*, defaults to `True`):
            Whether the decoder returns its cache of keys and values.
        is_encoder_decoder (`bool`, *optional*, defaults to `True`):
            Always `True`.
        is_decoder (`bool`, *optional*, defaults to `False`):
            Always `False`. Transformers' XLM-R encoder reads this field.
        add_cross_attention (`bool`, *optional*, defaults to `False`):
            Always `False`. Transformers' XLM-R encoder reads this field.
        pad_token_id (`int`, *optional*, defaults to 1):
            Id of the padding token.
        bos_token_id (`int`, *optional*, defaults to 0):
            Id of the first token of a source.
        eos_token_id (`int` or `list[int]`, *optional*, defaults to 2):
            Id of the last token of a source or target. Generation stops at this token.
        decoder_start_token_id (`int`, *optional*, defaults to 0):
            Id of the first token of the decoder's input.

    Raises:
        StrictDataclassError: if a value has the wrong type, or if the values do not fit together.
        ValueError: if `normal_layer_interval` is below 1.
    """

    model_type = "xlm_swcm"
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "type_vocab_size")
    auto_classes = {
        "AutoConfig": "configuration_xlm_swcm.XLMSWCMConfig",
        "AutoModel": "modeling_xlm_swcm.XLMSWCMModel",
        "AutoModelForSeq2SeqLM": "modeling_xlm_swcm.XLMSWCMForConditionalGeneration",
    }
    keys_to_ignore_at_inference = ["cache", "past_key_values"]

    vocab_size: int = 250002
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    max_position_embeddings: int = 514
    type_vocab_size: int = 1
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    normal_layer_interval: int | None = 3
    decoder_blocks: list[str] | None = None
    decoder_layers: int | None = None
    weight_sharing: str = "init"
    lm_head_transform: bool = False
    tie_word_embeddings: bool = True
    logits_in_training: bool = False
    use_cache: bool = True
    is_encoder_decoder: bool = True
    is_decoder: bool = False
    add_cross_attention: bool = False
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 2
    decoder_start_token_id: int | None = 0


__all__ = ["XLMSWCMConfig"]
