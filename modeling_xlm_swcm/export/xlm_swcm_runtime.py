"""Run a model that `xlm-swcm export` wrote, without PyTorch.

Requirements: Python 3.11 or later, pip install openvino tokenizers numpy
"""

import functools
import os
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import tokenizers


# The export puts these modules beside this file.
if __package__ == "modeling_xlm_swcm.export":
    from ..punctuation_xlm_swcm import is_chinese, restore_marks
    from ..sentences_xlm_swcm import Output, batches_by_length, join_outputs, list_sentences, split_texts
    from .xlm_swcm_checks import check_files, check_options, check_range, check_texts, make_array, read_config
    from .xlm_swcm_logits import has_penalties, log_softmax, penalise, sample
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
    from xlm_swcm_logits import (  # type: ignore[no-redef]
        has_penalties,
        log_softmax,
        penalise,
        sample,
    )


# All models share one core. OpenVINO can crash on signals after one of several cores is deleted.
CORE = ov.Core()

# Transformers' beam search uses the same value for beams that must not be selected.
EXCLUDED_SCORE = np.float32(-1e9)

MAX_THREADS = 1024

MAX_BATCH_TOKENS = 2**31 - 1

# OpenVINO compiles kernels for each shape of texts. It keeps 5000 kernels by default, which takes gigabytes.
CACHED_KERNELS = 64


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
        self,
        texts: list[str],
        src_lang: str | None = None,
        tgt_lang: str | None = None,
        *,
        split: bool | None = None,
        batch_tokens: int = 4096,
        return_scores: bool = False,
        **options,
    ) -> list:
        """
        Generate a text for each source text.

        A text is translated sentence by sentence. Its line breaks, spaces and list markers stay as they are.

        Args:
            texts (`list[str]`): The source texts.
            src_lang (`str`, *optional*): Language of the sources. Required if the model has language tags.
            tgt_lang (`str`, *optional*):
                Language to generate. Required if the model has language tags, unless `forced_bos_token_id` is set in
                `options` or in the generation config of the checkpoint.
            split (`bool`, *optional*):
                Whether to split the texts into sentences. By default `True` if `tgt_lang` is set and differs from
                `src_lang`. If `False`, a long text is an error.
            batch_tokens (`int`, *optional*, defaults to 4096): Maximum size of a batch in tokens, with padding.
            return_scores (`bool`, *optional*, defaults to `False`):
                Whether to return tuples of text and score. The score is the mean log probability of the generated
                tokens, without the language tag. A text without generated tokens has the score `None`.
            options: Keywords of [`~ExportedModel.generate`].

        Returns:
            `list`: The generated texts, without special tokens. With several return sequences, each item is a list of
            texts. Text *k* joins text *k* of each sentence.

        Raises:
            TypeError: if `texts` is not a list of strings.
            ValueError: if a language is unknown or missing, or a text is too long or not valid Unicode.
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
        documents = self._split(texts, src_lang) if split else [["", text, ""] for text in texts]
        rows = dict(enumerate(self._encode(list_sentences(documents), src_lang)))
        cut: list[int] = []
        generated: dict[int, list[Output]] = {}
        ends, size = self.config["end_token_ids"], options["num_return_sequences"]
        for batch in batches_by_length(rows, batch_tokens):
            ids, scores = self._generate_rows([rows[number] for number in batch], options, return_scores)
            cut += [ids.shape[1] - 1] * int((~np.isin(ids[:, 1:], ends).any(1)).sum()) if ends else []
            counts = count_tokens(ids, ends, options["forced_bos_token_id"] is not None)
            written = [text.strip() if split else text for text in self._decode(ids)]
            outputs = [Output(*output) for output in zip(written, scores.tolist(), counts.tolist(), strict=True)]
            generated |= {number: outputs[size * place :][:size] for place, number in enumerate(batch)}
        self._warn_of_cut(cut)
        answers = []
        for place in range(size):
            joined = join_outputs(documents, [generated[number][place] for number in rows])
            answers.append([(text, score) if return_scores else text for text, score, _ in joined])
        return answers[0] if size == 1 else [list(candidates) for candidates in zip(*answers, strict=True)]

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

    def _split(self, texts: list[str], src_lang: str | None) -> list[list[str]]:
        """Split each text into sentences that the model can read."""
        frame = len(self._frame([], src_lang))

        def count_tokens(sentences: list[str]) -> list[int]:
            return [frame + len(ids) for ids in self._tokenize(sentences)]

        # An error names the number of the text.
        self._tokenize(texts)
        # The warning is shown at the line that calls the model.
        warn = functools.partial(warnings.warn, stacklevel=6)
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

    def _warn_of_cut(self, lengths: list[int]):
        """Warn if texts end at the maximum length."""
        if lengths:
            # The default limit counts the start token.
            is_last = max(lengths) >= self.config["longest_input"] - 1
            advice = "Split the texts." if is_last else "Pass a larger max_new_tokens, or split the texts."
            message = f"Incomplete outputs: {len(lengths)}. The maximum is {max(lengths)} tokens. {advice}"
            warnings.warn(message, stacklevel=3)

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
        search = self._beam_search if options["num_beams"] > 1 else self._decode_rows
        with self._lock:
            try:
                self._read(input_ids, mask)
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

    def _decode_rows(
        self,
        batch: int,
        return_scores: bool,
        *,
        forced_bos_token_id: int | None,
        max_new_tokens: int,
        num_return_sequences: int,
        do_sample: bool,
        seed: int | np.random.Generator | None,
        **options,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Decode each row greedily or with sampling."""
        generator = np.random.default_rng(seed)
        rows = np.arange(batch * num_return_sequences)
        generated = np.full((len(rows), max_new_tokens + 1), self.config["pad_token_id"])
        generated[:, 0] = self.config["decoder_start_token_id"]
        running, totals = np.ones(len(rows), bool), np.zeros(len(rows))
        for place in range(max_new_tokens):
            tokens = self._step(generated[:, place], place, rows, 1)[1][:, 0]
            is_forced = place == 0 and forced_bos_token_id is not None
            if is_forced:
                tokens = np.full(len(rows), forced_bos_token_id)
            elif do_sample or has_penalties(options):
                scores = penalise(self._logits().copy(), generated[:, : place + 1], **options)
                tokens = sample(scores, generator, **options) if do_sample else scores.argmax(1)
            if return_scores and not is_forced:
                totals += running * log_softmax(self._logits())[rows, tokens]
            generated[running, place + 1] = tokens[running]
            running &= ~np.isin(tokens, self.config["end_token_ids"])
            if not running.any():
                break
        return generated[:, : place + 2], totals

    def _beam_search(
        self,
        batch: int,
        return_scores: bool,
        *,
        forced_bos_token_id: int | None,
        max_new_tokens: int,
        num_beams: int,
        length_penalty: float,
        num_return_sequences: int,
        **options,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search with beams, like Transformers with `early_stopping=False`."""
        ends = self.config["end_token_ids"]
        # Enough continuations must be left if all end tokens are among the best.
        k = max(2, 1 + len(ends)) * num_beams
        running = np.full((batch, num_beams, max_new_tokens + 1), self.config["pad_token_id"])
        running[:, :, 0] = self.config["decoder_start_token_id"]
        # All beams of a source are equal at the start, so only the first one continues.
        running_scores = np.where(np.arange(num_beams) == 0, np.float32(0), EXCLUDED_SCORE)[None].repeat(batch, 0)
        finished, finished_scores = running, np.full((batch, num_beams), EXCLUDED_SCORE)
        # Sums of the log probabilities, which penalties do not change.
        running_totals, finished_totals = np.zeros((2, batch, num_beams), np.float32)
        lengths, is_finished = np.zeros((batch, num_beams), int), np.zeros((batch, num_beams), bool)
        may_improve = np.ones((batch, 1), bool)
        first_row = num_beams * np.arange(batch)[:, None]
        beam_of = np.arange(num_beams).repeat(k)[None].repeat(batch, 0)
        previous_row = np.arange(batch * num_beams)
        for place in range(max_new_tokens):
            forced = forced_bos_token_id if place == 0 else None
            prefixes = running[:, :, : place + 1].reshape(batch * num_beams, -1)
            scores, tokens, log_probs = self._rank_continuations(prefixes, previous_row, k, forced, options)

            # Select the best continuations of each source over all its beams.
            scores = (scores.reshape(batch, num_beams, k) + running_scores[:, :, None]).reshape(batch, -1)
            totals = (log_probs.reshape(batch, num_beams, k) + running_totals[:, :, None]).reshape(batch, -1)
            scores, tokens, beams, totals = keep_best(k, scores, tokens.reshape(batch, -1), beam_of, totals)
            sequences = np.take_along_axis(running, beams[:, :, None], 1)
            sequences[:, :, place + 1] = tokens
            ended = np.isin(tokens, ends) | (place + 1 == max_new_tokens)

            running_scores, running, beams, running_totals = keep_best(
                num_beams, scores + EXCLUDED_SCORE * ended, sequences, beams, totals
            )
            previous_row = (first_row + beams).ravel()

            # A beam can finish only if it is among the best `num_beams` and its source can still improve.
            just_finished = ended & (np.arange(k) < num_beams)
            penalty = np.float32((place + 1) ** length_penalty)
            scores = scores / penalty + EXCLUDED_SCORE * ~just_finished + EXCLUDED_SCORE * ~may_improve
            finished_scores, finished, lengths, is_finished, finished_totals = keep_best(
                num_beams,
                np.concatenate([finished_scores, scores], 1),
                np.concatenate([finished, sequences], 1),
                np.concatenate([lengths, np.full((batch, k), place + 2)], 1),
                np.concatenate([is_finished, just_finished], 1),
                np.concatenate([finished_totals, totals], 1),
            )
            worst = np.where(is_finished, finished_scores.min(1, keepdims=True), EXCLUDED_SCORE)
            may_improve &= (running_scores[:, :1] / penalty > worst).any(1, keepdims=True)
            if ended.all() or not may_improve.any():
                break
        best = slice(num_return_sequences)
        ids = finished[:, best, : lengths[:, best].max()]
        return ids.reshape(-1, ids.shape[2]), finished_totals[:, best].ravel()

    def _rank_continuations(
        self, prefixes: np.ndarray, previous_row: np.ndarray, k: int, forced: int | None, options: dict
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        Return scores, ids and log probabilities of next tokens, of shape `(rows, k)`.

        Without penalties, the scores are the log probabilities. If `forced` is set, it is the only possible token.
        """
        top_scores, top_tokens = self._step(prefixes[:, -1], prefixes.shape[1] - 1, previous_row, k)
        if forced is not None:
            scores = np.where(np.arange(k) == 0, np.float32(0), np.float32(-np.inf))[None].repeat(len(prefixes), 0)
            return scores, np.full_like(top_tokens, forced), np.zeros_like(scores)
        if has_penalties(options):
            log_probs = log_softmax(self._logits())
            scores = penalise(log_probs.copy(), prefixes, **options)
            candidates = np.argpartition(-scores, k - 1, axis=1)[:, :k]
            top_scores, top_tokens = keep_best(k, np.take_along_axis(scores, candidates, 1), candidates)
            return top_scores, top_tokens, np.take_along_axis(log_probs, top_tokens, 1)
        exponents = self._logits() - top_scores[:, :1]
        log_of_sum = np.log(np.exp(exponents, out=exponents).sum(1, keepdims=True))
        scores = top_scores - top_scores[:, :1] - log_of_sum
        return scores, top_tokens, scores

    def _logits(self) -> np.ndarray:
        """Return the logits of the last step, of shape `(rows, vocab_size)`. The next step changes them."""
        return self._decoder.get_tensor("logits").data


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


def count_tokens(ids: np.ndarray, ends: list[int], is_forced: bool) -> np.ndarray:
    """Return the number of generated tokens of each row, up to the first end token. A forced token does not count."""
    is_end = np.isin(ids[:, 1:], ends)
    return np.where(is_end.any(1), is_end.argmax(1) + 1, is_end.shape[1]) - is_forced
