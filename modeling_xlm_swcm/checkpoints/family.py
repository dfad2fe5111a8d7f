"""The description of an encoder family: how the names, shapes and fields of its checkpoints map to the model."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from modeling_xlm_swcm import XLMSWCMConfig
from modeling_xlm_swcm.layers_xlm_swcm import CUSTOM_LAYER_SOURCES, PREFIX_LAYER_SOURCES


# Tensor in the embeddings of a checkpoint -> tensor of the model.
EMBEDDINGS = {
    f"embeddings.{name}": f"model.encoder.embeddings.{name}"
    for name in (
        *("word_embeddings.weight", "position_embeddings.weight", "token_type_embeddings.weight"),
        *("LayerNorm.weight", "LayerNorm.bias"),
    )
}

# Tensor of encoder layer {} in a checkpoint -> tensor of the model.
LAYERS = {
    f"encoder.layer.{{}}.{module}.{parameter}": f"model.encoder.encoder.layer.{{}}.{module}.{parameter}"
    for module in dict.fromkeys(CUSTOM_LAYER_SOURCES.values())
    for parameter in ("weight", "bias")
}

# Pattern for tensors that no model needs -> reason.
DROPPED = {
    r"pooler\..+": "used only for classification",
    r"embeddings\.(position_ids|token_type_ids)": "a buffer that the model creates",
    r"(classifier|qa_outputs)\..+": "the head of another task",
    r"embeddings\.token_type_embeddings\.weight\[\d+:\]": "marks the second text of a pair, but a source is one text",
}

# Sublayers that an encoder layer does not have, in the order in which they run -> module that makes their output. A
# silent start sets these modules to zero.
SILENT_SUBLAYERS = {
    "custom": {"cross_attn": "out_proj", "ffn2": "fc2"},
    "normal": {"self_attn": "out_proj", "cross_attn": "out_proj", "ffn": "fc2"},
}

# Field of the model's config -> field of the encoder's config.
CONFIG_FIELDS = {
    name: name
    for name in (
        *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
        *("hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings", "type_vocab_size"),
        *("initializer_range", "layer_norm_eps", "pad_token_id", "bos_token_id", "eos_token_id"),
    )
}

# Fields that every encoder needs. A family can have defaults for some of them.
REQUIRED_FIELDS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("max_position_embeddings", "pad_token_id"),
)


@dataclass(frozen=True, kw_only=True)
class MaskedLMHead:
    """
    Names in the masked-LM head of a family.

    Attributes:
        dense (`str`):
            Module of the dense layer, which becomes `lm_head_transform.dense`.
        layer_norm (`str`):
            Module of the LayerNorm, which becomes `lm_head_transform.layer_norm`.
        bias (`str`):
            Tensor of the output bias, which becomes `lm_head.bias`.
        projection (`str`):
            Module of the output projection, whose weight is usually the word embeddings.
        uses_hidden_act (`bool`, *optional*, defaults to `False`):
            Whether the activation function of the head is `hidden_act`. By default it is GELU, as in the model.
    """

    dense: str
    layer_norm: str
    bias: str
    projection: str
    uses_hidden_act: bool = False

    @property
    def tensors(self) -> dict[str, str]:
        """`dict[str, str]`: tensor of the head -> tensor of the model."""
        transform = {"dense": self.dense, "layer_norm": self.layer_norm}
        return {self.bias: "lm_head.bias"} | {
            f"{source}.{parameter}": f"lm_head_transform.{module}.{parameter}"
            for module, source in transform.items()
            for parameter in ("weight", "bias")
        }

    @property
    def dropped(self) -> dict[str, str]:
        """`dict[str, str]`: pattern for tensors of the head that are not copied -> reason."""
        dense, layer_norm, projection = map(re.escape, (self.dense, self.layer_norm, self.projection))
        return {
            rf"({dense}|{layer_norm})\..+": "not used, because the model has no transform or a new transform",
            rf"{projection}\.weight": "replaced by the word embeddings",
            rf"{projection}\.bias": f"equal to {self.bias}",
        }


@dataclass(frozen=True, kw_only=True)
class EncoderFamily:
    """
    Description of an encoder family. Tensor names are names in the bare encoder, without the prefix of a model class.

    The defaults describe layers that end in a LayerNorm, with the tensor names of BERT and XLM-R.

    Attributes:
        name (`str`):
            Name of the family in reports and messages.
        model_types (`tuple[str, ...]`):
            Values of `model_type` in config.json.
        head ([`MaskedLMHead`]):
            Names in the masked-LM head.
        dropped (`dict[str, str]`):
            Pattern for tensors outside the masked-LM head that are not copied -> reason.
        word_embeddings (`str`):
            Tensor of the word embeddings. Its name shows the prefix of the model class.
        embeddings (`dict[str, str]`):
            Tensor in the embeddings -> tensor of the model.
        layers (`dict[str, str]`):
            Tensor of encoder layer `{}` -> tensor of the model.
        decoder_modules (`dict[str, dict[str, str]]`):
            Kind of decoder layer -> module of the decoder layer -> module of an encoder layer of the model.
        silent_sublayers (`dict[str, dict[str, str]]`):
            Kind of decoder layer -> sublayer that an encoder layer does not have -> module of its output matrix.
        has_norms_after (`bool`, *optional*, defaults to `True`):
            Whether each sublayer ends in a LayerNorm. By default, a silent start moves LayerNorms.
        substitutes (`dict[str, str]`):
            Tensor that an encoder layer lacks -> tensor that decoder layers copy instead.
        decoder_fields (`Callable[[dict, list], dict]`, *optional*):
            Function of the content of config.json, and of the encoder layers of each layer of the paper's decoder.
            Returns further fields of the model's config.
        final_norm (`str`, *optional*):
            Name of the norm after the last layer, in the encoder and in a copied decoder. By default, there is none.
        config_class (`type`, *optional*, defaults to [`XLMSWCMConfig`]):
            Config class of the model that the family becomes.
        config_fields (`dict[str, str]`):
            Field of the model's config -> field of the encoder's config.
        defaults (`dict`):
            Values of fields that config.json can lack.
        activation (`str`, *optional*, defaults to `"hidden_act"`):
            Field of the model's config with the activation function of the feed-forward networks.
        has_absolute_positions (`bool`, *optional*, defaults to `True`):
            Whether the encoder has learned absolute positions.
        has_positions_from_zero (`bool`, *optional*, defaults to `False`):
            Whether the first token has position 0. By default it has position `pad_token_id + 1`.
        token_types (`int`, *optional*):
            Number of token types to keep. Default: all.
        find_problem (`Callable[[dict], str | None]`, *optional*):
            Function of the content of config.json. Returns why the encoder cannot be converted and what to use, or
            `None`.
        modernise (`Callable[[dict], dict]`, *optional*):
            Function that renames old fields of config.json to the names in the installed Transformers.
    """

    name: str
    model_types: tuple[str, ...]
    head: MaskedLMHead
    dropped: dict[str, str] = field(default_factory=lambda: DROPPED)
    word_embeddings: str = "embeddings.word_embeddings.weight"
    embeddings: dict[str, str] = field(default_factory=lambda: EMBEDDINGS)
    layers: dict[str, str] = field(default_factory=lambda: LAYERS)
    decoder_modules: dict[str, dict[str, str]] = field(
        default_factory=lambda: {"custom": CUSTOM_LAYER_SOURCES, "prefix": PREFIX_LAYER_SOURCES}
    )
    silent_sublayers: dict[str, dict[str, str]] = field(default_factory=lambda: SILENT_SUBLAYERS)
    has_norms_after: bool = True
    substitutes: dict[str, str] = field(default_factory=dict)
    decoder_fields: Callable[[dict, list], dict] = lambda config, layers: {}
    final_norm: str | None = None
    config_class: type = XLMSWCMConfig
    config_fields: dict[str, str] = field(default_factory=lambda: CONFIG_FIELDS)
    defaults: dict[str, object] = field(default_factory=dict)
    activation: str = "hidden_act"
    has_absolute_positions: bool = True
    has_positions_from_zero: bool = False
    token_types: int | None = None
    find_problem: Callable[[dict], str | None] = lambda config: None
    modernise: Callable[[dict], dict] = lambda config: config

    @property
    def required_fields(self) -> Iterable[str]:
        """`Iterable[str]`: fields that config.json must have."""
        return [self.config_fields[name] for name in REQUIRED_FIELDS if name not in self.defaults]

    @property
    def model_embeddings(self) -> str:
        """`str`: tensor of the model with the word embeddings."""
        return self.embeddings[self.word_embeddings]

    @property
    def vocabulary_tensors(self) -> tuple[str, ...]:
        """Tensors with a row per token."""
        projection = self.head.projection
        return (self.word_embeddings, self.head.bias, f"{projection}.weight", f"{projection}.bias")

    def read_fields(self, config: dict) -> dict:
        """Return the content of config.json with the field names of the model, and with defaults."""
        config = self.modernise(config)
        known = {name: config[source] for name, source in self.config_fields.items() if config.get(source) is not None}
        return {**config, **self.defaults, **known}

    def longest_input(self, config: dict) -> int:
        """Return the maximum length in tokens of an encoder with this config.json."""
        fields = self.read_fields(config)
        unused = 0 if self.has_positions_from_zero else fields["pad_token_id"] + 1
        return fields["max_position_embeddings"] - unused

    def map_weights(self, block: str) -> dict[str, list[str]]:
        """
        Return the weight map to a model with decoder layers of the kind `block`.

        Args:
            block (`str`):
                `"custom"` or `"prefix"`.

        Returns:
            `dict[str, list[str]]`: tensor of the encoder -> tensors of the model that are copies of it. The first
            `{}` is the encoder layer. The `{}` after `model.decoder.layers.` is the decoder layer.
        """
        weight_map = {name: [target] for name, target in (self.embeddings | self.head.tensors).items()}
        for parameter in ("weight", "bias") if self.final_norm is not None else ():
            name = f"{self.final_norm}.{parameter}"
            weight_map[name] = [f"model.encoder.{name}", f"model.decoder.{name}"]
        for name, target in self.layers.items():
            module, _, parameter = target.partition(".{}.")[2].rpartition(".")
            copies = [copy for copy, of in self.decoder_modules[block].items() if of == module]
            weight_map[name] = [target, *(f"model.decoder.layers.{{}}.{copy}.{parameter}" for copy in copies)]
        return weight_map

    def find_dropped(self, tensor: str) -> str | None:
        """Return the reason why a tensor of the encoder is not copied, or `None` if the family does not know it."""
        patterns = self.dropped | self.head.dropped
        return next((reason for pattern, reason in patterns.items() if re.fullmatch(pattern, tensor)), None)
