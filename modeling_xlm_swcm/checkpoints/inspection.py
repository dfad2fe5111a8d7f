"""Describe a checkpoint from its config files and the headers of its weight files."""

from collections import Counter
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, get_local_safetensors_metadata
from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError
from rich.console import Console
from rich.filesize import decimal
from transformers import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING

from modeling_xlm_swcm import XLMSWCMConfig, XLMSWCMModernConfig
from modeling_xlm_swcm.compat_xlm_swcm import VERSION
from modeling_xlm_swcm.hub_xlm_swcm import REPORT, parse_report
from modeling_xlm_swcm.pipeline_xlm_swcm import TASKS
from modeling_xlm_swcm.released_xlm_swcm import ReleasedXLMSWCMConfig

from .arguments import check_path
from .code import UNNAMED_VERSION, complete_auto_maps, find_changed_code, is_newer, is_outdated, read_code_version
from .errors import ConversionError, first_line, make_config_error
from .families import MODEL_TYPES
from .hub_errors import translate_hub_errors
from .reading import check_safetensors, find_file, read_config, read_json


CONFIG_CLASSES: dict[str, Any] = {
    config.model_type: config for config in (XLMSWCMConfig, XLMSWCMModernConfig, ReleasedXLMSWCMConfig)
}

# Model type in the config.json that `xlm-swcm export` writes.
EXPORTED_TYPE = "xlm_swcm_exported"

# Prefix of a tensor's name -> part of the model.
MODEL_PARTS = {
    "model.encoder.embeddings.": "embeddings",
    "model.encoder.encoder.": "encoder layers",
    "model.encoder.layers.": "encoder layers",
    "model.encoder.final_norm.": "encoder layers",
    "model.decoder.layers.": "decoder layers",
    "model.decoder.final_norm.": "decoder layers",
    "lm_head.": "output",
    "lm_head_transform.": "output",
}


@dataclass
class Inspection:
    """
    Description of a checkpoint.

    Attributes:
        source (`str`):
            Folder or Hub id.
        config ([`XLMSWCMConfig`]):
            Config of the model.
        languages (`list[str]`):
            Languages that have a tag.
        parts (`dict[str, int]`):
            Stored parameters by part of the model. Shared parameters count once.
        parameters (`dict[str, int]`):
            Stored parameters by dtype.
        size (`int`):
            Size of all tensors in bytes.
        files (`list[str]`):
            Names of the weight files.
        report (`dict` or `None`):
            Content of `conversion_report.json`.
        code (`str` or `None`):
            Version of the code that is saved with the model.
        changed_code (`list[str]`):
            Names of code files that are missing or differ from the installed package.
        without_auto_map (`list[str]`):
            Names of config files that do not name the saved code.
    """

    source: str
    config: XLMSWCMConfig
    languages: list[str]
    parts: dict[str, int]
    parameters: dict[str, int]
    size: int
    files: list[str]
    report: dict | None
    code: str | None
    changed_code: list[str] = field(default_factory=list)
    without_auto_map: list[str] = field(default_factory=list)

    def print(self, console: Console):
        """Print the description, with a drawing of the layers."""
        config = self.config
        stored = ", ".join(f"{count:,} as {dtype}" for dtype, count in self.parameters.items())
        rows = [
            ("model", f"{self.source} ({', '.join(config.architectures or ['no architecture in config.json'])})"),
            ("hidden size", f"{config.hidden_size}, {config.num_attention_heads} heads"),
            ("FFN size", f"{config.intermediate_size}, {config.hidden_act}"),
            ("positions", f"{config.longest_input} tokens"),
            ("vocabulary", f"{config.vocab_size:,} tokens"),
            ("languages", ", ".join(self.languages) or "no tags"),
            ("sharing", f'weight_sharing "{config.weight_sharing}", output {describe_output_matrix(config)}'),
            ("parameters", stored),
            *(("", f"{count:,} in {part}") for part, count in self.parts.items()),
            ("size", f"{decimal(self.size)} in {', '.join(self.files)}"),
            ("made from", self.describe_origin()),
            *(("code" if index == 0 else "", line) for index, line in enumerate(self.describe_code().splitlines())),
        ]
        # A table would cut long paths and commands.
        lines = [f"{name:<13}{text}" for name, text in rows]
        console.print(*lines, draw_layers(config), sep="\n", markup=False, highlight=False, soft_wrap=True)

    def describe_origin(self) -> str:
        """Return the source of the conversion and the number of copied, new and dropped tensors."""
        if self.report is None:
            return "not known, because conversion_report.json is missing"
        counts, family, commit = self.report["counts"], self.report.get("family"), self.report.get("commit")
        details = ", ".join(filter(None, (family and f"family {family}", commit and f"commit {commit}")))
        new_rows = f" ({counts['new_rows']} with new rows)" if counts.get("new_rows") else ""
        return (
            f"{self.report['source']}{f' ({details})' if details else ''}: {counts['copied']} tensors copied"
            f"{new_rows}, {counts['new']} new, {counts['dropped']} dropped"
        )

    def describe_code(self) -> str:
        """Return the version of the saved code and, for old or changed code, the command that replaces it."""
        if self.code is None:
            return "none. The model loads only where xlm-swcm is installed"
        if is_newer(self.code):
            return f"xlm-swcm {self.code}, newer than the installed {VERSION}"
        if not (is_outdated(self.code) or self.without_auto_map or self.changed_code):
            return f"xlm-swcm {self.code}"
        if Path(self.source).is_dir():
            remedy = f"Replace it: xlm-swcm refresh {self.source}"
        else:
            remedy = f"Replace it: hf download {self.source} --local-dir model && xlm-swcm push model {self.source}"
        wrong = " It generates wrong text with Transformers 5.24 and newer." if self.code == UNNAMED_VERSION else ""
        if is_outdated(self.code):
            return f"xlm-swcm {self.code}, older than the installed {VERSION}.{wrong}\n{remedy}"
        if self.without_auto_map:
            files = " and ".join(self.without_auto_map)
            return f"not used, because {files} {'lack' if ' and ' in files else 'lacks'} auto_map\n{remedy}"
        differing = ", ".join(self.changed_code)
        return f"xlm-swcm {self.code}, but these files are missing or changed: {differing}\n{remedy}"


