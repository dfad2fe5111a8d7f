"""Learn new pieces of a tokenizer, and select the tokens to keep."""

import json
import random
import statistics
import sys
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from functools import reduce

import numpy as np
from tokenizers import Tokenizer, models, trainers
from transformers.utils import logging

from modeling_xlm_swcm.checkpoints.errors import ConversionError
from modeling_xlm_swcm.corpora.scripts import find_script, find_scripts

from .corpus import Corpus, encode_batch, read_corpora
from .kinds import SPACE, Vocabulary


# Unigram training keeps several copies of the text in memory, so it gets a random sample of about this size.
SAMPLE_BYTES = 8 * 2**20

# Number of pieces that Unigram training starts from, for each piece to learn.
SEED_PIECES = 10

# Minimum share of the letters of a text for a script to count as a script of the text.
SHARE_TO_LEARN, SHARE_TO_KEEP = 0.1, 0.001

# Minimum number of shared pieces from which the scores of two vocabularies can be compared.
SHARED_PIECES = 100


def learn_pieces(
    vocabulary: Vocabulary, corpora: list[Corpus], size: int, seed: int
) -> tuple[list[tuple[str, float]], int]:
    """
    Learn up to `size` pieces and return the pieces that the vocabulary lacks, and the number of learned pieces.

    A new piece is in a script of the corpus or has a character that the vocabulary lacks. So the segmentation of text
    in other scripts does not change.

    Args:
        vocabulary (`Vocabulary`): The vocabulary to extend.
        corpora (`list[Corpus]`): The text files to learn from.
        size (`int`): Size of the Unigram vocabulary to learn.
        seed (`int`): Random seed for the sample of lines.

    Returns:
        `tuple`: New pieces with scores on the scale of the vocabulary, and the number of learned pieces.
    """
    sample = [normalise_line(vocabulary.backend, line) for line in sample_corpora(corpora, seed)]
    pieces = train_unigram(vocabulary, sample, size)
    learnt = vocabulary.place(pieces, sample)
    known = dict(vocabulary.pieces)
    characters = {piece for piece in known if len(vocabulary.split(piece)) == 1}
    corpus_scripts = find_scripts(Counter(character for line in sample for character in line), SHARE_TO_LEARN)
    new, differences = [], []
    for piece, score in learnt:
        scripts = {find_script(character) for character in vocabulary.text(piece)} & corpus_scripts
        if piece in known:
            differences += [known[piece] - score] if scripts else []
        elif scripts or {part for part, _ in vocabulary.split(piece)} - characters:
            new.append((piece, score))
    # Pieces have lower scores in a multilingual vocabulary than in a vocabulary of a single language.
    shift = min(0.0, statistics.median(differences)) if len(differences) >= SHARED_PIECES else 0.0
    return [(piece, score + shift) for piece, score in new], len(pieces)


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


def train_unigram(vocabulary: Vocabulary, sample: list[str], size: int) -> list[tuple[str, float]]:
    """Train a Unigram model of `size` pieces on the sample and return its pieces with scores."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = vocabulary.backend.pre_tokenizer
    trainer = trainers.UnigramTrainer(  # type: ignore[call-arg]  # its stub lacks seed_size
        vocab_size=size + 1,
        seed_size=SEED_PIECES * size,
        unk_token="<unk>",
        special_tokens=["<unk>"],
        # Without a terminal, the library prints empty lines to stdout.
        show_progress=sys.stdout.isatty() and logging.is_progress_bar_enabled(),
    )
    # If the size is smaller than the number of characters, the library fails or never returns.
    characters = {SPACE, *"".join(sample).replace(" ", SPACE)}
    if len(characters) > size:
        raise ConversionError(
            f"`size` must be at least {len(characters)} for this corpus (got {size}). Use a larger size."
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
    characters scores in random order, 0.0001 apart, from the lowest score on. So this function
    gives all of them the lowest score.

    Args:
        tokenizer (`Tokenizer`): The trained tokenizer.
        special_tokens (`Collection[str]`): Special tokens to leave out.

    Returns:
        `list[tuple[str, float]]`: Pieces and scores, from the highest score to the lowest.
    """
    vocab = json.loads(tokenizer.to_str())["model"]["vocab"]
    # The score is null if the corpus only repeats one letter.
    learnt = [(piece, score) for piece, score in vocab if piece not in special_tokens and score is not None]
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


def count_tokens(vocabulary: Vocabulary, corpora: list[Corpus]) -> TokenCounts:
    """Count the tokens of the corpora, except `<unk>`."""
    counts: dict[str, np.ndarray] = {}
    for language, lines in read_corpora(corpora, "Counting"):
        ids = np.concatenate([np.asarray(line, dtype=np.int64) for line in encode_batch(vocabulary.backend, lines)])
        counted = np.bincount(ids, minlength=len(vocabulary.pieces))
        counts[language] = counts.get(language, 0) + counted
    for counted in counts.values():
        counted[vocabulary.unk_id] = 0
    return TokenCounts(counts)


def find_required_tokens(vocabulary: Vocabulary, counts: TokenCounts) -> np.ndarray:
    """
    Return a mask of the tokens to keep, so that all text of the counted languages can still be segmented.

    Required tokens are:
    - special tokens and language tags,
    - every character that occurs, that belongs to a script of the languages, or that has no script (digits,
      punctuation),
    - pieces with such a character, if the vocabulary does not have the character as a piece.
    """
    seen, corpus_scripts = set(), set()
    for counted in counts.by_language.values():
        texts: Counter[str] = Counter()
        for index in np.flatnonzero(counted):
            texts[vocabulary.text(vocabulary.pieces[index][0])] += int(counted[index])
        corpus_scripts |= find_scripts(texts, SHARE_TO_KEEP)
        seen |= set("".join(texts))
    single_pieces = {piece for piece, _ in vocabulary.pieces if len(vocabulary.split(piece)) == 1}
    byte_fallback = vocabulary.state["model"].get("byte_fallback")
    required = np.zeros(len(vocabulary.pieces), dtype=bool)
    for place, (piece, score) in enumerate(vocabulary.pieces):
        parts = vocabulary.split(piece)
        characters = {character for part, character in parts if len(parts) == 1 or part not in single_pieces}
        is_control = score == 0 or (piece.startswith("<0x") and byte_fallback)
        required[place] = is_control or any(
            character in seen or find_script(character) is None or find_script(character) in corpus_scripts
            for character in characters
        )
    required[[*vocabulary.added_tokens, *vocabulary.processor_ids]] = True
    return required


def select_tokens(
    counts: TokenCounts, required: np.ndarray, min_count: int | None, size: int | None, coverage: float | None
) -> np.ndarray:
    """Return a mask of the required tokens and of the tokens that are frequent enough."""
    kept = required.copy()
    if size is not None:
        if size < kept.sum():
            raise ConversionError(
                f"`size` must be at least {kept.sum()} to keep all special tokens, tags and characters of these "
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
    return kept
