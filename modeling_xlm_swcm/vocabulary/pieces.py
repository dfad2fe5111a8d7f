"""The pieces of a Unigram tokenizer: learning new ones, choosing which to keep, and a tokenizer with others."""

import copy
import json
import random
import statistics
import unicodedata
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer, models, trainers
from transformers import PreTrainedTokenizerBase

from modeling_xlm_swcm.checkpoints.errors import ConversionError

from .corpus import Corpus, encode, read_corpora


SPACE = "▁"

# pieces are learnt from a random sample of about so many bytes: Unigram's training holds it, several times over
SAMPLE_BYTES = 8 * 2**20

# pieces that Unigram starts from, for each that it is to keep
SEED_PIECES = 10

# a script belongs to a text from this share of its letters on
SHARE_TO_LEARN, SHARE_TO_KEEP = 0.1, 0.001

# pieces that old and new vocabulary share, from which on their scores tell how the two compare
SHARED_PIECES = 100

# score of a token that is among the pieces only because ids have no gaps: text that spells it is not it
NEVER = -1e4


def script(character: str) -> str | None:
    """The script of a letter or mark, as Unicode's names begin with it: TIBETAN, CYRILLIC, CJK; None for others."""
    if unicodedata.category(character)[0] not in "LM":
        return None
    return unicodedata.name(character, "UNNAMED").split()[0]


def scripts(counts: dict[str, float], share: float) -> set[str]:
    """Scripts that make up at least `share` of the letters in texts with so many of each."""
    letters = Counter()
    for text, count in counts.items():
        for character in text:
            if (of := script(character)) is not None:
                letters[of] += count
    return {of for of, count in letters.items() if count >= share * letters.total()}


def new_ids_of(old_ids: list[int]) -> dict[int, int]:
    """`old_ids[new]` turned round: old -> new; -1 stands for none."""
    return {old: new for new, old in enumerate(old_ids) if old >= 0}


