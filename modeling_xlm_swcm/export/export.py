"""Write a model as a folder that runs without PyTorch."""

import hashlib
import json
import shutil
import sys
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Literal, get_args

from modeling_xlm_swcm import (
    XLMSWCMForConditionalGeneration,
    XLMSWCMTokenizer,
    __version__,
    punctuation_xlm_swcm,
    sentences_xlm_swcm,
)
from modeling_xlm_swcm.checkpoints.arguments import check_path
from modeling_xlm_swcm.checkpoints.errors import ConversionError, check_choice
from modeling_xlm_swcm.checkpoints.inspection import EXPORTED_TYPE, read_folder_config
from modeling_xlm_swcm.checkpoints.loading import check_cache, load_model, load_tokenizer
from modeling_xlm_swcm.checkpoints.writing import check_output, whole_folder
from modeling_xlm_swcm.tokenization_xlm_swcm import TEXT_MODELS, UNREACHABLE, hide_special_tokens

from .xlm_swcm_checks import DEFAULTS, check_config, check_range


RUNTIME = [
    *sorted(Path(__file__).parent.glob("xlm_swcm_*.py")),
    Path(punctuation_xlm_swcm.__file__),
    Path(sentences_xlm_swcm.__file__),
]

Quantization = Literal["none", "int8"]
QUANTIZATIONS = get_args(Quantization)

# Settings of generation_config.json that the runtime supports.
SUPPORTED_SETTINGS = {
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id"),
    *("max_length", "max_new_tokens", "num_beams", "length_penalty"),
    *("no_repeat_ngram_size", "repetition_penalty", "do_sample", "temperature", "top_k", "top_p"),
}

# Settings without an effect on the generated tokens.
IGNORED_SETTINGS = {
    *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "compile_config", "disable_compile"),
    *("return_dict_in_generate", "output_scores", "output_logits", "output_attentions", "output_hidden_states"),
    *("low_memory", "prefill_chunk_size", "transformers_version", "_from_model_config"),
}

# Settings without an effect if they are 1.
FACTOR_SETTINGS = {
    *("num_return_sequences", "num_beam_groups", "encoder_repetition_penalty", "guidance_scale"),
}


