"""Read the encoder of a conversion and check that it can be converted."""

import re
from dataclasses import dataclass
from functools import reduce
from os import PathLike
from pathlib import Path

import torch
from huggingface_hub.repocard import metadata_load
from transformers import CONFIG_MAPPING, PreTrainedModel, PreTrainedTokenizerBase
from transformers.activations import ACT2FN
from transformers.utils.hub import extract_commit_hash
from yaml import YAMLError

from .arguments import check_path
from .encoder_tokenizers import check_tokenizer, copy_with_ends, load_encoder_tokenizer
from .errors import ConversionError, make_config_error
from .families import FAMILIES, MODEL_TYPES
from .family import EncoderFamily
from .reading import (
    StoredTensor,
    check_dtypes,
    equal,
    find_file,
    read_config,
    read_weights,
)
from .sentence_transformers import find_encoder_folder


# Names in checkpoints that were made from TensorFlow.
LEGACY_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}

# Licence ids of the Hub are in lower case.
LICENSE_ID = "[a-z0-9][a-z0-9.-]*"

# Unsupported model types that users try -> why the encoder cannot be converted, and what to use.
UNSUPPORTED_TYPES = {
    **dict.fromkeys(
        ("xlm_swcm", "xlm_swcm_modern"),
        "it is already an XLM-SWCM checkpoint. Pass its encoder",
    ),
    **dict.fromkeys(
        ("xlm-roberta-xl", "roberta-prelayernorm"),
        "it has pre-LayerNorm layers. Use an encoder with post-LayerNorm layers",
    ),
    "eurobert": "it has layers with RMSNorm and rotary positions. Use an XLM-R or ModernBERT encoder",
    **dict.fromkeys(
        ("deberta", "deberta-v2"),
        "its attention has relative positions. Use an encoder with absolute positions",
    ),
}


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
    if tokenizer is not None and not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ConversionError(
            f"`tokenizer` must be a tokenizer (got {type(tokenizer).__name__}). Load it with "
            "AutoTokenizer.from_pretrained."
        )
    if isinstance(encoder, PreTrainedModel):
        if revision is not None:
            raise ConversionError("`revision` needs a Hub id, but `encoder` is a model. Remove `revision`.")
        name, config = type(encoder).__name__, encoder.config.to_dict()
        family = check_config(name, config)
        tensors = dict(encoder.state_dict())
        tokenizer = copy_with_ends(name, tokenizer) if tokenizer is not None else None
    else:
        check_path("encoder", encoder)
        place = str(encoder)
        name = find_encoder_folder(place, revision)
        config = read_config(name, revision)
        family = check_config(name, config)
        tensors = read_weights(name, revision)
        tokenizer = copy_with_ends(name, tokenizer) if tokenizer else load_encoder_tokenizer(name, revision)
        if not Path(name).is_dir():
            commit = extract_commit_hash(str(find_file(name, "config.json", revision)), None)
        license = read_license(place, revision)
    check_dtypes(name, tensors)
    config, tensors = family.read_fields(config), read_names(name, family, tensors)
    if tokenizer is not None:
        if family.has_positions_from_zero and tokenizer.pad_token_id is not None:
            # Here the position of a token does not depend on the padding token, so its id can be any.
            config["pad_token_id"] = tokenizer.pad_token_id
        check_tokenizer(name, config, tokenizer)
    source = Encoder(name, family, config, tensors, tokenizer, commit, license)
    shift_positions(source)
    select_token_types(source)
    return source


def shift_positions(source: Encoder):
    """Put rows of zeros before positions that start at 0, so that the first token has the position of the model."""
    name = "embeddings.position_embeddings.weight"
    positions = source.config["max_position_embeddings"]
    # A table of another length is reported when the shapes are checked.
    if not source.family.has_positions_from_zero or len_of(source, name) != positions:
        return
    table, unused = source.tensors[name][:], source.config["pad_token_id"] + 1
    source.tensors[name] = torch.cat([table.new_zeros(unused, table.shape[1]), table])
    source.config["max_position_embeddings"] = positions + unused


