"""Check the files and arguments of an exported model. This file is beside the runtime."""

import hashlib
import json
import math
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np


# The logits of all beams are in memory at the same time.
MAX_BEAMS = 1000

# With larger exponents, float32 cannot hold the scores of long texts.
MAX_LENGTH_PENALTY = 10

# Options of `generate` that older exports do not store, with Transformers' defaults.
DEFAULTS: dict[str, Any] = {
    **{"num_return_sequences": 1, "no_repeat_ngram_size": 0, "repetition_penalty": 1.0},
    **{"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "seed": None},
}

FILES = ("model.bin", "model.xml", "tokenizer.json")


def is_integer(value: Any) -> bool:
    """Return True if `value` is an integer and not a boolean."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_range(name: str, value: Any, low: int, high: int):
    """Refuse a value that is not an integer from `low` to `high`."""
    if not is_integer(value) or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high} (got {value!r}). Use another number.")


def check_number(name: str, value: Any, low: float, high: float):
    """Refuse a value that is not a number from `low` to `high`."""
    is_number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not low <= value <= high:
        raise ValueError(f"{name} must be a number from {low} to {high} (got {value!r}). Use another number.")


def check_options(options: dict, config: dict):
    """Refuse options of `generate` that the model cannot use."""
    # Enough continuations must be left if all end tokens are among the best.
    continuations = max(2, 1 + len(config["end_token_ids"]))
    check_range("max_new_tokens", options["max_new_tokens"], 1, config["longest_input"])
    check_range("num_beams", options["num_beams"], 1, max(1, min(MAX_BEAMS, config["vocab_size"] // continuations)))
    if options["forced_bos_token_id"] is not None:
        check_range("forced_bos_token_id", options["forced_bos_token_id"], 0, config["vocab_size"] - 1)
    check_number("length_penalty", options["length_penalty"], -MAX_LENGTH_PENALTY, MAX_LENGTH_PENALTY)
    check_range("no_repeat_ngram_size", options["no_repeat_ngram_size"], 0, config["longest_input"])
    check_number("repetition_penalty", options["repetition_penalty"], 0.01, 100)
    check_number("temperature", options["temperature"], 0.01, 100)
    check_range("top_k", options["top_k"], 0, config["vocab_size"])
    check_number("top_p", options["top_p"], 0, 1)
    if options["seed"] is not None and not isinstance(options["seed"], np.random.Generator):
        check_range("seed", options["seed"], 0, 2**63 - 1)
    beams, sequences, do_sample = (options[name] for name in ("num_beams", "num_return_sequences", "do_sample"))
    check_range("num_return_sequences", sequences, 1, MAX_BEAMS)
    if not isinstance(do_sample, bool):
        raise ValueError(f"do_sample must be True or False (got {do_sample!r}). Use one of them.")
    if do_sample and beams > 1:
        raise ValueError(f"do_sample needs num_beams=1 (got num_beams={beams}). Set num_beams=1.")
    if sequences > beams and not do_sample:
        raise ValueError(
            f"num_return_sequences must be at most num_beams (got {sequences} with {beams} beams). Use more beams."
        )


def check_texts(texts: list[str]):
    """Refuse texts that the tokenizer cannot read."""
    if isinstance(texts, str):
        raise TypeError("texts must be a list of strings (got one string). Put the string in a list.")
    if not isinstance(texts, list | tuple):
        raise TypeError(f"texts must be a list of strings (got {type(texts).__name__}). Pass a list.")
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise TypeError(f"Text {number} must be a string (got {type(text).__name__}). Pass a list of strings.")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"Text {number} is not valid Unicode. Remove its lone surrogates.") from error


def make_array(name: str, values: Any) -> np.ndarray:
    """Return integers as an array of int64."""
    try:
        array = np.asarray(values)
    # The rows have different lengths.
    except ValueError:
        array = np.empty(0)
    if not np.issubdtype(array.dtype, np.integer) and array.dtype != bool:
        raise ValueError(f"{name} must be a rectangular array of integers. Pad the rows to one length.")
    return np.ascontiguousarray(array, np.int64)


def read_config(folder: Path) -> dict:
    """Return the content of `config.json`, or raise a `ValueError` that names a wrong field."""
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError("config.json is missing")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError("config.json is damaged") from error
    if not isinstance(config, dict) or config.get("model_type") != "xlm_swcm_exported":
        raise ValueError("config.json belongs to a model that is not exported")
    try:
        check_config(config)
    except ValueError as error:
        raise ValueError(f"config.json is wrong: {error}") from error
    return config | {"generation": DEFAULTS | config["generation"]}


def check_config(config: dict):
    """Refuse fields of `config.json` that are missing or have a wrong value."""
    kinds = {"languages": dict, "generation": dict, "sha256": dict, "end_token_ids": list}
    if wrong := next((name for name, kind in kinds.items() if not isinstance(config.get(name), kind)), None):
        raise ValueError(f"{wrong} must be a {kinds[wrong].__name__} (got {config.get(wrong)!r}).")
    for name in ("vocab_size", "longest_input"):
        check_range(name, config.get(name), 1, 2**31 - 1)
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "decoder_start_token_id")
    ids = [(name, config.get(name)) for name in names]
    ids += [(f"languages.{code}", token) for code, token in config["languages"].items()]
    ids += [("end_token_ids", token) for token in config["end_token_ids"]]
    for name, token in ids:
        check_range(name, token, 0, config["vocab_size"] - 1)
    required = ("forced_bos_token_id", "max_new_tokens", "num_beams", "length_penalty")
    check_options(DEFAULTS | dict.fromkeys(required) | config["generation"], config)


def check_files(folder: Path, checksums: dict[str, str]):
    """Refuse files that `xlm-swcm export` did not write."""
    for name in FILES:
        if not (folder / name).is_file():
            raise ValueError(f"{name} is missing")
        try:
            with (folder / name).open("rb") as file:
                checksum = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ValueError(f"{name} cannot be read") from error
        if checksum != checksums.get(name):
            raise ValueError(f"{name} is damaged, or belongs to another model")
