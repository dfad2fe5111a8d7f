"""Learn new pieces of a Unigram tokenizer, select the tokens to keep, and build a tokenizer with other pieces."""

import copy
import json
import random
import statistics
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import reduce

import numpy as np
from tokenizers import Tokenizer, models, trainers
from transformers import PreTrainedTokenizerBase

from modeling_xlm_swcm.checkpoints.errors import ConversionError
from modeling_xlm_swcm.corpora.scripts import find_script, find_scripts

from .corpus import Corpus, encode_batch, read_corpora


SPACE = "▁"

# Unigram training keeps several copies of the text in memory, so it gets a random sample of about this size.
SAMPLE_BYTES = 8 * 2**20

# Number of pieces that Unigram training starts from, for each piece to learn.
SEED_PIECES = 10

# Minimum share of the letters of a text for a script to count as a script of the text.
SHARE_TO_LEARN, SHARE_TO_KEEP = 0.1, 0.001

# Minimum number of shared pieces from which the scores of two vocabularies can be compared.
SHARED_PIECES = 100

# Score of an added token that is in the vocabulary only because ids have no gaps. Text never segments into it.
UNREACHABLE_SCORE = -1e4


def invert_ids(old_ids: list[int]) -> dict[int, int]:
    """Map old ids to new ids. `old_ids[new]` is the old id of a token, or -1 for a new token."""
    return {old: new for new, old in enumerate(old_ids) if old >= 0}


def find_id_places(post_processor: dict) -> Iterator[tuple[list, int]]:
    """Yield each place of a token id in a post-processor of `tokenizer.json`, as a list and an index."""
    for part in post_processor.get("processors", []):
        yield from find_id_places(part)
    for token in post_processor.get("special_tokens", {}).values():
        yield from ((token["ids"], index) for index in range(len(token["ids"])))
    yield from ((post_processor[name], 1) for name in ("sep", "cls") if name in post_processor)