def select_token_types(source: Encoder):
    """Keep the first token types, and move the token types that the family does not keep to a separate tensor."""
    name, kept = "embeddings.token_type_embeddings.weight", source.family.token_types
    types = source.config.get("type_vocab_size")
    # A table of another length is reported when the shapes are checked.
    if kept is None or types is None or len_of(source, name) != types:
        return
    table = source.tensors[name][:]
    source.tensors[name] = table[:kept].clone()
    source.config["type_vocab_size"] = kept
    if types > kept:
        source.tensors[f"{name}[{kept}:]"] = table[kept:].clone()


def len_of(source: Encoder, name: str) -> int | None:
    """Return the number of rows of a tensor, or `None` if the encoder lacks it."""
    return source.tensors[name].shape[0] if name in source.tensors else None


def read_license(name: str, revision: str | None) -> str | None:
    """Return the licence in an encoder's model card, or `None` if there is no readable card."""
    card = find_file(name, "README.md", revision)
    try:
        license = (metadata_load(card) or {}).get("license") if card is not None else None
        return license if isinstance(license, str) else None
    except (ValueError, YAMLError):
        return None


def check_config(name: str, config: dict) -> EncoderFamily:
    """Check that an encoder has a family and plain weights, and return the family."""
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
    use = f"Use an encoder of type {list_model_types()}"
    default = f"this model type is not supported. {use}"
    if config.get("auto_map"):
        default = f"it needs code that its config.json names in auto_map, and xlm-swcm never runs such code. {use}"
    return UNSUPPORTED_TYPES.get(config.get("model_type", ""), default)


def list_model_types() -> str:
    """Return the supported model types as a text."""
    *types, last = (model_type for family in FAMILIES for model_type in family.model_types)
    return f"{', '.join(types)} or {last}"


def find_config_problem(family: EncoderFamily, config: dict) -> str | None:
    """Return why an encoder of the family cannot be converted, and what to do, or `None`."""
    positions = config.get("position_embedding_type", "absolute")
    missing = next((field for field in family.required_fields if field not in config), None)
    name = family.activation
    activation = str(config.get(family.config_fields[name], "gelu"))
    problems = {
        "it is configured as a decoder. Use an encoder": config.get("is_decoder") or config.get("add_cross_attention"),
        "its weights are quantised. Use the checkpoint before quantisation": config.get("quantization_config"),
        f"its position_embedding_type is {positions}. Use an encoder with absolute positions": (
            family.has_absolute_positions and positions != "absolute"
        ),
        f"its config.json lacks {missing}. Add the field": missing is not None,
        f"its {name} is {activation}. Use an activation function of Transformers": activation not in ACT2FN,
    }
    return next((problem for problem, is_present in problems.items() if is_present), family.find_problem(config))


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
    tensors = {modernise(key.removeprefix(prefix)): tensor for key, tensor in tensors.items()}
    bias, projection_bias = family.head.bias, f"{family.head.projection}.bias"
    # Transformers loads the bias of the projection if a checkpoint has both.
    if projection_bias in tensors and (bias not in tensors or not equal(tensors[bias], tensors[projection_bias])):
        tensors[bias] = tensors.pop(projection_bias)
    return tensors


def modernise(tensor: str) -> str:
    """Return the name that Transformers gives a tensor."""
    return reduce(lambda name, old: name.replace(old, LEGACY_NAMES[old]), LEGACY_NAMES, tensor)


def require_license(license: str | None, encoder: str) -> str:
    """Return the licence, or raise a `ConversionError` if it is not known or not an id of the Hub."""
    if license is None:
        raise ConversionError(
            f"The licence of the encoder {encoder} is not known, but the model card must name it. Pass `license`, for "
            "example apache-2.0 or mit."
        )
    if isinstance(license, str) and not re.fullmatch(LICENSE_ID, license):
        is_capital = re.fullmatch(LICENSE_ID, license.lower())
        known = "with an id of the Hub, for example apache-2.0, cc-by-4.0 or other"
        choice = f'`license="{license.lower()}"`' if is_capital else f"`license` {known}"
        raise ConversionError(f'"{license}" is not a valid licence id. Pass {choice}.')
    return license