def export(
    folder: str | PathLike, output: str | PathLike, *, quantize: str = "none", overwrite: bool = False
) -> dict[str, int]:
    """
    Write a model as a folder with an OpenVINO graph, its tokenizer and a runtime that needs no PyTorch.

    The folder holds `model.xml`, `model.bin`, `config.json`, `tokenizer.json`, the runtime and a server. The runtime
    is `xlm_swcm_runtime.py` and the modules that it imports. The server is `xlm_swcm_server.py`.

    Args:
        folder (`str` or `PathLike`): The folder of a saved model and tokenizer.
        output (`str` or `PathLike`): The folder to write.
        quantize (`str`, *optional*, defaults to `"none"`):
            How to store the weights. `"none"`: float32. `"int8"`: int8 matrices with a scale for each row.
        overwrite (`bool`, *optional*, defaults to `False`): Replace `output` if it exists.

    Returns:
        `dict[str, int]`: The size of each file in bytes.

    Raises:
        ConversionError: if OpenVINO is not installed, the model cannot be exported or `output` cannot be written.
    """
    check_path("folder", folder)
    check_path("output", output)
    check_choice("quantize", quantize, QUANTIZATIONS)
    if find_spec("openvino") is None:
        raise ConversionError("The export needs OpenVINO. Install it with pip install openvino.")
    # OpenVINO is an optional dependency.
    try:
        from .graph import ACTIVATIONS, write_graph
        from .modern_graph import BUILDERS
    except ImportError as error:
        raise ConversionError(
            "The installed OpenVINO is too old or damaged. Install it again with pip install -U openvino."
        ) from error

    folder, output = Path(folder), Path(output)
    check_output(output, overwrite, folder)
    if (problem := read_folder_config(folder).export_problem) is not None:
        raise ConversionError(f"{folder} {problem}")
    model = load_model(folder)
    check_cache(model, str(folder))
    tokenizer = load_tokenizer(folder, model.config.vocab_size)
    build = BUILDERS[model.config.model_type]
    for name in build.activation_fields:
        if (activation := getattr(model.config, name)) not in ACTIVATIONS:
            raise ConversionError(
                f'{name} in config.json of {folder} is "{activation}", which cannot be exported. Use a model with one '
                f"of: {', '.join(ACTIVATIONS)}."
            )
    config = make_runtime_config(folder, model, tokenizer, quantize)
    size = model.num_parameters() * (1 if quantize == "int8" else 4)
    with whole_folder(output, size, overwrite) as partial:
        write_graph(build(model.float(), quantize == "int8"), partial / "model.xml", output)
        (partial / "tokenizer.json").write_text(make_text_tokenizer(tokenizer), encoding="utf-8")
        config["sha256"] = {path.name: checksum(path) for path in sorted(partial.iterdir())}
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for path in RUNTIME:
            shutil.copy(path, partial)
        return {path.name: path.stat().st_size for path in sorted(partial.iterdir())}


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_text_tokenizer(tokenizer: XLMSWCMTokenizer) -> str:
    """Return a `tokenizer.json` with the same ids, in which no text can spell a special token."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content |= {"truncation": None, "padding": None, "post_processor": None}
    if content["model"]["type"] in TEXT_MODELS:
        special = {token["id"] for token in content["added_tokens"] if token["special"]}
        for token in content["added_tokens"]:
            token["content"] = UNREACHABLE * token["special"] + token["content"]
        hide_special_tokens(content["model"], special)
    return json.dumps(content, ensure_ascii=False)


def make_runtime_config(
    folder: Path, model: XLMSWCMForConditionalGeneration, tokenizer: XLMSWCMTokenizer, quantize: str
) -> dict:
    """Return the config of the runtime, or refuse generation settings that the runtime does not support."""
    settings = model.generation_config
    # Transformers' trainer writes all settings with their defaults.
    defaults = settings._get_default_generation_params()
    for name, value in settings.to_dict().items():
        is_harmless = name in SUPPORTED_SETTINGS | IGNORED_SETTINGS or (name in FACTOR_SETTINGS and value == 1)
        if not is_harmless and value not in (None, False, defaults.get(name)):
            raise ConversionError(
                f"generation_config.json of {folder} sets {name} to {value}, which an exported model does not "
                "support. Remove this setting."
            )
    longest, new_tokens = model.config.longest_input, settings.max_new_tokens
    if new_tokens is None:
        new_tokens = (settings.max_length if isinstance(settings.max_length, int) else 21) - 1
    start, ends = settings.decoder_start_token_id, settings.eos_token_id
    config = {
        "model_type": EXPORTED_TYPE,
        "xlm_swcm_version": __version__,
        "quantize": quantize,
        "vocab_size": model.config.vocab_size,
        "longest_input": longest,
        "languages": {code: tokenizer.get_lang_id(code) for code in tokenizer.languages},
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": model.config.pad_token_id,
        "unk_token_id": tokenizer.unk_token_id,
        "decoder_start_token_id": settings.bos_token_id if start is None else start,
        "end_token_ids": ends if isinstance(ends, list) else [end for end in [ends] if end is not None],
        "generation": {
            "forced_bos_token_id": settings.forced_bos_token_id,
            "max_new_tokens": min(new_tokens, longest) if isinstance(new_tokens, int) else new_tokens,
            "num_beams": 1 if settings.num_beams is None else settings.num_beams,
            "length_penalty": 1.0 if settings.length_penalty is None else settings.length_penalty,
            **{name: getattr(settings, name) for name in DEFAULTS if getattr(settings, name, None) is not None},
        },
        "sha256": {},
    }
    try:
        if settings.max_length is not None:
            check_range("max_length", settings.max_length, 1, sys.maxsize)
        check_config(config)
    except ValueError as error:
        cause = str(error).replace("end_token_ids", "eos_token_id")
        raise ConversionError(
            f"The settings in generation_config.json or tokenizer_config.json of {folder} cannot be exported: {cause}"
        ) from error
    return config