def describe_output_matrix(config: XLMSWCMConfig) -> str:
    """Return how the output projection is connected to the word embeddings and the decoder."""
    matrix = "tied to the word embeddings" if config.tie_word_embeddings else "not tied"
    return f"{'after a transform, ' if config.lm_head_transform else ''}{matrix}"


def inspect(source: str | PathLike, revision: str | None = None) -> Inspection:
    """
    Describe a checkpoint without downloading its weights.

    Only the headers of the weight files are read, on the Hub with range requests.

    Args:
        source (`str` or `PathLike`):
            Folder or Hub id of an XLM-SWCM model.
        revision (`str`, *optional*):
            Branch, tag or commit of `source` on the Hub. Default: the main branch.

    Returns:
        [`Inspection`]: config, languages, parameters, files and origin of the model.

    Raises:
        ConversionError: if `source` cannot be read or is not an XLM-SWCM checkpoint.
    """
    check_path("source", source)
    source = str(source)
    config = read_model_config(source, revision)
    tokenizer = read_optional(source, "tokenizer_config.json", revision)
    report = read_conversion_report(source, revision)
    headers = read_headers(source, revision)
    tensors = {name: tensor for file in headers.values() for name, tensor in file.tensors.items()}
    check_tensors(source, config, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    parts = dict.fromkeys(MODEL_PARTS.values(), 0)
    parameters: Counter[str] = Counter()
    for name, tensor in tensors.items():
        # A model without a head is saved without the prefix "model.".
        names = name, f"model.{name}"
        part = next(
            (part for prefix, part in MODEL_PARTS.items() if any(one.startswith(prefix) for one in names)), None
        )
        if part is None:
            raise ConversionError(
                f"{source} has a tensor that no XLM-SWCM model has: {name}. Check that weights and config.json belong "
                "together."
            )
        parts[part] += tensor.parameter_count
        parameters[tensor.dtype] += tensor.parameter_count
    size = sum(end - start for start, end in (tensor.data_offsets for tensor in tensors.values()))
    languages = read_languages(source, tokenizer or {})
    code = read_code_version(source, revision)
    changed = find_changed_code(source, config, revision) if code is not None else []
    files, maps = sorted(headers), list(complete_auto_maps(source, config, revision))
    return Inspection(source, config, languages, parts, dict(parameters), size, files, report, code, changed, maps)


def read_languages(source: str, tokenizer: dict) -> list[str]:
    """Return the languages in `tokenizer_config.json`."""
    languages = tokenizer.get("languages", [])
    if not isinstance(languages, list) or not all(isinstance(code, str) for code in languages):
        raise ConversionError(
            f"languages in tokenizer_config.json of {source} is not a list of codes. Copy the file again from the "
            "converted model."
        )
    return languages


def check_tensors(source: str, config: XLMSWCMConfig, shapes: dict[str, tuple[int, ...]]):
    """Refuse weights without a tensor that the config describes, or with a tensor of another shape."""
    # A quantised tensor has another shape.
    if getattr(config, "quantization_config", None):
        return
    try:
        with torch.device("meta"):
            model = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING[type(config)](config)  # type: ignore[operator]
    except Exception as error:
        raise make_config_error(source, error) from error
    # A model without a head is saved without the prefix "model.".
    has_head = any(name.startswith("model.") for name in shapes)
    # Loading copies the word embeddings if an untied output projection is missing.
    tied, described = {*model.all_tied_weights_keys, "lm_head.weight"}, model.state_dict()
    for name in shapes:
        if (name if has_head else f"model.{name}") not in described:
            raise ConversionError(
                f"{source} has a tensor that its config.json does not describe: {name}. Check that weights and "
                "config.json belong together."
            )
    for name, tensor in described.items():
        saved = name if has_head else name.removeprefix("model.")
        if not has_head and saved == name or saved not in shapes and name in tied:
            continue
        if saved not in shapes:
            raise ConversionError(
                f"The weights of {source} lack {saved}, which its config.json describes. Download the weights again."
            )
        if shapes[saved] != tuple(tensor.shape):
            raise ConversionError(
                f"{saved} of {source} has shape {list(shapes[saved])}, but config.json describes shape "
                f"{list(tensor.shape)}. Check that weights and config.json belong together."
            )


def read_model_config(source: str, revision: str | None = None) -> XLMSWCMConfig:
    """Read the config of an XLM-SWCM model, or raise a `ConversionError` for another kind of model."""
    fields = read_config(source, revision)
    config_class = CONFIG_CLASSES.get(fields.get("model_type", ""))
    if fields.get("model_type") == EXPORTED_TYPE:
        raise ConversionError(
            f"{source} is an exported model, not a checkpoint. Pass the folder from which you made the export."
        )
    if config_class is None:
        family = MODEL_TYPES.get(fields.get("model_type", ""))
        kind = "a model" if family is None else f"an encoder ({family.name})"
        advice = "Pass an XLM-SWCM model." if family is None else "Convert it with xlm-swcm convert."
        raise ConversionError(
            f'{source} holds {kind} of type "{fields.get("model_type")}", not an XLM-SWCM model. {advice}'
        )
    try:
        return config_class.from_dict(fields)
    except Exception as error:
        raise make_config_error(source, error) from error


def read_optional(source: str, name: str, revision: str | None) -> dict | None:
    """Read a JSON file of a folder or Hub repository, or return `None` if it does not exist."""
    path = find_file(source, name, revision)
    return None if path is None else read_json(path)


def read_tasks(source: str, revision: str | None = None) -> list[str]:
    """Return the task that a model is fine-tuned for, or all tasks if `metrics.json` does not name one."""
    task = (read_optional(source, "metrics.json", revision) or {}).get("task")
    return [task] if task in TASKS else list(TASKS)


def read_conversion_report(source: str, revision: str | None = None) -> dict | None:
    """Read `conversion_report.json` of a folder or Hub repository, or return `None` if it does not exist."""
    path = find_file(source, REPORT, revision)
    try:
        return None if path is None else parse_report(path)
    except ValueError as error:
        raise ConversionError(
            f"{path} is not a conversion report: {error}. Copy it again from the folder that xlm-swcm convert wrote."
        ) from error


def read_headers(source: str, revision: str | None) -> dict:
    """Return the header of every weight file by file name."""
    check_safetensors(source, revision)
    try:
        with translate_hub_errors(source):
            if Path(source).is_dir():
                return get_local_safetensors_metadata(source).files_metadata
            return HfApi().get_safetensors_metadata(source, revision=revision).files_metadata
    except NotASafetensorsRepoError as error:
        raise ConversionError(
            f"{source} has no weights in safetensors. Save the model again with save_pretrained."
        ) from error
    except SafetensorsParsingError as error:
        raise ConversionError(
            f"The weights of {source} cannot be read: {first_line(error).rstrip('.')}. Download them again."
        ) from error


CUSTOM, NORMAL = "■", "□"


def draw_layers(config: XLMSWCMConfig) -> str:
    """Draw the layers of encoder and decoder in two rows, each copied layer below its encoder layer."""
    if config.has_prefix_decoder:
        layers, number = " ".join([CUSTOM] * config.num_hidden_layers), config.num_hidden_layers
        return (
            f"encoder  {layers}  {number} layers\ndecoder  {layers}  {number} prefix\n{CUSTOM} encoder layer. A "
            "decoder layer also reads the input of the encoder layer that is drawn above it"
        )
    decoder = [CUSTOM if block == config.block_types[0] else NORMAL for block in config.decoder_blocks or []]
    custom, normal = decoder.count(CUSTOM), decoder.count(NORMAL)
    aligned = custom == config.num_hidden_layers
    encoder = [" " if aligned and block == NORMAL else CUSTOM for block in decoder]
    encoder = encoder if aligned else [CUSTOM] * config.num_hidden_layers
    return (
        f"encoder  {' '.join(encoder)}  {config.num_hidden_layers} layers\n"
        f"decoder  {' '.join(decoder)}  {custom} custom, {normal} normal\n"
        f"{CUSTOM} encoder layer, or custom layer: self-attention, FFN, cross-attention, FFN\n"
        f"{NORMAL} normal layer: self-attention, cross-attention, FFN"
    )


def read_folder_config(folder: Path) -> XLMSWCMConfig:
    """Read the config of an XLM-SWCM model in a local folder."""
    if folder.exists() and not folder.is_dir():
        raise ConversionError(f"{folder} is not a folder. Pass the folder of an XLM-SWCM model.")
    if not folder.is_dir():
        raise ConversionError(f"The folder {folder} does not exist. Pass the folder of an XLM-SWCM model.")
    return read_model_config(str(folder))
