"""What a checkpoint is, read from its configs and from the headers of its weights, without the weights."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, get_local_safetensors_metadata
from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from modeling_xlm_swcm import XLMSWCMConfig
from modeling_xlm_swcm.compat_xlm_swcm import VERSION
from modeling_xlm_swcm.hub_xlm_swcm import REPORT, parse_report
from modeling_xlm_swcm.released_xlm_swcm import ReleasedXLMSWCMConfig

from .code import UNNAMED_VERSION, is_outdated, read_code_version
from .errors import ConversionError, first_line, refused_config
from .hub_errors import hub_errors
from .reading import find_file, read_config, read_json


CONFIG_CLASSES = {config.model_type: config for config in (XLMSWCMConfig, ReleasedXLMSWCMConfig)}

# beginning of a tensor's name -> the part of the model that it belongs to
PARTS = {
    "model.encoder.embeddings.": "embeddings",
    "model.encoder.encoder.": "encoder layers",
    "model.decoder.layers.": "decoder layers",
    "lm_head.": "output",
    "lm_head_transform.": "output",
}


@dataclass
class Inspection:
    """
    Attributes:
        source: folder or Hub id.
        config: the model's.
        languages: those that have a tag.
        parts: parameters by part of the model; what parts share is counted where it is stored.
        parameters: by dtype, as stored.
        size: bytes of all tensors.
        files: the files of weights.
        report: `conversion_report.json`, or None.
        code: version of xlm-swcm whose code lies beside the weights, or None.
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

    def print(self, console: Console):
        config, table = self.config, Table.grid(padding=(0, 2))
        table.add_row("model", f"{self.source} ({', '.join(config.architectures or ['no architecture named'])})")
        table.add_row("hidden size", f"{config.hidden_size}, {config.num_attention_heads} heads")
        table.add_row("FFN size", f"{config.intermediate_size}, {config.hidden_act}")
        table.add_row("positions", f"{config.longest_input} tokens")
        table.add_row("vocabulary", f"{config.vocab_size:,} tokens")
        table.add_row("languages", ", ".join(self.languages) or "no tags")
        table.add_row("sharing", f'weight_sharing "{config.weight_sharing}", output {output_of(config)}')
        stored = ", ".join(f"{count:,} as {dtype}" for dtype, count in self.parameters.items())
        table.add_row("parameters", stored)
        for part, count in self.parts.items():
            table.add_row("", f"{count:,} in {part}")
        table.add_row("size", f"{decimal(self.size)} in {', '.join(self.files)}")
        table.add_row("made from", self.origin())
        table.add_row("code", self.describe_code())
        console.print(table, draw_plan(config), sep="\n", markup=False, highlight=False)

    def origin(self) -> str:
        if self.report is None:
            return "not known: there is no conversion_report.json"
        counts, commit = self.report["counts"], self.report.get("commit")
        return (
            f"{self.report['source']}{f' (commit {commit})' if commit else ''}: {counts['copied']} tensors copied, "
            f"{counts['new']} new, {counts['dropped']} of the source dropped"
        )

    def describe_code(self) -> str:
        if self.code is None:
            return "none: it loads only where xlm-swcm is installed"
        if not is_outdated(self.code):
            return f"xlm-swcm {self.code}"
        if Path(self.source).is_dir():
            remedy = f"Replace it: xlm-swcm refresh {self.source}"
        else:
            remedy = f"Replace it: hf download {self.source} --local-dir model && xlm-swcm push model {self.source}"
        wrong = " It writes wrong text on Transformers 5.24 and newer." if self.code == UNNAMED_VERSION else ""
        return f"xlm-swcm {self.code}, older than the installed {VERSION}.{wrong}\n{remedy}"


def output_of(config: XLMSWCMConfig) -> str:
    matrix = "tied to the word embeddings" if config.tie_word_embeddings else "a matrix of its own"
    return f"{matrix}{', behind a transform' if config.lm_head_transform else ''}"


def inspect(source: str, revision: str | None = None) -> Inspection:
    """
    Describe a checkpoint without reading its weights, on the Hub by range requests for their headers.

    Args:
        source: folder or Hub id.
        revision: Hub revision.

    Raises:
        ConversionError: `source` cannot be reached or is no XLM-SWCM checkpoint.
    """
    config = read_model_config(source, revision)
    tokenizer = read_optional(source, "tokenizer_config.json", revision)
    report = read_conversion_report(source, revision)
    headers = read_headers(source, revision)
    tensors = {name: tensor for file in headers.values() for name, tensor in file.tensors.items()}
    parts, parameters = dict.fromkeys(PARTS.values(), 0), Counter()
    for name, tensor in tensors.items():
        # a model without head has the names of its parts alone
        names = name, f"model.{name}"
        part = next((part for prefix, part in PARTS.items() if any(one.startswith(prefix) for one in names)), None)
        if part is None:
            raise ConversionError(f"{source} has a tensor that no XLM-SWCM model has: {name}.")
        parts[part] += tensor.parameter_count
        parameters[tensor.dtype] += tensor.parameter_count
    size = sum(end - start for start, end in (tensor.data_offsets for tensor in tensors.values()))
    languages = (tokenizer or {}).get("languages", [])
    code = read_code_version(source, revision)
    return Inspection(source, config, languages, parts, dict(parameters), size, sorted(headers), report, code)


def read_model_config(source: str, revision: str | None = None) -> XLMSWCMConfig:
    """The config of an XLM-SWCM model, or a refusal of another kind of model."""
    fields = read_config(source, revision)
    config_class = CONFIG_CLASSES.get(fields.get("model_type"))
    if config_class is None:
        raise ConversionError(
            f'{source} holds a model of type "{fields.get("model_type")}", not an XLM-SWCM model; make one with '
            "xlm-swcm convert."
        )
    try:
        return config_class.from_dict(fields)
    except Exception as error:
        raise refused_config(source, error) from error


def read_optional(source: str, name: str, revision: str | None) -> dict | None:
    path = find_file(source, name, revision)
    return None if path is None else read_json(path)


def read_conversion_report(source: str, revision: str | None = None) -> dict | None:
    path = find_file(source, REPORT, revision)
    try:
        return None if path is None else parse_report(path)
    except ValueError as error:
        raise ConversionError(
            f"{path} is no conversion report: {error}. Copy it again from the folder that xlm-swcm convert wrote."
        ) from error


def read_headers(source: str, revision: str | None) -> dict:
    """File of weights -> its header."""
    try:
        with hub_errors(source):
            if Path(source).is_dir():
                return get_local_safetensors_metadata(source).files_metadata
            return HfApi().get_safetensors_metadata(source, revision=revision).files_metadata
    except NotASafetensorsRepoError as error:
        raise ConversionError(f"{source} has no weights in safetensors.") from error
    except SafetensorsParsingError as error:
        raise ConversionError(f"The weights of {source} cannot be read: {first_line(error)}") from error


CUSTOM, NORMAL = "■", "□"


def draw_plan(config: XLMSWCMConfig) -> str:
    """The layers of encoder and decoder in order, a custom layer under the encoder layer that it was made from."""
    decoder = [CUSTOM if block == config.block_types[0] else NORMAL for block in config.decoder_blocks]
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
    if not folder.is_dir():
        raise ConversionError(f"The folder {folder} does not exist.")
    return read_model_config(str(folder))
