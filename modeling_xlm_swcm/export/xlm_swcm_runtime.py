"""Runs a model that `xlm-swcm export` has written, without PyTorch: pip install openvino tokenizers numpy"""

import json
from pathlib import Path

import numpy as np
import openvino as ov
from tokenizers import Tokenizer


# one that stays: when one of several goes, OpenVINO may leave signals a stack that is no longer there
CORE = ov.Core()

# far below any score, as Transformers has it
NEVER = np.float32(-1e9)


class ExportedModel:
    """
    An exported model; not to be used by several threads at a time.

    Args:
        folder: as `xlm-swcm export` has written it; by default the one that this file stands in.
        threads: for the arithmetic; by default one per core.

    Raises:
        ValueError: the folder holds no exported model, or a damaged one.
    """

    def __init__(self, folder: str | Path = Path(__file__).parent, threads: int = 0):
        folder = Path(folder)
        try:
            self.config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            if self.config.get("model_type") != "xlm_swcm_exported":
                raise ValueError("config.json is that of another model")
            self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            graph = CORE.read_model(folder / "model.xml")
        except Exception as error:  # whatever the parsers of damaged files raise
            raise ValueError(
                f"{folder} holds no exported model, or a damaged one; make it with xlm-swcm export."
            ) from error
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
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
        self._encoder, self._decoder = (infer_request(half, threads) for half in (encoder, decoder))

    def __call__(
        self, texts: list[str], src_lang: str | None = None, tgt_lang: str | None = None, **options
    ) -> list[str]:
        """
        What the model writes for each text, all in one batch.

        Args:
            src_lang, tgt_lang: languages that the model has tags for; neither for a model without tags.
            options: those of `generate`; `forced_bos_token_id`, also in generation_config.json, does for `tgt_lang`.

        Raises:
            TypeError: one text that is in no list.
            ValueError: a language without a tag or not given, or a text that is too long.
        """
        if isinstance(texts, str):
            raise TypeError("texts must be a list of texts, and is one text; put it in a list.")
        config = self.config
        is_forced = (config["generation"] | options)["forced_bos_token_id"] is not None
        tag = [self._tag("src_lang", src_lang)] if config["languages"] or src_lang is not None else []
        if tgt_lang is not None or (config["languages"] and not is_forced):
            options["forced_bos_token_id"] = self._tag("tgt_lang", tgt_lang)
        rows = [
            [config["bos_token_id"], *tag, *encoding.ids, config["eos_token_id"]]
            for encoding in self.tokenizer.encode_batch(texts, add_special_tokens=False)
        ]
        for number, row in enumerate(rows, 1):
            if len(row) > config["longest_input"]:
                raise ValueError(
                    f"Text {number} has {len(row)} tokens, and the model reads at most {config['longest_input']}; "
                    "split it."
                )
        input_ids = np.full((len(rows), max(map(len, rows), default=0)), config["pad_token_id"])
        mask = np.zeros_like(input_ids)
        for number, ids in enumerate(rows):
            input_ids[number, : len(ids)], mask[number, : len(ids)] = ids, 1
        written = self.generate(input_ids, mask, **options)
        return self.tokenizer.decode_batch(written.tolist(), skip_special_tokens=True)

    def _tag(self, name: str, language: str | None) -> int:
        languages = self.config["languages"]
        if language is None:
            raise ValueError(f"{name} is not set; give one of: {', '.join(languages)}.")
        if language not in languages:
            raise ValueError(f'Unknown language "{language}"; the known ones are: {", ".join(languages) or "none"}.')
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
        What Transformers' `generate` gives for the same options: greedy, or beam search with `num_beams`.

        Args:
            input_ids: int64 (batch, source_len), padded with the padding token.
            attention_mask: int64 (batch, source_len), 1 on tokens and 0 on padding, by default as the tokens say.
            forced_bos_token_id: what is written first, the tag of a language; this and the options below are by
                default what the checkpoint's generation_config.json says.

        Returns:
            int64 (batch, target_len), from the start token on, padded behind the end token.

        Raises:
            ValueError: a source or target longer than the model's positions, or no beam.
        """
        given = dict(max_new_tokens=max_new_tokens, num_beams=num_beams, length_penalty=length_penalty)
        given |= dict(forced_bos_token_id=forced_bos_token_id)
        options = self.config["generation"] | {name: value for name, value in given.items() if value is not None}
        self._check(input_ids, options)
        if len(input_ids) == 0:
            return np.zeros((0, 1), np.int64)
        self._read(np.ascontiguousarray(input_ids, np.int64), attention_mask)
        search = self._greedy if options["num_beams"] == 1 else self._beam_search
        return search(len(input_ids), **options)

    def _check(self, input_ids: np.ndarray, options: dict):
        longest = self.config["longest_input"]
        if input_ids.ndim != 2 or input_ids.shape[1] > longest:
            raise ValueError(f"input_ids must be (batch, at most {longest}); got {input_ids.shape}.")
        if not 1 <= options["max_new_tokens"] <= longest:
            raise ValueError(f"max_new_tokens must be from 1 to {longest}; got {options['max_new_tokens']}.")
        if options["num_beams"] < 1:
            raise ValueError(f"num_beams must be at least 1; got {options['num_beams']}.")

    def _read(self, input_ids: np.ndarray, attention_mask: np.ndarray | None = None):
        """Run the encoder, and give the decoder the keys and values of the sources."""
        padding = self.config["pad_token_id"]
        counted = (input_ids != padding).astype(np.int64)  # XLM-R's positions, whatever the mask
        mask = counted if attention_mask is None else np.ascontiguousarray(attention_mask, np.int64)
        position_ids = counted.cumsum(1) * counted + padding
        self._encoder.infer({"input_ids": input_ids, "attention_mask": mask, "position_ids": position_ids})
        self._decoder.reset_state()
        self._decoder.set_tensor("source_mask", ov.Tensor(mask))
        for output in self._encoder.model_outputs:
            name = output.any_name.removeprefix("source_")
            self._decoder.set_tensor(name, self._encoder.get_tensor(output))

    def _step(self, tokens: np.ndarray, place: int, previous_row: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """One token further: scores and tokens, (rows, k), of the `k` best that may follow in each row."""
        padding = self.config["pad_token_id"]
        position = np.where(tokens == padding, padding, padding + 1 + place)
        inputs = {"token": tokens[:, None], "position": position[:, None], "previous_row": previous_row, "k": k}
        for name, array in inputs.items():
            dtype = np.int64 if name in ("token", "position") else np.int32
            self._decoder.set_tensor(name, ov.Tensor(np.array(array, dtype)))
        self._decoder.infer()
        return self._decoder.get_tensor("top_scores").data, self._decoder.get_tensor("top_tokens").data

    def _greedy(self, batch: int, forced_bos_token_id: int | None, max_new_tokens: int, **_) -> np.ndarray:
        written = np.full((batch, max_new_tokens + 1), self.config["pad_token_id"])
        written[:, 0] = self.config["decoder_start_token_id"]
        running, rows = np.ones(batch, bool), np.arange(batch)
        for place in range(max_new_tokens):
            _, top_tokens = self._step(written[:, place], place, rows, 1)
            token = top_tokens[:, 0]
            if place == 0 and forced_bos_token_id is not None:
                token = np.full(batch, forced_bos_token_id)
            written[running, place + 1] = token[running]
            running &= ~np.isin(token, self.config["end_token_ids"])
            if not running.any():
                break
        return written[:, : place + 2]

    def _beam_search(
        self,
        batch: int,
        forced_bos_token_id: int | None,
        max_new_tokens: int,
        num_beams: int,
        length_penalty: float,
    ) -> np.ndarray:
        """As Transformers does it with `early_stopping=False`."""
        ends = self.config["end_token_ids"]
        # so many that enough are left to go on with, were all ends among them
        k = max(2, 1 + len(ends)) * num_beams
        running = np.full((batch, num_beams, max_new_tokens + 1), self.config["pad_token_id"])
        running[:, :, 0] = self.config["decoder_start_token_id"]
        # all beams are alike at first, so one of them goes on
        running_scores = np.where(np.arange(num_beams) == 0, np.float32(0), NEVER)[None].repeat(batch, 0)
        finished, finished_scores = running, np.full((batch, num_beams), NEVER)
        lengths, is_finished = np.zeros((batch, num_beams), int), np.zeros((batch, num_beams), bool)
        may_improve = np.ones((batch, 1), bool)
        first_row = num_beams * np.arange(batch)[:, None]
        beam_of = np.arange(num_beams).repeat(k)[None].repeat(batch, 0)
        previous_row = np.arange(batch * num_beams)
        for place in range(max_new_tokens):
            forced = forced_bos_token_id if place == 0 else None
            scores, tokens = self._continuations(running[:, :, place].ravel(), place, previous_row, k, forced)

            # the best continuations of each source, whichever beam they come from
            scores = (scores.reshape(batch, num_beams, k) + running_scores[:, :, None]).reshape(batch, -1)
            scores, tokens, beams = keep_best(k, scores, tokens.reshape(batch, -1), beam_of)
            sequences = np.take_along_axis(running, beams[:, :, None], 1)
            sequences[:, :, place + 1] = tokens
            ended = np.isin(tokens, ends) | (place + 1 == max_new_tokens)

            running_scores, running, beams = keep_best(num_beams, scores + NEVER * ended, sequences, beams)
            previous_row = (first_row + beams).ravel()

            # only the first `num_beams` may finish, and only where the source is still worth going on
            just_finished = ended & (np.arange(k) < num_beams)
            penalty = np.float32((place + 1) ** length_penalty)
            scores = scores / penalty + NEVER * ~just_finished + NEVER * ~may_improve
            finished_scores, finished, lengths, is_finished = keep_best(
                num_beams,
                np.concatenate([finished_scores, scores], 1),
                np.concatenate([finished, sequences], 1),
                np.concatenate([lengths, np.full((batch, k), place + 2)], 1),
                np.concatenate([is_finished, just_finished], 1),
            )
            worst = np.where(is_finished, finished_scores.min(1, keepdims=True), NEVER)
            may_improve &= (running_scores[:, :1] / penalty > worst).any(1, keepdims=True)
            if ended.all() or not may_improve.any():
                break
        return finished[:, 0, : lengths[:, 0].max()]

    def _continuations(
        self, tokens: np.ndarray, place: int, previous_row: np.ndarray, k: int, forced: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities and tokens, (rows, k), of what may follow in each row: `forced` alone if it is given."""
        top_scores, top_tokens = self._step(tokens, place, previous_row, k)
        if forced is not None:
            scores = np.where(np.arange(k) == 0, np.float32(0), np.float32(-np.inf))
            return scores[None].repeat(len(tokens), 0), np.full_like(top_tokens, forced)
        exponents = self._decoder.get_tensor("logits").data - top_scores[:, :1]
        log_of_sum = np.log(np.exp(exponents, out=exponents).sum(1, keepdims=True))
        return top_scores - top_scores[:, :1] - log_of_sum, top_tokens


def infer_request(graph: ov.Model, threads: int) -> ov.InferRequest:
    options = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "INFERENCE_NUM_THREADS": threads}
    # of int8 weights: inputs are quantised as they come, so many columns with one scale
    options |= {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 128, "PERFORMANCE_HINT": "LATENCY"}
    return CORE.compile_model(graph, "CPU", options).create_infer_request()


def keep_best(k: int, scores: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """Of each row the `k` largest scores in order, and what stands at their places in the other arrays."""
    places = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return [
        np.take_along_axis(array, places.reshape(*places.shape, *[1] * (array.ndim - 2)), 1)
        for array in (scores, *others)
    ]
