"""Search for the best token ids with the encoder and decoder of an exported model. This file is beside the runtime."""

from pathlib import Path

import numpy as np
import openvino as ov


# The export puts this module beside this file.
if __package__ == "modeling_xlm_swcm.export":
    from .xlm_swcm_logits import has_penalties, log_softmax, penalise, sample
else:
    from xlm_swcm_logits import has_penalties, log_softmax, penalise, sample  # type: ignore[no-redef]


# All models share one core. OpenVINO can crash on signals after one of several cores is deleted.
CORE = ov.Core()

# Transformers' beam search uses the same value for beams that must not be selected.
EXCLUDED_SCORE = np.float32(-1e9)

# OpenVINO compiles kernels for each shape of texts. It keeps 5000 kernels by default, which takes gigabytes.
CACHED_KERNELS = 64


class Search:
    """
    Greedy decoding, sampling and beam search.

    The cache of the decoder is a state of this object, so two searches cannot run at the same time.

    Args:
        path (`Path`): The file `model.xml`.
        config (`dict`): Content of `config.json`.
        threads (`int`): Number of CPU threads. 0 means one thread per core.
    """

    def __init__(self, path: Path, config: dict, threads: int):
        self.config = config
        graph = CORE.read_model(path)
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

    def read(self, input_ids: np.ndarray, attention_mask: np.ndarray | None = None):
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

    def step(self, tokens: np.ndarray, place: int, previous_row: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Run one decoder step. Return the scores and ids of the `k` best next tokens, both of shape `(rows, k)`."""
        padding = self.config["pad_token_id"]
        position = np.where(tokens == padding, padding, padding + 1 + place)
        inputs = {"token": tokens[:, None], "position": position[:, None], "previous_row": previous_row, "k": k}
        for name, array in inputs.items():
            dtype = np.int64 if name in ("token", "position") else np.int32
            self._decoder.set_tensor(name, ov.Tensor(np.array(array, dtype)))
        self._decoder.infer()
        return self._decoder.get_tensor("top_scores").data, self._decoder.get_tensor("top_tokens").data

    def decode_rows(
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
            tokens = self.step(generated[:, place], place, rows, 1)[1][:, 0]
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

    def beam_search(
        self,
        batch: int,
        return_scores: bool,
        *,
        max_new_tokens: int,
        num_beams: int,
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
            forced = options["forced_bos_token_id"] if place == 0 else None
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
            penalty = np.float32((place + 1) ** options["length_penalty"])
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
        best = slice(options["num_return_sequences"])
        ids = finished[:, best, : lengths[:, best].max()]
        return ids.reshape(-1, ids.shape[2]), finished_totals[:, best].ravel()

    def _rank_continuations(
        self, prefixes: np.ndarray, previous_row: np.ndarray, k: int, forced: int | None, options: dict
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        Return scores, ids and log probabilities of next tokens, of shape `(rows, k)`.

        Without penalties, the scores are the log probabilities. If `forced` is set, it is the only possible token.
        """
        top_scores, top_tokens = self.step(prefixes[:, -1], prefixes.shape[1] - 1, previous_row, k)
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
