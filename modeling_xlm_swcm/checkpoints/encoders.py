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


REQUIRED_FIELDS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("max_position_embeddings", "pad_token_id"),
)

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
        config (`dict`):
            Content of `config.json`.
        tensors (`dict`):
            Tensors by their names in the bare encoder: `embeddings.*` and `encoder.layer.*`. Heads keep their names.
        tokenizer (`PreTrainedTokenizerBase` or `None`):
            Tokenizer, or `None` for a model that was passed without one.
        commit (`str` or `None`):
            Hub commit of the files, or `None` for a folder or model.
        license (`str` or `None`):
            Licence in the encoder's model card.
    """

    name: str
    config: dict
    tensors: dict[str, torch.Tensor | StoredTensor]
    tokenizer: PreTrainedTokenizerBase | None
    commit: str | None = None
    license: str | None = None

    @property
    def word_embeddings(self) -> torch.Tensor | StoredTensor:
        """Word embeddings of the encoder."""
        return self.tensors["embeddings.word_embeddings.weight"]

    @property
    def has_tied_output(self) -> bool:
        """Return True if the output matrix of the masked-LM head is equal to the word embeddings."""
        output = self.tensors.get("lm_head.decoder.weight")
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
        check_config(name, config)
        tensors = dict(encoder.state_dict())
    else:
        name = str(encoder)
        config = read_config(name, revision)
        check_config(name, config)
        tensors = read_weights(name, revision)
        tokenizer = tokenizer or load_encoder_tokenizer(name, revision)
        if not Path(name).is_dir():
            commit = extract_commit_hash(str(find_file(name, "config.json", revision)), None)
        license = read_license(name, revision)
    check_dtypes(name, tensors)
    if tokenizer is not None:
        check_tokenizer(name, config, tokenizer)
    return Encoder(name, config, strip_prefix(name, tensors), tokenizer, commit, license)


def read_license(name: str, revision: str | None) -> str | None:
    """Return the licence in an encoder's model card, or `None` if there is no readable card."""
    card = find_file(name, "README.md", revision)
    try:
        return ModelCard.load(card).data.license if card is not None else None
    except (ValueError, YAMLError):
        return None


def check_config(name: str, config: dict):
    """Check that an encoder has post-LayerNorm layers, learned absolute positions and plain weights."""
    model_type = config.get("model_type")
    reason = None
    if model_type in ("xlm-roberta-xl", "roberta-prelayernorm"):
        reason = "it has pre-LayerNorm layers. Use an encoder with post-LayerNorm layers"
    elif model_type == "xlm_swcm":
        reason = "it is already an XLM-SWCM checkpoint. Pass its encoder"
    elif model_type not in ("xlm-roberta", "roberta", "camembert"):
        reason = "this model type is not supported. Use an encoder of type xlm-roberta, roberta or camembert"
    elif config.get("is_decoder") or config.get("add_cross_attention"):
        reason = "it is configured as a decoder. Use an encoder"
    elif config.get("quantization_config"):
        reason = "its weights are quantised. Use the checkpoint before quantisation"
    elif config.get("position_embedding_type", "absolute") != "absolute":
        positions = config["position_embedding_type"]
        reason = f"its position_embedding_type is {positions}. Use an encoder with absolute positions"
    elif missing := [field for field in REQUIRED_FIELDS if field not in config]:
        reason = f"its config.json lacks {missing[0]}. Add the field"
    elif str(config.get("hidden_act", "gelu")) not in ACT2FN:
        reason = f"its hidden_act is {config['hidden_act']}. Use an activation function of Transformers"
    if reason is not None:
        raise ConversionError(f'{name} (model type "{model_type}") cannot be converted: {reason}.')
    try:
        CONFIG_MAPPING[config["model_type"]].from_dict(config)
    except Exception as error:
        raise make_config_error(name, error) from error


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
            f"{name} has no tokenizer. It needs one of these files: {', '.join(ENCODER_TOKENIZER_FILES)}."
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
    """Refuse a tokenizer without a Rust backend, or whose class replaces the model in tokenizer.json."""
    tokenizer_class = type(tokenizer).__name__
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise ConversionError(
            f"The tokenizer of {name} is a {tokenizer_class}, which is written in Python. Use a checkpoint with a "
            "fast tokenizer."
        )
    loaded = type(tokenizer.backend_tokenizer.model).__name__
    if kind is not None and loaded != kind:
        raise ConversionError(
            f"tokenizer_class in tokenizer_config.json of {name} makes a {loaded} tokenizer, but tokenizer.json holds "
            f"a {kind} model. Correct tokenizer_class."
        )


def strip_prefix(name: str, tensors: dict[str, torch.Tensor | StoredTensor]) -> dict[str, torch.Tensor | StoredTensor]:
    """Return the tensors under their names in the bare encoder, without the prefix of the saved model."""
    suffix = "embeddings.word_embeddings.weight"
    prefix = next((key.removesuffix(suffix) for key in tensors if key.endswith(suffix)), None)
    if prefix is None:
        raise ConversionError(
            f"{name} has no tensor {suffix}, so it is not an XLM-R-shaped encoder. Use a checkpoint of type "
            "xlm-roberta, roberta or camembert."
        )
    if twice := [key for key in tensors if key.startswith(prefix) and prefix and key.removeprefix(prefix) in tensors]:
        raise ConversionError(
            f"{name} has both {twice[0]} and {twice[0].removeprefix(prefix)}. Save the encoder again with "
            "save_pretrained."
        )
    tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    bias, decoder_bias = tensors.get("lm_head.bias"), tensors.get("lm_head.decoder.bias")
    # Transformers loads lm_head.decoder.bias if a checkpoint has both.
    if decoder_bias is not None and (bias is None or not equal(bias, decoder_bias)):
        tensors["lm_head.bias"] = tensors.pop("lm_head.decoder.bias")
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
