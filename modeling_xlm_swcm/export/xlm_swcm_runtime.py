"""Run a model that `xlm-swcm export` wrote, without PyTorch.

Requirements: Python 3.11 or later, pip install openvino tokenizers numpy
"""

import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import openvino as ov
import tokenizers


# The export puts these modules beside this file.
if __package__ == "modeling_xlm_swcm.export":
    from ..punctuation_xlm_swcm import is_chinese, restore_marks
    from ..sentences_xlm_swcm import Output, batches_by_length, join_outputs, list_sentences, split_texts
    from .xlm_swcm_checks import check_files, check_options, check_range, check_texts, make_array, read_config
    from .xlm_swcm_search import Search
else:
    from punctuation_xlm_swcm import is_chinese, restore_marks  # type: ignore[no-redef]
    from sentences_xlm_swcm import (  # type: ignore[no-redef]
        Output,
        batches_by_length,
        join_outputs,
        list_sentences,
        split_texts,
    )
    from xlm_swcm_checks import (  # type: ignore[no-redef]
        check_files,
        check_options,
        check_range,
        check_texts,
        make_array,
        read_config,
    )
    from xlm_swcm_search import Search  # type: ignore[no-redef]


MAX_THREADS = 1024

MAX_BATCH_TOKENS = 2**31 - 1


class Answer(NamedTuple):
    """The generated texts of a source text, best first, and the data for its warnings."""

    outputs: list[Output]
    long_sentences: list[str]  # a message for each sentence that was cut
    cut_lengths: list[int]  # in tokens, of generated texts that reach the maximum length