class UnigramVocabulary:
    """
    The vocabulary of a fast Unigram tokenizer.

    Args:
        name (`str`): Name of the checkpoint, for errors.
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer.

    Attributes:
        backend (`Tokenizer`): Copy of the backend tokenizer without truncation and padding.
        state (`dict`): Content of `tokenizer.json`.
        pieces (`list[tuple[str, float]]`):
            Piece and score (a log-probability) by id. Special tokens have a score of 0. Language tags have a score
            that never wins.
        added_tokens (`dict[int, str]`): Content of the added tokens by id.
        processor_ids (`set[int]`): The ids of the tokens that the post-processor adds to a text.
        unk_id (`int`): The id of `<unk>`.

    Raises:
        ConversionError: if the tokenizer is not a Unigram tokenizer, its ids have gaps or an id has no token.
    """

    def __init__(self, name: str, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self.backend.no_padding()
        self.backend.no_truncation()
        self.state = json.loads(self.backend.to_str())
        if self.state["model"]["type"] != "Unigram":
            raise ConversionError(
                f"The tokenizer of {name} has type {self.state['model']['type']}, but only Unigram tokens have the "
                "scores by which tokens are added and removed. Convert the checkpoint with its vocabulary. Or use a "
                "checkpoint with a Unigram tokenizer, for example XLM-R or multilingual-e5-small."
            )
        self.pieces = [(piece, score) for piece, score in self.state["model"]["vocab"]]
        added = {token["id"]: token["content"] for token in self.state["added_tokens"]}
        # Piece ids have no gaps, so added tokens after the last piece become pieces. New pieces follow them.
        while len(self.pieces) in added:
            self.pieces.append((added[len(self.pieces)], UNREACHABLE_SCORE))
        if max(added, default=0) >= len(self.pieces):
            raise ConversionError(
                f"The tokenizer of {name} has unused ids below {max(added)}. Use a tokenizer without gaps in its ids."
            )
        self.added_tokens = added
        self.unk_id = self.state["model"]["unk_id"]
        self.processor_ids = {ids[index] for ids, index in find_id_places(self.state["post_processor"] or {})}
        if max(self.processor_ids, default=0) >= len(self.pieces):
            raise ConversionError(
                f"The post_processor in tokenizer.json of {name} has the id {max(self.processor_ids)}, but the last "
                f"token has the id {len(self.pieces) - 1}. Correct the id."
            )

    def build_tokenizer(self, pieces: list[tuple[str, float]], old_ids: list[int]) -> PreTrainedTokenizerBase:
        """
        Build a tokenizer with other pieces.

        Args:
            pieces (`list[tuple[str, float]]`): Piece and score by new id.
            old_ids (`list[int]`): For each new id, the old id of the token, or -1 for a new token.

        Returns:
            `PreTrainedTokenizerBase`: The tokenizer, of the class of the old one.
        """
        new_ids = invert_ids(old_ids)
        # Added tokens after the last piece stay added tokens.
        while pieces[-1][1] == UNREACHABLE_SCORE:
            pieces = pieces[:-1]
        state = copy.deepcopy(self.state | {"model": self.state["model"] | {"vocab": pieces}})
        state["model"]["unk_id"] = new_ids[self.unk_id]
        for token in state["added_tokens"]:
            token["id"] = new_ids[token["id"]]
        for ids, index in find_id_places(state["post_processor"] or {}):
            ids[index] = new_ids[ids[index]]
        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
        return tokenizer


def learn_pieces(
    vocabulary: UnigramVocabulary, corpora: list[Corpus], size: int, seed: int
) -> list[tuple[str, float]]:
    """
    Learn up to `size` pieces and return the pieces that the vocabulary lacks.

    A new piece is in a script of the corpus or has a character that the vocabulary lacks. So the segmentation of text
    in other scripts does not change.

    Args:
        vocabulary (`UnigramVocabulary`): The vocabulary to extend.
        corpora (`list[Corpus]`): The text files to learn from.
        size (`int`): Size of the Unigram vocabulary to learn.
        seed (`int`): Random seed for the sample of lines.

    Returns:
        `list[tuple[str, float]]`: New pieces with scores on the scale of the vocabulary.
    """
    sample = [normalise_line(vocabulary.backend, line) for line in sample_corpora(corpora, seed)]
    learnt = train_unigram(vocabulary, sample, size)
    known = dict(vocabulary.pieces)
    characters = {piece for piece in known if len(piece) == 1}
    corpus_scripts = find_scripts(Counter(character for line in sample for character in line), SHARE_TO_LEARN)
    new, differences = [], []
    for piece, score in learnt:
        scripts = {find_script(character) for character in piece} & corpus_scripts
        if piece in known:
            differences += [known[piece] - score] if scripts else []
        elif scripts or set(piece) - characters:
            new.append((piece, score))
    # Pieces have lower scores in a multilingual vocabulary than in a vocabulary of a single language.
    shift = min(0.0, statistics.median(differences)) if len(differences) >= SHARED_PIECES else 0.0
    return [(piece, score + shift) for piece, score in new]


def sample_corpora(corpora: list[Corpus], seed: int) -> list[str]:
    """Return a random sample of about `SAMPLE_BYTES` of the lines."""
    share = SAMPLE_BYTES / max(1, sum(corpus.text_bytes for corpus in corpora))
    generator = random.Random(seed)
    sample: list[str] = []
    size = 0
    for _, lines in read_corpora(corpora, "Reading"):
        added = [line for line in lines if generator.random() < share]
        sample += added
        size += count_bytes(added)
        # The size of compressed text is not known before it is read.
        while size > 2 * SAMPLE_BYTES:
            share = min(share, 1.0) / 2
            sample = [line for line in sample if generator.random() < 0.5]
            size = count_bytes(sample)
    return sample


def count_bytes(lines: list[str]) -> int:
    """Return the size of the lines in bytes."""
    return sum(len(line.encode()) + 1 for line in lines)


def normalise_line(tokenizer: Tokenizer, line: str) -> str:
    """Return a line as the normalizer of the tokenizer writes it."""
    return tokenizer.normalizer.normalize_str(line) if tokenizer.normalizer is not None else line


def train_unigram(vocabulary: UnigramVocabulary, sample: list[str], size: int) -> list[tuple[str, float]]:
    """Train a Unigram model of `size` pieces on the sample and return its pieces with scores."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = vocabulary.backend.pre_tokenizer
    trainer = trainers.UnigramTrainer(  # type: ignore[call-arg]  # its stub lacks seed_size
        vocab_size=size + 1,
        seed_size=SEED_PIECES * size,
        unk_token="<unk>",
        special_tokens=["<unk>"],
        # Without a terminal, the library prints empty lines to stdout.
        show_progress=sys.stdout.isatty(),
    )
    # If the size is smaller than the number of characters, the library fails or never returns.
    characters = {SPACE, *"".join(sample).replace(" ", SPACE)}
    if len(characters) > size:
        raise ConversionError(
            f"--size must be at least {len(characters)} for this corpus (got {size}). Use a larger size."
        )
    tokenizer.train_from_iterator(sample, trainer)
    pieces = read_learnt_pieces(tokenizer, ["<unk>"])
    if not pieces:
        raise ConversionError("The tokenizer finds no tokens in the corpus. Use other text.")
    return pieces


def read_learnt_pieces(tokenizer: Tokenizer, special_tokens: Collection[str]) -> list[tuple[str, float]]:
    """
    Return the pieces of a trained Unigram model in an order that depends only on the text.

    The library sums scores in the order in which its threads end, so scores are rounded. It also gives the rarest
    characters scores in random order, 0.0001 apart, from the lowest score on. So they all get the lowest score.

    Args:
        tokenizer (`Tokenizer`): The trained tokenizer.
        special_tokens (`Collection[str]`): Special tokens to leave out.

    Returns:
        `list[tuple[str, float]]`: Pieces and scores, from the highest score to the lowest.
    """
    vocab = json.loads(tokenizer.to_str())["model"]["vocab"]
    learnt = [(piece, score) for piece, score in vocab if piece not in special_tokens]
    lowest = min((score for _, score in learnt), default=0.0)
    highest_of_rare = lowest + 1e-4 * sum(len(piece) == 1 for piece, _ in learnt)
    rounded = [
        (piece, round(lowest if len(piece) == 1 and score <= highest_of_rare else score, 6)) for piece, score in learnt
    ]
    return sorted(rounded, key=lambda piece: (-piece[1], piece[0]))


@dataclass
class TokenCounts:
    """
    How often each token occurs in the corpus.

    Attributes:
        by_language (`dict[str, np.ndarray]`): Counts by token id for each language.
    """

    by_language: dict[str, np.ndarray]

    def total(self) -> np.ndarray:
        """Return the counts over all languages."""
        return reduce(np.add, self.by_language.values())

    def mean_share(self) -> np.ndarray:
        """Return the mean share over the languages, so that a small corpus weighs as much as a large one."""
        return sum(counts / max(1, counts.sum()) for counts in self.by_language.values()) / len(self.by_language)


def count_tokens(vocabulary: UnigramVocabulary, corpora: list[Corpus]) -> TokenCounts:
    """Count the tokens of the corpora, except `<unk>`."""
    counts: dict[str, np.ndarray] = {}
    for language, lines in read_corpora(corpora, "Counting"):
        ids = np.concatenate([np.asarray(line, dtype=np.int64) for line in encode_batch(vocabulary.backend, lines)])
        counted = np.bincount(ids, minlength=len(vocabulary.pieces))
        counts[language] = counts.get(language, 0) + counted
    for counted in counts.values():
        counted[vocabulary.unk_id] = 0
    return TokenCounts(counts)


def find_required_tokens(vocabulary: UnigramVocabulary, counts: TokenCounts) -> np.ndarray:
    """
    Return a mask of the tokens without which some text of the counted languages could not be segmented.

    Required tokens are:
    - special tokens and language tags,
    - every character that occurs, that belongs to a script of the languages, or that has no script (digits,
      punctuation),
    - pieces with such a character, if the vocabulary does not have the character as a piece.
    """
    seen, corpus_scripts = set(), set()
    for counted in counts.by_language.values():
        texts = {vocabulary.pieces[index][0]: float(counted[index]) for index in np.flatnonzero(counted)}
        corpus_scripts |= find_scripts(texts, SHARE_TO_KEEP)
        seen |= set("".join(texts))
    single_characters = {piece for piece, _ in vocabulary.pieces if len(piece) == 1}
    byte_fallback = vocabulary.state["model"].get("byte_fallback")
    required = np.zeros(len(vocabulary.pieces), dtype=bool)
    for index, (piece, score) in enumerate(vocabulary.pieces):
        characters = {piece} if len(piece) == 1 else set(piece) - single_characters
        is_control = score == 0 or (piece.startswith("<0x") and byte_fallback)
        required[index] = is_control or any(
            character in seen or find_script(character) is None or find_script(character) in corpus_scripts
            for character in characters
        )
    required[[*vocabulary.added_tokens, *vocabulary.processor_ids]] = True
    return required


def select_tokens(
    counts: TokenCounts, required: np.ndarray, min_count: int | None, size: int | None, coverage: float | None
) -> np.ndarray:
    """Return the sorted ids of the required tokens and of the tokens that are frequent enough."""
    kept = required.copy()
    if size is not None:
        if size < kept.sum():
            raise ConversionError(
                f"--size must be at least {kept.sum()} to keep all special tokens, tags and characters of these "
                f"languages (got {size}). Use a larger size."
            )
        size = min(size, len(kept))
        share = np.where(kept, 0.0, counts.mean_share())
        most_frequent = np.argsort(-share, kind="stable")[: size - kept.sum()]
        kept[most_frequent[share[most_frequent] > 0]] = True
    elif min_count is not None:
        kept |= counts.total() >= min_count
    else:
        for counted in counts.by_language.values():
            order = np.argsort(-counted, kind="stable")
            covered = np.cumsum(counted[order])
            kept[order[: np.searchsorted(covered, coverage * covered[-1]) + 1]] = True
    return np.flatnonzero(kept)