class Pieces:
    """The state of a fast Unigram tokenizer, as its `tokenizer.json` has it.

    Attributes:
        vocab: piece and score (a log-probability) by id; special tokens are in it with a score of 0, and tags with one
            that never wins.
    """

    def __init__(self, name: str, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self.backend.no_padding()
        self.backend.no_truncation()
        self.state = json.loads(self.backend.to_str())
        if self.state["model"]["type"] != "Unigram":
            raise ConversionError(
                f"The tokenizer of {name} is of type {self.state['model']['type']}; only those of type Unigram, "
                "such as XLM-R's, can be extended and trimmed."
            )
        self.vocab = [(piece, score) for piece, score in self.state["model"]["vocab"]]
        added = {token["id"]: token["content"] for token in self.state["added_tokens"]}
        # ids of pieces have no gaps, so a token that was added behind them becomes one before others follow it
        while len(self.vocab) in added:
            self.vocab.append((added[len(self.vocab)], NEVER))
        if max(added, default=0) >= len(self.vocab):
            raise ConversionError(f"The tokenizer of {name} has ids without a token before {max(added)}.")
        self.added = added
        self.unknown = self.state["model"]["unk_id"]

    def with_vocab(self, vocab: list[tuple[str, float]], old_ids: list[int]) -> PreTrainedTokenizerBase:
        """A tokenizer with other pieces; `old_ids[new]` is the id of an old one, -1 for none."""
        new_ids = new_ids_of(old_ids)
        while vocab[-1][1] == NEVER:  # added behind the pieces, as it was
            vocab = vocab[:-1]
        state = copy.deepcopy(self.state | {"model": self.state["model"] | {"vocab": vocab}})
        state["model"]["unk_id"] = new_ids[self.unknown]
        for token in state["added_tokens"]:
            token["id"] = new_ids[token["id"]]
        post_processor = state.get("post_processor") or {}
        for token in post_processor.get("special_tokens", {}).values():
            token["ids"] = [new_ids[old] for old in token["ids"]]
        for pair in ("sep", "cls"):
            if pair in post_processor:
                post_processor[pair][1] = new_ids[post_processor[pair][1]]
        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
        return tokenizer


def learn_pieces(pieces: Pieces, corpora: list[Corpus], size: int, seed: int) -> list[tuple[str, float]]:
    """Up to `size` pieces that the vocabulary lacks, with scores that compare with its own.

    A piece is new to the vocabulary, and is in a script of the corpus or has a character that the vocabulary lacks:
    other text is cut as before.
    """
    sample = [normalised(pieces.backend, line) for line in sample_lines(corpora, seed)]
    learnt = train_unigram(pieces, sample, size)
    known = dict(pieces.vocab)
    characters = {piece for piece in known if len(piece) == 1}
    written = scripts(Counter(character for line in sample for character in line), SHARE_TO_LEARN)
    new, differences = [], []
    for piece, score in learnt:
        letters = {script(character) for character in piece} & written
        if piece in known:
            differences += [known[piece] - score] if letters else []
        elif letters or set(piece) - characters:
            new.append((piece, score))
    # a vocabulary of many languages gives each piece a smaller share than the corpus of one does
    shift = min(0.0, statistics.median(differences)) if len(differences) >= SHARED_PIECES else 0.0
    return [(piece, score + shift) for piece, score in new]


def sample_lines(corpora: list[Corpus], seed: int) -> list[str]:
    share = SAMPLE_BYTES / max(1, sum(corpus.path.stat().st_size for corpus in corpora))
    generator = random.Random(seed)
    sample = []
    for _, lines in read_corpora(corpora, "Reading"):
        sample += [line for line in lines if generator.random() < share]
    return sample


def normalised(tokenizer: Tokenizer, line: str) -> str:
    return tokenizer.normalizer.normalize_str(line) if tokenizer.normalizer is not None else line


def train_unigram(pieces: Pieces, sample: list[str], size: int) -> list[tuple[str, float]]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pieces.backend.pre_tokenizer
    trainer = trainers.UnigramTrainer(
        vocab_size=size + 1, seed_size=SEED_PIECES * size, unk_token="<unk>", special_tokens=["<unk>"]
    )
    # too small a size makes the library fail or run for ever
    if len({SPACE, *"".join(sample).replace(" ", SPACE)}) > size:
        raise ConversionError(
            f"--size {size} is less than the characters that the corpus is written with; give a larger one."
        )
    tokenizer.train_from_iterator(sample, trainer)
    learnt = learnt_pieces(tokenizer, ["<unk>"])
    if not learnt:
        raise ConversionError("The corpus holds nothing that the tokenizer reads; give other text.")
    return learnt


def learnt_pieces(tokenizer: Tokenizer, special: Collection[str]) -> list[tuple[str, float]]:
    """What a Unigram has learnt beside its `special` tokens; from the same text the same, down to the order.

    The library sums in the order in which threads end, and gives the rarest characters scores from the lowest one on,
    0.0001 apart, in random order: these get the lowest.
    """
    vocab = json.loads(tokenizer.to_str())["model"]["vocab"]
    learnt = [(piece, score) for piece, score in vocab if piece not in special]
    lowest = min((score for _, score in learnt), default=0.0)
    highest_of_rare = lowest + 1e-4 * sum(len(piece) == 1 for piece, _ in learnt)
    rounded = [
        (piece, round(lowest if len(piece) == 1 and score <= highest_of_rare else score, 6)) for piece, score in learnt
    ]
    return sorted(rounded, key=lambda piece: (-piece[1], piece[0]))


@dataclass
class Counts:
    """How often each id occurs, by language; arrays of the vocabulary's length."""

    by_language: dict[str, np.ndarray]

    def total(self) -> np.ndarray:
        return sum(self.by_language.values())

    def share(self) -> np.ndarray:
        """Mean over the languages, so that a small corpus weighs as much as a large one."""
        return sum(counts / max(1, counts.sum()) for counts in self.by_language.values()) / len(self.by_language)


def count_pieces(pieces: Pieces, corpora: list[Corpus]) -> Counts:
    counts: dict[str, np.ndarray] = {}
    for language, lines in read_corpora(corpora, "Counting"):
        ids = np.concatenate([np.asarray(line, dtype=np.int64) for line in encode(pieces.backend, lines)])
        counted = np.bincount(ids, minlength=len(pieces.vocab))
        counts[language] = counts.get(language, 0) + counted
    for counted in counts.values():
        counted[pieces.unknown] = 0
    return Counts(counts)


def indispensable(pieces: Pieces, counts: Counts) -> np.ndarray:
    """Ids, as a mask, without which some text of the counted languages could not be written.

    Special tokens and tags; every character of a script that a language is written in, of one that has no letters
    (figures, punctuation), or that occurs; and pieces with a character that has no piece of its own.
    """
    seen, kept_scripts = set(), set()
    for counted in counts.by_language.values():
        texts = {pieces.vocab[index][0]: float(counted[index]) for index in np.flatnonzero(counted)}
        kept_scripts |= scripts(texts, SHARE_TO_KEEP)
        seen |= set("".join(texts))
    own = {piece for piece, _ in pieces.vocab if len(piece) == 1}
    kept = np.zeros(len(pieces.vocab), dtype=bool)
    for index, (piece, score) in enumerate(pieces.vocab):
        alone = {piece} if len(piece) == 1 else set(piece) - own
        is_control = score == 0 or (piece.startswith("<0x") and pieces.state["model"].get("byte_fallback"))
        kept[index] = is_control or any(
            character in seen or script(character) is None or script(character) in kept_scripts for character in alone
        )
    kept[list(pieces.added)] = True
    return kept


def choose_pieces(
    pieces: Pieces, counts: Counts, kept: np.ndarray, min_count: int | None, size: int | None, coverage: float
) -> np.ndarray:
    """`kept` and the pieces that occur often enough, as ids in order."""
    kept = kept.copy()
    if size is not None:
        if size < kept.sum():
            raise ConversionError(
                f"--size {size} is less than the {kept.sum()} special tokens, tags and characters that must stay; "
                "give at least that."
            )
        share = np.where(kept, 0.0, counts.share())
        most = np.argsort(-share, kind="stable")[: size - kept.sum()]
        kept[most[share[most] > 0]] = True
    elif min_count is not None:
        kept |= counts.total() >= min_count
    else:
        for counted in counts.by_language.values():
            order = np.argsort(-counted, kind="stable")
            covered = np.cumsum(counted[order])
            kept[order[: np.searchsorted(covered, coverage * covered[-1]) + 1]] = True
    return np.flatnonzero(kept)
