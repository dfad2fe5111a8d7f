"""The encoder that a conversion starts from: what may be one, and what is read of it."""

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

from .errors import ConversionError, first_line, refused_config
from .reading import StoredTensor, equal, find_file, read_config, read_weights


REQUIRED_FIELDS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("max_position_embeddings", "pad_token_id"),
)

TOKENIZER_FILES = ("tokenizer.json", "sentencepiece.bpe.model", "vocab.json")


@dataclass
class Encoder:
    """
    Attributes:
        name: folder, Hub id or class, for messages.
        config: `config.json` as a dict.
        tensors: by the names of the bare encoder, `embeddings.*` and `encoder.layer.*`; heads keep their names.
        tokenizer: None where a model was given without one.
        commit: the Hub commit that was read; None for a folder or model.
        license: what the encoder's own card names.
    """

    name: str
    config: dict
    tensors: dict[str, torch.Tensor | StoredTensor]
    tokenizer: PreTrainedTokenizerBase | None
    commit: str | None = None
    license: str | None = None

    @property
    def word_embeddings(self) -> torch.Tensor | StoredTensor:
        return self.tensors["embeddings.word_embeddings.weight"]

    @property
    def has_tied_output(self) -> bool:
        """Whether the masked-LM head, if there is one, writes with the word embeddings."""
        output = self.tensors.get("lm_head.decoder.weight")
        return self.config.get("tie_word_embeddings", True) if output is None else equal(output, self.word_embeddings)


def load_encoder(
    encoder: str | PathLike | PreTrainedModel, revision: str | None, tokenizer: PreTrainedTokenizerBase | None
) -> Encoder:
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
        tokenizer = tokenizer or load_tokenizer(name, revision)
        if not Path(name).is_dir():
            commit = extract_commit_hash(str(find_file(name, "config.json", revision)), None)
        license = read_license(name, revision)
    if tokenizer is not None:
        check_tokenizer(name, config, tokenizer)
    return Encoder(name, config, without_prefix(name, tensors), tokenizer, commit, license)


def read_license(name: str, revision: str | None) -> str | None:
    """The licence that an encoder's card names; None without a card, or with one that cannot be read or reached."""
    try:
        card = find_file(name, "README.md", revision)
        return ModelCard.load(card).data.license if card is not None else None
    except (ValueError, YAMLError):
        return None


def check_config(name: str, config: dict):
    """Refuse what is not a post-LayerNorm encoder with learned absolute positions and plain weights."""
    model_type = config.get("model_type")
    reason = None
    if model_type in ("xlm-roberta-xl", "roberta-prelayernorm"):
        reason = "it normalises before each sublayer, and the decoder's layers normalise after"
    elif model_type == "xlm_swcm":
        reason = "it is an XLM-SWCM checkpoint already"
    elif model_type not in ("xlm-roberta", "roberta", "camembert"):
        reason = "only encoders of type xlm-roberta, roberta and camembert can be"
    elif config.get("is_decoder") or config.get("add_cross_attention"):
        reason = "it is configured as a decoder, not an encoder"
    elif config.get("quantization_config"):
        reason = "its weights are quantised; give the checkpoint that it was made from"
    elif config.get("position_embedding_type", "absolute") != "absolute":
        reason = f"its positions are {config['position_embedding_type']}, not absolute"
    elif missing := [field for field in REQUIRED_FIELDS if field not in config]:
        reason = f"its config has no {missing[0]}"
    elif str(config.get("hidden_act", "gelu")) not in ACT2FN:
        reason = f"its hidden_act is {config['hidden_act']}, which Transformers does not have"
    if reason is not None:
        raise ConversionError(f'{name} (model type "{model_type}") cannot be converted: {reason}.')
    try:
        CONFIG_MAPPING[model_type].from_dict(config)
    except Exception as error:
        raise refused_config(name, error) from error


def check_tokenizer(name: str, config: dict, tokenizer: PreTrainedTokenizerBase):
    if tokenizer.pad_token_id != config["pad_token_id"]:
        raise ConversionError(
            f"pad_token_id is {config['pad_token_id']} in the config of {name} and {tokenizer.pad_token_id} in "
            "its tokenizer; positions are counted from it, so the two must agree."
        )


def check_rows(name: str, tokenizer: PreTrainedTokenizerBase, rows: int):
    if len(tokenizer) > rows:
        raise ConversionError(
            f"The tokenizer of {name} has {len(tokenizer)} tokens and its word embedding only {rows} rows; "
            "they do not belong together."
        )


def load_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    # without a file, Transformers makes a tokenizer of the special tokens alone
    if not any(find_file(name, file, revision) for file in TOKENIZER_FILES):
        raise ConversionError(f"{name} has no tokenizer: none of {', '.join(TOKENIZER_FILES)} is there.")
    try:
        return AutoTokenizer.from_pretrained(name, revision=revision)
    except Exception as error:  # a damaged file raises whatever its parser raises
        raise ConversionError(
            f"The tokenizer of {name} cannot be loaded; it needs a tokenizer.json or sentencepiece.bpe.model. "
            f"({first_line(error)})"
        ) from error


def without_prefix(
    name: str, tensors: dict[str, torch.Tensor | StoredTensor]
) -> dict[str, torch.Tensor | StoredTensor]:
    """The tensors named as in the bare encoder, whatever model they were saved from."""
    suffix = "embeddings.word_embeddings.weight"
    prefix = next((key.removesuffix(suffix) for key in tensors if key.endswith(suffix)), None)
    if prefix is None:
        raise ConversionError(f"{name} has no tensor named {suffix}, so it is not an XLM-R-shaped encoder.")
    tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    bias, read = tensors.get("lm_head.bias"), tensors.get("lm_head.decoder.bias")
    if read is not None and (bias is None or not equal(bias, read)):  # of two it is this that Transformers reads
        tensors["lm_head.bias"] = tensors.pop("lm_head.decoder.bias")
    return tensors


def require_license(license: str | None, encoder: str) -> str:
    if license is None:
        raise ConversionError(
            f"The licence of {encoder} is not known, and the model card must name it: give --license, such as "
            "apache-2.0 or mit."
        )
    if isinstance(license, str) and not re.fullmatch("[a-z0-9][a-z0-9.-]*", license):
        raise ConversionError(
            f'The Hub knows no licence "{license}": give --license an id such as apache-2.0, cc-by-4.0 or other.'
        )
    return license
