"""Read the encoder of a conversion and check that it can be converted."""

import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from huggingface_hub import ModelCard
from transformers import CONFIG_MAPPING, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.activations import ACT2FN
from transformers.utils.hub import extract_commit_hash
from yaml import YAMLError

from .errors import ConversionError, make_config_error
from .families import FAMILIES, MODEL_TYPES
from .family import EncoderFamily
from .reading import (
    StoredTensor,
    check_dtypes,
    equal,
    find_file,
    load_pretrained,
    read_config,
    read_tokenizer_config,
    read_weights,
)
from .tokenizer_files import check_tokenizer_fields, check_tokenizer_file


# Model types that are often asked for -> what the converter lacks for them.
UNSUPPORTED_TYPES = {
    "xlm_swcm": "it is already an XLM-SWCM checkpoint. Pass its encoder",
    **dict.fromkeys(
        ("xlm-roberta-xl", "roberta-prelayernorm"),
        "it has pre-LayerNorm layers. Use an encoder with post-LayerNorm layers",
    ),
}

# Tokens at the ends of a text in BERT-like tokenizers, which stand in for tokens that a tokenizer lacks.
TOKENS_OF_ENDS = {"bos_token": "cls_token", "eos_token": "sep_token"}

ENCODER_TOKENIZER_FILES = ("tokenizer.json", "sentencepiece.bpe.model", "vocab.json")


@dataclass
class Encoder:
    """
    Weights, config and tokenizer of an encoder.

    Attributes:
        name (`str`):
            Folder, Hub id or class, for messages.
        family ([`EncoderFamily`]):
            Family of the encoder.
        config (`dict`):
            Content of `config.json`, with the field names of the model.
        tensors (`dict`):
            Tensors by their names in the bare encoder, for example `embeddings.*` and `encoder.layer.*`. Heads keep
            their names.
        tokenizer (`PreTrainedTokenizerBase` or `None`):
            Tokenizer, or `None` for a model that was passed without one.
        commit (`str` or `None`):
            Hub commit of the files, or `None` for a folder or model.
        license (`str` or `None`):
            Licence in the encoder's model card.
    """

    name: str
    family: EncoderFamily
    config: dict
    tensors: dict[str, torch.Tensor | StoredTensor]
    tokenizer: PreTrainedTokenizerBase | None
    commit: str | None = None
    license: str | None = None

    @property
    def word_embeddings(self) -> torch.Tensor | StoredTensor:
        """Word embeddings of the encoder."""
        return self.tensors[self.family.word_embeddings]

    @property
    def has_tied_output(self) -> bool:
        """Return True if the output matrix of the masked-LM head is equal to the word embeddings."""
        output = self.tensors.get(f"{self.family.head.projection}.weight")
        return self.config.get("tie_word_embeddings", True) if output is None else equal(output, self.word_embeddings)


def load_encoder(
    encoder: str | PathLike | PreTrainedModel, revision: str | None, tokenizer: PreTrainedTokenizerBase | None
) -> Encoder:
    """
    Read an encoder and check its config and tokenizer.

    Args:
        encoder (`str`, `PathLike` or [`PreTrainedModel`]):
            Hub id, folder or model.
        revision (`str` or `None`):
            Hub revision of `encoder`.
        tokenizer (`PreTrainedTokenizerBase` or `None`):
            Tokenizer of the encoder. If it is `None`, it is loaded from `encoder`.

    Returns:
        [`Encoder`]: the encoder, with tensors that are read on access.

    Raises:
        ConversionError: if a file is missing or damaged, or the encoder cannot be converted.
    """
    commit = license = None
    if isinstance(encoder, PreTrainedModel):
        name, config = type(encoder).__name__, encoder.config.to_dict()
        family = check_config(name, config)
        tensors = dict(encoder.state_dict())
    else:
        name = str(encoder)
        config = read_config(name, revision)
        family = check_config(name, config)
        tensors = read_weights(name, revision)
        tokenizer = tokenizer or load_encoder_tokenizer(name, revision)
        if not Path(name).is_dir():
            commit = extract_commit_hash(str(find_file(name, "config.json", revision)), None)
        license = read_license(name, revision)
    check_dtypes(name, tensors)
    config = family.read_fields(config)
    if tokenizer is not None:
        check_tokenizer(name, config, tokenizer)
    return Encoder(name, family, config, read_names(name, family, tensors), tokenizer, commit, license)


def read_license(name: str, revision: str | None) -> str | None:
    """Return the licence in an encoder's model card, or `None` if there is no readable card."""
    card = find_file(name, "README.md", revision)
    try:
        return ModelCard.load(card).data.license if card is not None else None
    except (ValueError, YAMLError):
        return None


def check_config(name: str, config: dict) -> EncoderFamily:
    """Check that an encoder has a family, learned absolute positions and plain weights, and return the family."""
    family = MODEL_TYPES.get(config.get("model_type", ""))
    reason = describe_unsupported_type(config) if family is None else find_config_problem(family, config)
    if reason is not None:
        raise ConversionError(f'{name} (model type "{config.get("model_type")}") cannot be converted: {reason}.')
    assert family is not None  # or else there is a reason
    try:
        CONFIG_MAPPING[config["model_type"]].from_dict(config)
    except Exception as error:
        raise make_config_error(name, error) from error
    return family


def describe_unsupported_type(config: dict) -> str:
    """Return why a model type without a family cannot be converted, and what to use."""
    default = f"this model type is not supported. Use an encoder of type {list_model_types()}"
    return UNSUPPORTED_TYPES.get(config.get("model_type", ""), default)


