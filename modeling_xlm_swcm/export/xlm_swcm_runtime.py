"""Run a model that `xlm-swcm export` wrote, without PyTorch.

Requirements: Python 3.11 or later, pip install openvino tokenizers numpy
"""

import hashlib
import json
import math
import os
import threading
import warnings
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import tokenizers


# All models share one core. OpenVINO can crash on signals after one of several cores is deleted.
CORE = ov.Core()

# Transformers' beam search uses the same value for beams that must not be selected.
EXCLUDED_SCORE = np.float32(-1e9)

# The logits of all beams of a batch are in memory at a time.
MAX_BEAMS = 1000

# With larger exponents, float32 cannot hold the scores of long texts.
MAX_LENGTH_PENALTY = 10

MAX_THREADS = 1024

# OpenVINO compiles kernels for each shape of texts. It keeps 5000 kernels by default, which takes gigabytes.
CACHED_KERNELS = 64

FILES = ("model.bin", "model.xml", "tokenizer.json")


class ExportedModel:
    """
    An exported model.

    Threads can share one object. It runs one call at a time, and other calls wait. Each process must load its own
    object, after the process has started.

    Args:
        folder (`str` or `Path`, *optional*):
            The folder that `xlm-swcm export` wrote. By default, the folder of this file.
        threads (`int`, *optional*, defaults to 0): Number of CPU threads. 0 means one thread per core.

    Raises:
        ValueError: if `folder` does not hold an exported model, a file is damaged, or `threads` is out of range.
        RuntimeError: if this process was forked from a process that had loaded a model.
    """

    # the process that loaded a model
    _process: int | None = None

    def __init__(self, folder: str | Path = Path(__file__).parent, threads: int = 0):
        self._check_process()
        check_range("threads", threads, 0, MAX_THREADS)
        folder = Path(folder)
        try:
            self.config = read_config(folder)
            check_files(folder, self.config["sha256"])
        except ValueError as error:
            raise ValueError(
                f"Cannot load the exported model in {folder}. {str(error).rstrip('.')}. Run xlm-swcm export again."
            ) from error
        try:
            self.tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            self._compile(CORE.read_model(folder / "model.xml"), int(threads))
        # Other versions raise many kinds of exceptions.
        except Exception as error:
            raise ValueError(
                f"Cannot load the exported model in {folder}. OpenVINO {ov.__version__.partition('-')[0]} or "
                f"tokenizers {tokenizers.__version__} cannot read it. Install other versions, or run xlm-swcm export "
                "again."
            ) from error
        # Special tokens inside a text are ordinary text.
        self.tokenizer.encode_special_tokens = True
        added = self.tokenizer.get_added_tokens_decoder().items()
        self._control_ids = {token_id for token_id, token in added if token.special} - {self.config["unk_token_id"]}
        # The cache of the decoder is a state of its request, so two calls cannot run at a time.
        self._lock = threading.Lock()

    def _check_process(self):
        """Refuse a process that was forked after a model was loaded. OpenVINO and the lock can hang there."""
        if self._process not in (None, os.getpid()):
            raise RuntimeError(
                "This process was forked after a model was loaded, and OpenVINO can hang here. Load the model only in "
                'the new processes, or start them with multiprocessing.get_context("spawn").'
            )

    def _compile(self, graph: ov.Model, threads: int):
        ExportedModel._process = os.getpid()
        inputs, results = graph.get_parameters(), graph.get_results()
        sources = ("input_ids", "attention_mask", "position_ids")
        encoder = ov.Model(
            [node for node in results if node.output(0).any_name.startswith("source_")],
            [node for node in inputs if node.output(0).any_name in sources],
        )
        decoder = ov.Model(
            [node for node in results if not node.output(0).any_name.startswith("source_")],
            graph.get_sinks(),
            [node for node in inputs if node.output(0).any_name not in sources],
        )
        self._encoder, self._decoder = (create_infer_request(half, threads) for half in (encoder, decoder))

    def __call__(
        self, texts: list[str], src_lang: str | None = None, tgt_lang: str | None = None, **options
    ) -> list[str]:
        """
        Generate a text for each source text, in one batch.

        Args:
            texts (`list[str]`): The source texts.
            src_lang (`str`, *optional*): Language of the sources. Required if the model has language tags.
            tgt_lang (`str`, *optional*):
                Language to generate. Required if the model has language tags, unless `forced_bos_token_id` is set in
                `options` or in the generation config of the checkpoint.
            options: Keywords of [`~ExportedModel.generate`].

        Returns:
            `list[str]`: The generated texts, without special tokens.

        Raises:
            TypeError: if `texts` is not a list of strings.
            ValueError: if a language is unknown or missing, or a text is too long or not valid Unicode.
        """
        languages, pad_token_id = self.config["languages"], self.config["pad_token_id"]
        rows = self._encode(texts, src_lang)
        is_forced = (self.config["generation"] | options)["forced_bos_token_id"] is not None
        if tgt_lang is not None or (languages and not is_forced):
            options["forced_bos_token_id"] = self._get_tag_id("tgt_lang", tgt_lang)
        input_ids = np.full((len(rows), max(map(len, rows), default=0)), pad_token_id)
        mask = np.zeros_like(input_ids)
        for number, ids in enumerate(rows):
            input_ids[number, : len(ids)], mask[number, : len(ids)] = ids, 1
        generated = self.generate(input_ids, mask, **options)
        self._warn_of_cut(generated)
        return self.tokenizer.decode_batch(generated.tolist(), skip_special_tokens=True)

    def _warn_of_cut(self, generated: np.ndarray):
        """Warn if texts end at the maximum length."""
        length, ends = generated.shape[1] - 1, self.config["end_token_ids"]
        if cut := int((~np.isin(generated[:, 1:], ends).any(1)).sum()) if ends else 0:
            # The default limit counts the start token.
            is_last = length >= self.config["longest_input"] - 1
            advice = "Split the texts." if is_last else "Pass a larger max_new_tokens, or split the texts."
            warnings.warn(f"Incomplete outputs: {cut}. The maximum is {length} tokens. {advice}", stacklevel=3)

    def _encode(self, texts: list[str], src_lang: str | None) -> list[list[int]]:
        """Return the token ids of each source, with its language tag."""
        check_texts(texts)
        config = self.config
        tag = [self._get_tag_id("src_lang", src_lang)] if config["languages"] or src_lang is not None else []
        rows = []
        for number, encoding in enumerate(self.tokenizer.encode_batch(list(texts), add_special_tokens=False), 1):
            if not self._control_ids.isdisjoint(encoding.ids):
                raise ValueError(
                    f"Text {number} contains a special token. This vocabulary cannot read special tokens as text. "
                    "Remove the special token from the text."
                )
            rows.append([config["bos_token_id"], *tag, *encoding.ids, config["eos_token_id"]])
            if len(rows[-1]) > config["longest_input"]:
                raise ValueError(
                    f"Text {number} has {len(rows[-1])} tokens, but the model reads at most "
                    f"{config['longest_input']}. Split the text."
                )
        return rows

    def _get_tag_id(self, name: str, language: str | None) -> int:
        """Return the token id of a language tag."""
        languages: dict[str, int] = self.config["languages"]
        if not languages:
            raise ValueError(f'{name} is "{language}", but the model has no language tags. Leave out {name}.')
        if language is None:
            raise ValueError(f"{name} is not set. Use one of: {', '.join(languages)}.")
        if not isinstance(language, str) or language not in languages:
            raise ValueError(f'Unknown language "{language}" for {name}. Use one of: {", ".join(languages)}.')
        return languages[language]

    def generate(
        self,
        input_ids: np.ndarray,
        attention_mask: np.ndarray | None = None,
        *,
        forced_bos_token_id: int | None = None,
        max_new_tokens: int | None = None,
        num_beams: int | None = None,
        length_penalty: float | None = None,
    ) -> np.ndarray:
        """
        Generate token ids with greedy decoding or beam search, like `generate` of Transformers.

        Options that are not set have the values in the generation config of the checkpoint.

        Args:
            input_ids (`np.ndarray` of shape `(batch, source_length)`): Token ids of the sources, with padding.
            attention_mask (`np.ndarray` of shape `(batch, source_length)`, *optional*):
                1 for tokens and 0 for padding. By default, it is computed from `input_ids`.
            forced_bos_token_id (`int`, *optional*): First token to generate, usually a language tag.
            max_new_tokens (`int`, *optional*): Maximum number of tokens to generate.
            num_beams (`int`, *optional*): Number of beams. 1 means greedy decoding.
            length_penalty (`float`, *optional*):
                Exponent of the length that divides the score of a beam. Larger values favour longer texts.

        Returns:
            `np.ndarray` of shape `(batch, target_length)`: Token ids from the start token on, with padding.

        Raises:
            ValueError: if an argument has a wrong shape or value.
            RuntimeError: if OpenVINO cannot run the model, for example because memory is full, or if this process was
                forked after the model was loaded.
        """
        self._check_process()
        given = dict(max_new_tokens=max_new_tokens, num_beams=num_beams, length_penalty=length_penalty)
        given |= dict(forced_bos_token_id=forced_bos_token_id)
        options = self.config["generation"] | {name: value for name, value in given.items() if value is not None}
        check_options(options, self.config)
        input_ids, mask = self._check_sources(input_ids, attention_mask)
        if len(input_ids) == 0:
            return np.zeros((0, 1), np.int64)
        search = self._greedy if options["num_beams"] == 1 else self._beam_search
        with self._lock:
            try:
                self._read(input_ids, mask)
                return search(len(input_ids), **options)
            except (MemoryError, RuntimeError) as error:
                raise RuntimeError(
                    f"OpenVINO cannot run the model on sources of shape {input_ids.shape} with {options['num_beams']} "
                    "beams. Use fewer texts or beams."
                ) from error

    def _check_sources(
        self, input_ids: np.ndarray, attention_mask: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return sources and mask as arrays of int64."""
        longest, last = self.config["longest_input"], self.config["vocab_size"] - 1
        ids = make_array("input_ids", input_ids)
        if ids.ndim != 2 or not 1 <= ids.shape[1] <= longest and len(ids):
            raise ValueError(
                f"input_ids must have shape (batch, source_length) with source_length from 1 to {longest} (got "
                f"{ids.shape}). Split longer texts."
            )
        if ids.size and not 0 <= ids.min() <= ids.max() <= last:
            raise ValueError(f"input_ids must be from 0 to {last} (got {ids.min()} to {ids.max()}). Tokenize again.")
        if attention_mask is None:
            return ids, None
        mask = make_array("attention_mask", attention_mask)
        if mask.shape != ids.shape or not np.isin(mask, (0, 1)).all():
            raise ValueError(
                f"attention_mask must have the shape of input_ids, {ids.shape}, and the values 0 and 1 (got shape "
                f"{mask.shape}). Leave out attention_mask to compute it from input_ids."
            )
        return ids, mask

    def _read(self, input_ids: np.ndarray, attention_mask: np.ndarray | None = None):
        """Run the encoder, and pass its cross-attention cache to the decoder."""
        padding = self.config["pad_token_id"]
        # XLM-R counts positions over all tokens that are not padding. It ignores the mask.
        counted = (input_ids != padding).astype(np.int64)
        mask = counted if attention_mask is None else attention_mask
        position_ids = counted.cumsum(1) * counted + padding
        self._encoder.infer({"input_ids": input_ids, "attention_mask": mask, "position_ids": position_ids})
        self._decoder.reset_state()
        self._decoder.set_tensor("source_mask", ov.Tensor(mask))
        for output in self._encoder.model_outputs:
            name = output.any_name.removeprefix("source_")
            self._decoder.set_tensor(name, self._encoder.get_tensor(output))

    def _step(self, tokens: np.ndarray, place: int, previous_row: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Run one decoder step. Return the scores and ids of the `k` best next tokens, both of shape `(rows, k)`."""
        padding = self.config["pad_token_id"]
        position = np.where(tokens == padding, padding, padding + 1 + place)
        inputs = {"token": tokens[:, None], "position": position[:, None], "previous_row": previous_row, "k": k}
        for name, array in inputs.items():
            dtype = np.int64 if name in ("token", "position") else np.int32
            self._decoder.set_tensor(name, ov.Tensor(np.array(array, dtype)))
        self._decoder.infer()
        return self._decoder.get_tensor("top_scores").data, self._decoder.get_tensor("top_tokens").data

    def _greedy(self, batch: int, forced_bos_token_id: int | None, max_new_tokens: int, **_) -> np.ndarray:
        generated = np.full((batch, max_new_tokens + 1), self.config["pad_token_id"])
        generated[:, 0] = self.config["decoder_start_token_id"]
        running, rows = np.ones(batch, bool), np.arange(batch)
        for place in range(max_new_tokens):
            top_tokens = self._step(generated[:, place], place, rows, 1)[1]
            token = top_tokens[:, 0]
            if place == 0 and forced_bos_token_id is not None:
                token = np.full(batch, forced_bos_token_id)
            generated[running, place + 1] = token[running]
            running &= ~np.isin(token, self.config["end_token_ids"])
            if not running.any():
                break
        return generated[:, : place + 2]

    def _beam_search(
        self,
        batch: int,
        forced_bos_token_id: int | None,
        max_new_tokens: int,
        num_beams: int,
        length_penalty: float,
    ) -> np.ndarray:
        """Search with beams, like Transformers with `early_stopping=False`."""
        ends = self.config["end_token_ids"]
        # Enough continuations must be left if all end tokens are among the best.
        k = max(2, 1 + len(ends)) * num_beams
        running = np.full((batch, num_beams, max_new_tokens + 1), self.config["pad_token_id"])
        running[:, :, 0] = self.config["decoder_start_token_id"]
        # All beams of a source are equal at the start, so only the first one continues.
        running_scores = np.where(np.arange(num_beams) == 0, np.float32(0), EXCLUDED_SCORE)[None].repeat(batch, 0)
        finished, finished_scores = running, np.full((batch, num_beams), EXCLUDED_SCORE)
        lengths, is_finished = np.zeros((batch, num_beams), int), np.zeros((batch, num_beams), bool)
        may_improve = np.ones((batch, 1), bool)
        first_row = num_beams * np.arange(batch)[:, None]
        beam_of = np.arange(num_beams).repeat(k)[None].repeat(batch, 0)
        previous_row = np.arange(batch * num_beams)
        for place in range(max_new_tokens):
            forced = forced_bos_token_id if place == 0 else None
            scores, tokens = self._rank_continuations(running[:, :, place].ravel(), place, previous_row, k, forced)

            # Select the best continuations of each source over all its beams.
            scores = (scores.reshape(batch, num_beams, k) + running_scores[:, :, None]).reshape(batch, -1)
            scores, tokens, beams = keep_best(k, scores, tokens.reshape(batch, -1), beam_of)
            sequences = np.take_along_axis(running, beams[:, :, None], 1)
            sequences[:, :, place + 1] = tokens
            ended = np.isin(tokens, ends) | (place + 1 == max_new_tokens)

            running_scores, running, beams = keep_best(num_beams, scores + EXCLUDED_SCORE * ended, sequences, beams)
            previous_row = (first_row + beams).ravel()

            # A beam can finish only if it is among the best `num_beams` and its source can still improve.
            just_finished = ended & (np.arange(k) < num_beams)
            penalty = np.float32((place + 1) ** length_penalty)
            scores = scores / penalty + EXCLUDED_SCORE * ~just_finished + EXCLUDED_SCORE * ~may_improve
            finished_scores, finished, lengths, is_finished = keep_best(
                num_beams,
                np.concatenate([finished_scores, scores], 1),
                np.concatenate([finished, sequences], 1),
                np.concatenate([lengths, np.full((batch, k), place + 2)], 1),
                np.concatenate([is_finished, just_finished], 1),
            )
            worst = np.where(is_finished, finished_scores.min(1, keepdims=True), EXCLUDED_SCORE)
            may_improve &= (running_scores[:, :1] / penalty > worst).any(1, keepdims=True)
            if ended.all() or not may_improve.any():
                break
        return finished[:, 0, : lengths[:, 0].max()]

    def _rank_continuations(
        self, tokens: np.ndarray, place: int, previous_row: np.ndarray, k: int, forced: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return log-probabilities and ids of next tokens, of shape `(rows, k)`. Only `forced` is possible if set."""
        top_scores, top_tokens = self._step(tokens, place, previous_row, k)
        if forced is not None:
            scores = np.where(np.arange(k) == 0, np.float32(0), np.float32(-np.inf))
            return scores[None].repeat(len(tokens), 0), np.full_like(top_tokens, forced)
        exponents = self._decoder.get_tensor("logits").data - top_scores[:, :1]
        log_of_sum = np.log(np.exp(exponents, out=exponents).sum(1, keepdims=True))
        return top_scores - top_scores[:, :1] - log_of_sum, top_tokens


def create_infer_request(graph: ov.Model, threads: int) -> ov.InferRequest:
    """Compile the graph for the CPU."""
    options = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "INFERENCE_NUM_THREADS": threads}
    # With int8 weights, OpenVINO also quantises the inputs, with one scale for each group of 128 columns.
    options |= {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 128, "PERFORMANCE_HINT": "LATENCY"}
    options |= {"CPU_RUNTIME_CACHE_CAPACITY": CACHED_KERNELS}
    return CORE.compile_model(graph, "CPU", options).create_infer_request()


def keep_best(k: int, scores: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """Return the `k` largest scores of each row in order, and the values of the other arrays at the same places."""
    places = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return [
        np.take_along_axis(array, places.reshape(*places.shape, *[1] * (array.ndim - 2)), 1)
        for array in (scores, *others)
    ]


def is_integer(value: Any) -> bool:
    """Return True if `value` is an integer and not a boolean."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_range(name: str, value: Any, low: int, high: int):
    """Refuse a value that is not an integer from `low` to `high`."""
    if not is_integer(value) or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high} (got {value!r}). Use another number.")


def check_options(options: dict, config: dict):
    """Refuse options of `generate` that the model cannot follow."""
    # Enough continuations must be left if all end tokens are among the best.
    continuations = max(2, 1 + len(config["end_token_ids"]))
    check_range("max_new_tokens", options["max_new_tokens"], 1, config["longest_input"])
    check_range("num_beams", options["num_beams"], 1, max(1, min(MAX_BEAMS, config["vocab_size"] // continuations)))
    if options["forced_bos_token_id"] is not None:
        check_range("forced_bos_token_id", options["forced_bos_token_id"], 0, config["vocab_size"] - 1)
    penalty = options["length_penalty"]
    is_number = isinstance(penalty, Real) and not isinstance(penalty, bool) and math.isfinite(penalty)
    if not is_number or abs(penalty) > MAX_LENGTH_PENALTY:
        raise ValueError(
            f"length_penalty must be a number from -{MAX_LENGTH_PENALTY} to {MAX_LENGTH_PENALTY} (got {penalty!r}). "
            "Use another number."
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
    # Rows of different lengths.
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
        raise ValueError("config.json belongs to another kind of model")
    try:
        check_config(config)
    except ValueError as error:
        raise ValueError(f"config.json is wrong: {error}") from error
    return config


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
    options = ("forced_bos_token_id", "max_new_tokens", "num_beams", "length_penalty")
    check_options({name: config["generation"].get(name) for name in options}, config)


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