class ExportedModel:
    """
    An exported model.

    Threads can share one object. It runs one call at a time, and other calls wait. Each process must load a separate
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
                f"Cannot load the exported model in {folder}. {str(error).rstrip('.')}. Export the model with "
                "xlm-swcm export."
            ) from error
        try:
            self.tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            ExportedModel._process = os.getpid()
            self._searches = Search(folder / "model.xml", self.config, int(threads))
        # Other versions of OpenVINO and tokenizers raise many kinds of exceptions.
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
        # Two searches cannot run at the same time.
        self._lock = threading.Lock()

    def _check_process(self):
        """Refuse a process that was forked after a model was loaded. OpenVINO and the lock can hang there."""
        if self._process not in (None, os.getpid()):
            raise RuntimeError(
                "This process was forked after a model was loaded, and OpenVINO can hang here. Load the model only in "
                'the new processes, or start them with multiprocessing.get_context("spawn").'
            )

    def __call__(
        self,
        texts: list[str],
        src_lang: str | None = None,
        tgt_lang: str | None = None,
        *,
        split: bool | None = None,
        batch_tokens: int = 4096,
        return_scores: bool = False,
        warn: Callable[[str], object] | None = None,
        **options,
    ) -> list:
        """
        Generate a text for each source text.

        A text is translated sentence by sentence. Its line breaks, tabs and list markers stay as they are.

        Args:
            texts (`list[str]`): The source texts.
            src_lang (`str`, *optional*): Language of the sources. Required if the model has language tags.
            tgt_lang (`str`, *optional*):
                Language to generate. Required if the model has language tags, unless `forced_bos_token_id` is set in
                `options` or in the generation config of the checkpoint.
            split (`bool`, *optional*):
                Whether to split the texts into sentences. By default `True` if `tgt_lang` is set and differs from
                `src_lang`. If `False`, a long text is an error.
            batch_tokens (`int`, *optional*, defaults to 4096):
                Maximum size of a batch in tokens, with padding and for all beams.
            return_scores (`bool`, *optional*, defaults to `False`):
                Whether to return tuples of text and score. The score is the mean log probability of the generated
                tokens, without the language tag. A text without generated tokens has the score `None`.
            warn (`Callable`, *optional*):
                Function that gets the message of each warning. By default, warnings are shown by `warnings.warn`.
            options: Keywords of [`~ExportedModel.generate`].

        Returns:
            `list`: The generated texts, without special tokens. With several return sequences, each item is a list of
            texts. Text *k* joins text *k* of each sentence.

        Raises:
            TypeError: if `texts` is not a list of strings.
            ValueError: if a language is unknown or missing, or a text is too long or not valid Unicode.
        """
        answers = self.generate_texts(
            texts, src_lang, tgt_lang, split=split, batch_tokens=batch_tokens, return_scores=return_scores, **options
        )
        for message in self.list_warnings(answers):
            if warn is None:
                warnings.warn(message, stacklevel=2)
            else:
                warn(message)
        candidates = [
            [(text, score) if return_scores else text for text, score, _ in answer.outputs] for answer in answers
        ]
        is_single = self._complete(options)["num_return_sequences"] == 1
        return [texts[0] for texts in candidates] if is_single else candidates

    def generate_texts(
        self,
        texts: list[str],
        src_lang: str | None = None,
        tgt_lang: str | None = None,
        *,
        split: bool | None = None,
        batch_tokens: int = 4096,
        return_scores: bool = False,
        is_wanted: Callable[[], bool] | None = None,
        **options,
    ) -> list[Answer]:
        """
        Return an answer for each source text. [`~ExportedModel.__call__`] describes the other arguments.

        `is_wanted` is called before each batch. The call ends with a `RuntimeError` if it returns `False`.
        """
        check_texts(texts)
        check_range("batch_tokens", batch_tokens, 1, MAX_BATCH_TOKENS)
        options = self._complete(options)
        if tgt_lang is not None or (self.config["languages"] and options["forced_bos_token_id"] is None):
            options["forced_bos_token_id"] = self._get_tag_id("tgt_lang", tgt_lang)
        check_options(options, self.config)
        # All batches draw from one generator.
        options["seed"] = np.random.default_rng(options["seed"])
        split = tgt_lang not in (None, src_lang) if split is None else split
        long_sentences: list[list[str]] = [[] for _ in texts]
        cut_lengths: list[list[int]] = [[] for _ in texts]
        documents = [["", text, ""] for text in texts]
        if split:
            documents = self._split(texts, src_lang, lambda text, message: long_sentences[text].append(message))
        text_of = [index for index, parts in enumerate(documents) for _ in parts[1::2]]
        rows = dict(enumerate(self._encode(list_sentences(documents), src_lang)))
        generated: dict[int, list[Output]] = {}
        ends, size = self.config["end_token_ids"], options["num_return_sequences"]
        sequences = max(options["num_beams"], size)
        for batch in batches_by_length(rows, batch_tokens, sequences, self.config["vocab_size"]):
            if is_wanted is not None and not is_wanted():
                raise RuntimeError("The call was stopped, because nobody waits for its texts.")
            ids, scores = self._generate_rows([rows[number] for number in batch], options, return_scores)
            is_cut = ~np.isin(ids[:, 1:], ends).any(1)
            for place in np.flatnonzero(is_cut) if ends else ():
                cut_lengths[text_of[batch[place // size]]].append(ids.shape[1] - 1)
            counts = count_tokens(ids, ends, options["forced_bos_token_id"] is not None)
            written = [text.strip() if split else text for text in self._decode(ids)]
            outputs = [Output(*output) for output in zip(written, scores.tolist(), counts.tolist(), strict=True)]
            generated |= {number: outputs[size * place :][:size] for place, number in enumerate(batch)}
        joined = [join_outputs(documents, [generated[number][place] for number in rows]) for place in range(size)]
        candidates = [list(outputs) for outputs in zip(*joined, strict=True)]
        return [Answer(*answer) for answer in zip(candidates, long_sentences, cut_lengths, strict=True)]

    def list_warnings(self, answers: list[Answer]) -> list[str]:
        """Return the warnings about answers: a message for each cut sentence, and one for all incomplete texts."""
        messages = [message for answer in answers for message in answer.long_sentences]
        lengths = [length for answer in answers for length in answer.cut_lengths]
        if lengths:
            # The default limit counts the start token.
            is_last = max(lengths) >= self.config["longest_input"] - 1
            advice = (
                "Split long texts. If outputs repeat themselves, train the model longer."
                if is_last
                else "Pass a larger max_new_tokens, or shorter sentences."
            )
            messages.append(
                f"Number of incomplete outputs: {len(lengths)}. The maximum is {max(lengths)} tokens. {advice}"
            )
        return messages

    def _complete(self, options: dict) -> dict:
        """Return options of `generate` with the values of the checkpoint for options that are not set."""
        given = {name: value for name, value in options.items() if value is not None}
        return self.config["generation"] | given

    def _decode(self, ids: np.ndarray) -> list[str]:
        """Return texts without special tokens. Texts with a Chinese tag get Chinese punctuation."""
        texts = self.tokenizer.decode_batch(ids.tolist(), skip_special_tokens=True)
        normalizer = self.tokenizer.normalizer
        if normalizer is None:
            return texts
        tags = {tag for code, tag in self.config["languages"].items() if is_chinese(code)}
        return [
            text if tags.isdisjoint(row) else restore_marks(text, normalizer.normalize_str)
            for text, row in zip(texts, ids.tolist(), strict=True)
        ]

    def _split(self, texts: list[str], src_lang: str | None, warn: Callable[[int, str], object]) -> list[list[str]]:
        """Split each text into sentences that the model can read."""
        frame = len(self._frame([], src_lang))

        def count_tokens(sentences: list[str]) -> list[int]:
            return [frame + len(ids) for ids in self._tokenize(sentences)]

        # An error names the number of the text.
        self._tokenize(texts)
        return split_texts(texts, count_tokens, self.config["longest_input"], warn)

    def _generate_rows(
        self, rows: list[list[int]], options: dict, return_scores: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Generate token ids for the token ids of sources, which are padded to a batch. Return ids and scores."""
        input_ids = np.full((len(rows), max(map(len, rows))), self.config["pad_token_id"])
        mask = np.zeros_like(input_ids)
        for number, ids in enumerate(rows):
            input_ids[number, : len(ids)], mask[number, : len(ids)] = ids, 1
        generated = self.generate(input_ids, mask, return_scores=return_scores, **options)
        return generated if return_scores else (generated, np.zeros(len(generated)))

    def _encode(self, texts: list[str], src_lang: str | None) -> list[list[int]]:
        """Return the token ids of each source, with its language tag."""
        rows = [self._frame(ids, src_lang) for ids in self._tokenize(texts)]
        for number, row in enumerate(rows, 1):
            if len(row) > self.config["longest_input"]:
                raise ValueError(
                    f"Text {number} has {len(row)} tokens, but the model reads at most "
                    f"{self.config['longest_input']}. Split the text."
                )
        return rows

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        """Return the token ids of each text, or refuse a text with the id of a special token."""
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts), add_special_tokens=False)]
        for number, ids in enumerate(rows, 1):
            if not self._control_ids.isdisjoint(ids):
                raise ValueError(
                    f"Text {number} contains a special token. This vocabulary cannot read special tokens as text. "
                    "Remove the special token from the text."
                )
        return rows

    def _frame(self, ids: list[int], src_lang: str | None) -> list[int]:
        """Return the tokens of a text between special tokens."""
        config = self.config
        tag = [self._get_tag_id("src_lang", src_lang)] if config["languages"] or src_lang is not None else []
        return [config["bos_token_id"], *tag, *ids, config["eos_token_id"]]

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
        num_return_sequences: int | None = None,
        no_repeat_ngram_size: int | None = None,
        repetition_penalty: float | None = None,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | np.random.Generator | None = None,
        return_scores: bool = False,
    ) -> Any:
        """
        Generate token ids with greedy decoding, beam search or sampling, like `generate` of Transformers.

        Options that are not set have the values in the generation config of the checkpoint.

        Args:
            input_ids (`np.ndarray` of shape `(batch, source_length)`): Token ids of the sources, with padding.
            attention_mask (`np.ndarray` of shape `(batch, source_length)`, *optional*):
                1 for tokens and 0 for padding. By default, it is computed from `input_ids`.
            forced_bos_token_id (`int`, *optional*): First token to generate, usually a language tag.
            max_new_tokens (`int`, *optional*): Maximum number of tokens to generate.
            num_beams (`int`, *optional*): Number of beams. 1 means greedy decoding, or sampling with `do_sample`.
            length_penalty (`float`, *optional*):
                Exponent of the length that divides the score of a beam. Larger values favour longer texts.
            num_return_sequences (`int`, *optional*):
                Number of sequences for each source. Beams are returned best first.
            no_repeat_ngram_size (`int`, *optional*):
                Length of token sequences that a text can have only once. 0 allows repetitions.
            repetition_penalty (`float`, *optional*):
                Penalty for tokens that the text already has. 1 means no penalty.
            do_sample (`bool`, *optional*): Whether to sample. Needs `num_beams=1`.
            temperature (`float`, *optional*): Divisor of the scores for sampling.
            top_k (`int`, *optional*): Sample from this number of best tokens. 0 means all tokens.
            top_p (`float`, *optional*): Sample from the best tokens whose probabilities reach this sum.
            seed (`int` or `np.random.Generator`, *optional*):
                Random seed for sampling. By default, each call gives other samples.
            return_scores (`bool`, *optional*, defaults to `False`): Whether to also return scores.

        Returns:
            `np.ndarray` of shape `(batch * num_return_sequences, target_length)`: Token ids from the start token on,
            with padding. With `return_scores`, a tuple of these ids and the mean log probability of the generated
            tokens of each sequence. A forced token does not count. Penalties and sampling do not change the
            score. Without generated tokens, the score is NaN.

        Raises:
            ValueError: if an argument has a wrong shape or value.
            RuntimeError: if OpenVINO cannot run the model, for example because memory is full, or if this process was
                forked after the model was loaded.
        """
        self._check_process()
        given: dict[str, Any] = dict(forced_bos_token_id=forced_bos_token_id, max_new_tokens=max_new_tokens)
        given |= dict(num_beams=num_beams, length_penalty=length_penalty, num_return_sequences=num_return_sequences)
        given |= dict(no_repeat_ngram_size=no_repeat_ngram_size, repetition_penalty=repetition_penalty)
        given |= dict(do_sample=do_sample, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        options = self._complete(given)
        check_options(options, self.config)
        input_ids, mask = self._check_sources(input_ids, attention_mask)
        ids, totals = np.zeros((0, 1), np.int64), np.zeros(0)
        if len(input_ids):
            ids, totals = self._search(input_ids, mask, options, return_scores)
        if not return_scores:
            return ids
        counts = count_tokens(ids, self.config["end_token_ids"], options["forced_bos_token_id"] is not None)
        return ids, np.where(counts > 0, totals / np.maximum(counts, 1), np.nan)

    def _search(
        self, input_ids: np.ndarray, mask: np.ndarray | None, options: dict, return_scores: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return token ids, and the sum of log probabilities of each sequence if `return_scores`."""
        search = self._searches.beam_search if options["num_beams"] > 1 else self._searches.decode_rows
        with self._lock:
            try:
                self._searches.read(input_ids, mask)
                return search(len(input_ids), return_scores, **options)
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


def count_tokens(ids: np.ndarray, ends: list[int], is_forced: bool) -> np.ndarray:
    """Return the number of generated tokens of each row, up to the first end token. A forced token does not count."""
    is_end = np.isin(ids[:, 1:], ends)
    return np.where(is_end.any(1), is_end.argmax(1) + 1, is_end.shape[1]) - is_forced