def list_model_types() -> str:
    """Return the supported model types as a text."""
    *types, last = (model_type for family in FAMILIES for model_type in family.model_types)
    return f"{', '.join(types)} or {last}"


def find_config_problem(family: EncoderFamily, config: dict) -> str | None:
    """Return why an encoder of the family cannot be converted, and what to do, or `None`."""
    positions = config.get("position_embedding_type", "absolute")
    missing = next((field for field in family.required_fields if field not in config), None)
    activation = str(config.get(family.config_fields["hidden_act"], "gelu"))
    problems = {
        "it is configured as a decoder. Use an encoder": config.get("is_decoder") or config.get("add_cross_attention"),
        "its weights are quantised. Use the checkpoint before quantisation": config.get("quantization_config"),
        f"its position_embedding_type is {positions}. Use an encoder with absolute positions": positions != "absolute",
        f"its config.json lacks {missing}. Add the field": missing is not None,
        f"its hidden_act is {activation}. Use an activation function of Transformers": activation not in ACT2FN,
    }
    return next((problem for problem, is_present in problems.items() if is_present), None)


def check_tokenizer(name: str, config: dict, tokenizer: PreTrainedTokenizerBase):
    """Check that config and tokenizer have the same pad token, from which positions are counted."""
    if tokenizer.pad_token_id != config["pad_token_id"]:
        raise ConversionError(
            f"pad_token_id is {config['pad_token_id']} in the config of {name} but {tokenizer.pad_token_id} in its "
            "tokenizer. Set both to the same id."
        )


def check_rows(name: str, tokenizer: PreTrainedTokenizerBase, rows: int):
    """Check that every token has a row in the word embeddings."""
    if len(tokenizer) > rows:
        raise ConversionError(
            f"The tokenizer of {name} has {len(tokenizer)} tokens, but its word embeddings have only {rows} rows. "
            "Use the tokenizer that belongs to the weights."
        )


def load_encoder_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of an encoder."""
    # Without a tokenizer file, Transformers silently makes a tokenizer that knows only the special tokens.
    if not any(find_file(name, file, revision) for file in ENCODER_TOKENIZER_FILES):
        raise ConversionError(
            f"{name} has no tokenizer. Add one of these files: {', '.join(ENCODER_TOKENIZER_FILES)}."
        )
    kind, config = check_tokenizer_file(name, revision), read_tokenizer_config(name, revision)
    check_tokenizer_fields(name, config)
    ends = {
        token: config[other].get("content") if isinstance(config[other], dict) else config[other]
        for token, other in TOKENS_OF_ENDS.items()
        if token in config and config[token] is None and config.get(other)
    }
    tokenizer = load_pretrained(AutoTokenizer, name, revision=revision, **ends)
    check_backend(name, tokenizer, kind)
    for token, other in TOKENS_OF_ENDS.items():
        if getattr(tokenizer, token) is None and getattr(tokenizer, other) is None:
            raise ConversionError(
                f"The tokenizer of {name} has neither {token} nor {other}. Set {token} in its tokenizer_config.json."
            )
        if getattr(tokenizer, token) is None:
            setattr(tokenizer, token, getattr(tokenizer, other))
    return tokenizer


def check_backend(name: str, tokenizer: PreTrainedTokenizerBase, kind: str | None):
    """Refuse a tokenizer without a Rust backend, or with a class that replaces the model in tokenizer.json."""
    tokenizer_class = type(tokenizer).__name__
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise ConversionError(
            f"The tokenizer of {name} is a slow tokenizer, {tokenizer_class}. Use a checkpoint with a fast tokenizer."
        )
    loaded = type(tokenizer.backend_tokenizer.model).__name__
    if kind is not None and loaded != kind:
        raise ConversionError(
            f"tokenizer_class in tokenizer_config.json of {name} makes a {loaded} tokenizer, but tokenizer.json holds "
            f"a {kind} model. Correct tokenizer_class."
        )


def read_names(
    name: str, family: EncoderFamily, tensors: dict[str, torch.Tensor | StoredTensor]
) -> dict[str, torch.Tensor | StoredTensor]:
    """Return the tensors under their names in the bare encoder, without the prefix of the saved model."""
    suffix = family.word_embeddings
    prefix = next((key.removesuffix(suffix) for key in tensors if key.endswith(suffix)), None)
    if prefix is None:
        raise ConversionError(
            f"{name} is not an encoder that can be converted: it has no tensor {suffix}. Use a checkpoint of type "
            f"{list_model_types()}."
        )
    if twice := [key for key in tensors if key.startswith(prefix) and prefix and key.removeprefix(prefix) in tensors]:
        raise ConversionError(
            f"{name} has both {twice[0]} and {twice[0].removeprefix(prefix)}. Save the encoder again with "
            "save_pretrained."
        )
    tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    bias, projection_bias = family.head.bias, f"{family.head.projection}.bias"
    # Transformers loads the bias of the projection if a checkpoint has both.
    if projection_bias in tensors and (bias not in tensors or not equal(tensors[bias], tensors[projection_bias])):
        tensors[bias] = tensors.pop(projection_bias)
    return tensors


def require_license(license: str | None, encoder: str) -> str:
    """Return the licence, or raise a `ConversionError` if it is not known or not an id of the Hub."""
    if license is None:
        raise ConversionError(
            f"The licence of {encoder} is not known, but the model card must name it. Pass --license, for example "
            "apache-2.0 or mit."
        )
    if isinstance(license, str) and not re.fullmatch("[a-z0-9][a-z0-9.-]*", license):
        raise ConversionError(
            f'"{license}" is not a valid licence id. Pass --license with an id of the Hub, for example apache-2.0, '
            "cc-by-4.0 or other."
        )
    return license
