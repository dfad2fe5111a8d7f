"""Change and sample the scores of next tokens as Transformers does. This file is beside the runtime."""

import numpy as np


def has_penalties(options: dict) -> bool:
    """Return True if these options of `generate` change the scores of next tokens."""
    return options["repetition_penalty"] != 1 or options["no_repeat_ngram_size"] > 0


def penalise(
    scores: np.ndarray, prefixes: np.ndarray, *, repetition_penalty: float, no_repeat_ngram_size: int, **_
) -> np.ndarray:
    """
    Penalise repeated tokens and ban repeated sequences of tokens.

    Args:
        scores (`np.ndarray` of shape `(rows, vocab_size)`): Scores of the next token. They change in place.
        prefixes (`np.ndarray` of shape `(rows, length)`): Tokens of each row, with the start token.
        repetition_penalty (`float`):
            Divisor of positive scores and factor of negative scores of tokens that the row has.
        no_repeat_ngram_size (`int`): Length of the sequences that a row can have only once. 0 bans nothing.

    Returns:
        `np.ndarray`: `scores`.
    """
    if repetition_penalty != 1:
        seen, penalty = np.take_along_axis(scores, prefixes, 1), np.float32(repetition_penalty)
        np.put_along_axis(scores, prefixes, np.where(seen < 0, seen * penalty, seen / penalty), 1)
    length, size = prefixes.shape[1], no_repeat_ngram_size
    if 0 < size <= length:
        windows = np.lib.stride_tricks.sliding_window_view(prefixes, size, axis=1)  # (rows, windows, size)
        is_repeated = (windows[:, :, :-1] == prefixes[:, None, length + 1 - size :]).all(2)
        rows, places = is_repeated.nonzero()
        scores[rows, windows[rows, places, -1]] = -np.inf
    return scores


def sample(
    scores: np.ndarray, generator: np.random.Generator, *, temperature: float, top_k: int, top_p: float, **_
) -> np.ndarray:
    """Draw a token for each row of scores of shape `(rows, vocab_size)`."""
    candidates = [filter_scores(row, temperature, top_k, top_p) for row in scores]
    return np.array([generator.choice(tokens, p=probabilities) for tokens, probabilities in candidates])


def filter_scores(scores: np.ndarray, temperature: float, top_k: int, top_p: float) -> tuple[np.ndarray, np.ndarray]:
    """
    Return the tokens that can be sampled and their probabilities, as Transformers filters them.

    Args:
        scores (`np.ndarray` of shape `(vocab_size,)`): Scores of the next token.
        temperature (`float`): Divisor of the scores.
        top_k (`int`): Number of best tokens that are kept. 0 keeps all tokens.
        top_p (`float`): The most probable tokens that reach this sum of probabilities are kept. 1 keeps all tokens.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: Token ids and probabilities, each of shape `(kept_tokens,)`.
    """
    scores = scores.astype(np.float64) / temperature
    tokens = np.arange(len(scores))
    if 0 < top_k < len(scores):
        tokens = np.flatnonzero(scores >= np.partition(scores, -top_k)[-top_k])
    if top_p < 1:
        tokens = tokens[np.argsort(scores[tokens], kind="stable")]
        is_kept = softmax(scores[tokens]).cumsum() > 1 - top_p
        is_kept[-1] = True
        tokens = tokens[is_kept]
    return tokens, softmax(scores[tokens])


def softmax(scores: np.ndarray) -> np.ndarray:
    """Return the probabilities of scores of shape `(tokens,)`."""
    exponents = np.exp(scores - scores.max())
    return exponents / exponents.sum()


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the log probabilities of logits of shape `(rows, vocab_size)`."""
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
