"""Configuration of XLM-SWCM, an encoder-decoder whose decoder is built from the encoder's own weights."""

# first, since it checks the version of Transformers
from .compat_xlm_swcm import check_transformers  # noqa: F401


# isort: split
from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


def plan_decoder_blocks(num_custom_layers: int, normal_layer_interval: int | None) -> list[str]:
    """The order of decoder layers: one normal layer after every `normal_layer_interval` custom ones, none at the end.

    >>> plan_decoder_blocks(4, 2)
    ['custom', 'custom', 'normal', 'custom', 'custom']
    """
    blocks = []
    for index in range(num_custom_layers):
        if normal_layer_interval is not None and index > 0 and index % normal_layer_interval == 0:
            blocks.append("normal")
        blocks.append("custom")
    return blocks


@strict
class XLMSWCMConfig(PreTrainedConfig):
    r"""
    Configuration of [`XLMSWCMModel`] and [`XLMSWCMForConditionalGeneration`] (Su et al., ACL 2025, arXiv 2502.10852).

    The encoder's fields carry XLM-R's names and meanings; the decoder has the same hidden size, heads and FFN size.

    Args:
        num_hidden_layers (`int`, defaults to 12): layers of the encoder.
        max_position_embeddings (`int`, defaults to 514):
            rows of the position table; `pad_token_id + 1` of them are reserved, so 514 rows serve 512 tokens.
        normal_layer_interval (`int` or `None`, defaults to 3):
            X of the paper: a normal layer follows every X custom layers, none after the last. `None` for no normal
            layers. Only read where `decoder_blocks` is not given.
        decoder_blocks (`list[str]`, *optional*):
            The decoder's layers in order, each `"custom"` or `"normal"`. Derived if absent: one custom layer per
            encoder layer, with normal layers put in between.
        decoder_layers (`int`, *optional*): the length of `decoder_blocks`; caches are sized from it.
        weight_sharing (`str`, defaults to `"init"`):
            `"init"`: custom layers start as copies of encoder layers and are trained apart. `"tied"`: the k-th custom
            layer uses the tensors of the k-th encoder layer, so that gradients add up and files hold them once.
            LoRA and quantisers want `"init"`: they take a shared tensor for several, or skip it.
        lm_head_transform (`bool`, defaults to `False`):
            Whether a dense layer, GELU and LayerNorm come before the output projection, as in XLM-R's masked-LM head.
        tie_word_embeddings (`bool`, defaults to `True`): the output projection is the word embedding matrix.
        logits_in_training (`bool`, defaults to `False`):
            Whether a model in training mode that is given labels returns `logits` beside the loss. By default it
            does not: the loss is computed in chunks of tokens, and the logits of a batch are never held. Without
            labels, and in evaluation mode, there are always logits.

    Raises:
        A validation error that names the field, for values that describe no model.
    """

    model_type = "xlm_swcm"
    block_types = ("custom", "normal")
    # every class that a checkpoint can be loaded with, whichever of them is saved
    auto_classes = {
        "AutoConfig": "configuration_xlm_swcm.XLMSWCMConfig",
        "AutoModel": "modeling_xlm_swcm.XLMSWCMModel",
        "AutoModelForSeq2SeqLM": "modeling_xlm_swcm.XLMSWCMForConditionalGeneration",
    }
    keys_to_ignore_at_inference = ["past_key_values"]

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

    def __post_init__(self, **kwargs):
        interval = self.normal_layer_interval
        if interval is not None and interval < 1:
            raise ValueError(
                f"normal_layer_interval must be at least 1, or null for no normal layers; got {interval}."
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
        super().__post_init__(**kwargs)

    @property
    def longest_input(self) -> int:
        """Tokens of a source or a target, special ones included; XLM-R counts positions from `pad_token_id + 1`."""
        return self.max_position_embeddings - self.pad_token_id - 1

    def validate_architecture(self):
        """Part of `@strict`-powered validation, run at creation and before saving."""
        if self.num_attention_heads < 1 or self.hidden_size % self.num_attention_heads != 0:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must divide hidden_size ({self.hidden_size})."
            )
        for name in ("vocab_size", "hidden_size", "intermediate_size", "type_vocab_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")
        if self.pad_token_id is None or not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(f"pad_token_id must be from 0 to {self.vocab_size - 1}; got {self.pad_token_id}.")
        if self.longest_input < 1:
            raise ValueError(
                f"max_position_embeddings must be at least {self.pad_token_id + 2}, since positions are counted from "
                f"pad_token_id + 1; got {self.max_position_embeddings}."
            )
        unknown = sorted(set(self.decoder_blocks) - set(self.block_types))
        if unknown or not self.decoder_blocks:
            known = '" and "'.join(self.block_types)
            raise ValueError(f'decoder_blocks must be a list of "{known}"; got {unknown or "no layer"}.')
        if self.decoder_layers != len(self.decoder_blocks):
            raise ValueError(
                f"decoder_layers ({self.decoder_layers}) must be the length of decoder_blocks "
                f"({len(self.decoder_blocks)})."
            )
        if self.weight_sharing not in ("init", "tied"):
            raise ValueError(f'weight_sharing must be "init" or "tied"; got "{self.weight_sharing}".')
        num_custom_layers = self.decoder_blocks.count("custom")
        if self.weight_sharing == "tied" and num_custom_layers != self.num_hidden_layers:
            raise ValueError(
                f'weight_sharing "tied" needs one custom layer in decoder_blocks per encoder layer; got '
                f"{num_custom_layers} for {self.num_hidden_layers}."
            )


__all__ = ["XLMSWCMConfig"]
