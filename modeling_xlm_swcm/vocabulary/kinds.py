"""The vocabulary of a tokenizer: its tokens, and a tokenizer with other tokens."""

import copy
import itertools
import json
import re
from collections.abc import Iterable, Iterator

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase

from modeling_xlm_swcm.checkpoints.encoder_tokenizers import check_ids
from modeling_xlm_swcm.checkpoints.errors import ConversionError


SPACE = "▁"

# Score of an added token that is in the vocabulary only because ids have no gaps. Text never segments into it.
UNREACHABLE_SCORE = -1e4

# Score of a WordPiece or BPE token, which has none.
NO_SCORE = -1.0


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


def read_vocab(name: str, vocab: dict[str, int]) -> list[tuple[str, float]]:
    """Return piece and score by id, for pieces without scores."""
    pieces = sorted(vocab, key=vocab.__getitem__)
    check_ids(name, vocab[pieces[-1]], len(pieces))
    return [(piece, NO_SCORE) for piece in pieces]


class Vocabulary:
    """
    The vocabulary of a fast tokenizer. A subclass describes a type of model.

    Args:
        name (`str`): Name of the checkpoint, for errors.
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer.

    Attributes:
        backend (`Tokenizer`): Copy of the backend tokenizer without truncation and padding.
        state (`dict`): Content of `tokenizer.json`.
        pieces (`list[tuple[str, float]]`):
            Piece and score (a log-probability) by id. Special tokens of a Unigram model have a score of 0. Language
            tags have a score that never wins.
        added_tokens (`dict[int, str]`): Content of the added tokens by id.
        processor_ids (`set[int]`): The ids of the tokens that the post-processor adds to a text.
        unk_id (`int`): The id of `<unk>`.

    Raises:
        ConversionError: if the ids of the tokenizer have gaps, or an id has no token.
    """

    unk_id: int

    def __init__(self, name: str, tokenizer: PreTrainedTokenizerBase):
        self.name, self.tokenizer = name, tokenizer
        self.backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self.backend.no_padding()
        self.backend.no_truncation()
        self.state = json.loads(self.backend.to_str())
        self.pieces = self.read_pieces(self.state["model"])
        added = {token["id"]: token["content"] for token in self.state["added_tokens"]}
        # Piece ids have no gaps, so added tokens after the last piece become pieces. New pieces follow them.
        while len(self.pieces) in added:
            self.pieces.append((added[len(self.pieces)], UNREACHABLE_SCORE))
        check_ids(name, max(added, default=0), len(self.pieces))
        self.added_tokens = added
        self.processor_ids = {ids[index] for ids, index in find_id_places(self.state["post_processor"] or {})}
        if max(self.processor_ids, default=0) >= len(self.pieces):
            raise ConversionError(
                f"The post_processor in tokenizer.json of {name} has the id {max(self.processor_ids)}, but the last "
                f"token has the id {len(self.pieces) - 1}. Correct the id."
            )

    def read_pieces(self, model: dict) -> list[tuple[str, float]]:
        """Return piece and score by id, and set `unk_id`."""
        raise NotImplementedError

    def write_pieces(self, pieces: list[tuple[str, float]], new_ids: dict[int, int]) -> dict:
        """Return the fields of the model in `tokenizer.json` that change with the pieces."""
        raise NotImplementedError

    def split(self, piece: str) -> list[tuple[str, str]]:
        """Return each character of a piece as a piece and as a character."""
        raise NotImplementedError

    def place(self, learned: list[tuple[str, float]], sample: Iterable[str]) -> list[tuple[str, float]]:
        """Return learned Unigram pieces as pieces of this vocabulary."""
        raise NotImplementedError

    def add_parts(self, kept: np.ndarray) -> np.ndarray:
        """Return a mask of the kept tokens, and of all tokens that they are merged from."""
        return kept

    def text(self, piece: str) -> str:
        """Return the characters of a piece, without the mark of its place in a word."""
        return "".join(character for _, character in self.split(piece))

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
        model = self.state["model"] | self.write_pieces(pieces, new_ids)
        state = copy.deepcopy(self.state | {"model": model})
        for token in state["added_tokens"]:
            token["id"] = new_ids[token["id"]]
        for ids, index in find_id_places(state["post_processor"] or {}):
            ids[index] = new_ids[ids[index]]
        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
        return tokenizer


class UnigramVocabulary(Vocabulary):
    """The vocabulary of a Unigram tokenizer, whose pieces have scores."""

    def read_pieces(self, model: dict) -> list[tuple[str, float]]:
        """Return piece and score by id, and set `unk_id`."""
        self.unk_id = model["unk_id"]
        return [(piece, score) for piece, score in model["vocab"]]

    def write_pieces(self, pieces: list[tuple[str, float]], new_ids: dict[int, int]) -> dict:
        """Return the fields of the model in `tokenizer.json` that change with the pieces."""
        return {"vocab": pieces, "unk_id": new_ids[self.unk_id]}

    def split(self, piece: str) -> list[tuple[str, str]]:
        """Return each character of a piece as a piece and as a character."""
        return [(character, character) for character in piece]

    def place(self, learned: list[tuple[str, float]], sample: Iterable[str]) -> list[tuple[str, float]]:
        """Return the learned pieces."""
        return learned


class WordPieceVocabulary(Vocabulary):
    """The vocabulary of a WordPiece tokenizer, whose pieces inside a word have a prefix, for example `##ing`."""

    def read_pieces(self, model: dict) -> list[tuple[str, float]]:
        """Return piece and score by id, and set `unk_id`."""
        vocab: dict[str, int] = model["vocab"]
        self.prefix, self.unk_id = model["continuing_subword_prefix"], vocab[model["unk_token"]]
        return read_vocab(self.name, vocab)

    def write_pieces(self, pieces: list[tuple[str, float]], new_ids: dict[int, int]) -> dict:
        """Return the fields of the model in `tokenizer.json` that change with the pieces."""
        return {"vocab": {piece: token_id for token_id, (piece, _) in enumerate(pieces)}}

    def split(self, piece: str) -> list[tuple[str, str]]:
        """Return each character of a piece as a piece, with the prefix inside a word, and as a character."""
        is_inside = piece.startswith(self.prefix) and piece != self.prefix
        characters = piece.removeprefix(self.prefix) if is_inside else piece
        return [
            (self.prefix * (is_inside or index > 0) + character, character)
            for index, character in enumerate(characters)
        ]

    def place(self, learned: list[tuple[str, float]], sample: Iterable[str]) -> list[tuple[str, float]]:
        """Return learned pieces and single characters in the forms that occur in the words of the sample."""
        unigram = models.Unigram([("<unk>", 0.0), *learned], 0)
        # Without a pre-tokenizer, a line is one word.
        pre_tokenizer = self.backend.pre_tokenizer or pre_tokenizers.Sequence([])
        words = {word for line in sample for word, _ in pre_tokenizer.pre_tokenize_str(line)}
        places = {part for word in words for part, _ in self.split(word)}
        for word in words:
            first, *others = (token.value for token in unigram.tokenize(word))
            places |= {first, *(self.prefix + other for other in others)}
        placed = (form for piece, _ in learned for form in (piece, self.prefix + piece))
        return [(form, NO_SCORE) for form in placed if form in places]


class BPEVocabulary(Vocabulary):
    """The vocabulary of a BPE tokenizer with byte fallback, whose tokens are merged from two other tokens."""

    def read_pieces(self, model: dict) -> list[tuple[str, float]]:
        """Return piece and score by id, and set `unk_id`."""
        self.unk_id = model["vocab"][model["unk_token"]]
        self.ranks = {tuple(merge): rank for rank, merge in enumerate(model["merges"])}
        return read_vocab(self.name, model["vocab"])

    def write_pieces(self, pieces: list[tuple[str, float]], new_ids: dict[int, int]) -> dict:
        """Return the fields of the model in `tokenizer.json` that change with the pieces."""
        vocab = {piece: token_id for token_id, (piece, _) in enumerate(pieces)}
        merges = [merge for merge in self.ranks if {*merge, "".join(merge)} <= vocab.keys()]
        return {"vocab": vocab, "merges": merges}

    def split(self, piece: str) -> list[tuple[str, str]]:
        """Return each character of a piece as a piece and as a character. A byte is not a character."""
        return [] if re.fullmatch("<0x[0-9A-F]{2}>", piece) else [(character, character) for character in piece]

    def add_parts(self, kept: np.ndarray) -> np.ndarray:
        """Return a mask of the kept tokens, and of the tokens of all merges that build them."""
        ids, complete = {piece: token_id for token_id, (piece, _) in enumerate(self.pieces)}, kept.copy()
        for token_id in np.flatnonzero(kept):
            parts = [character for character, _ in self.split(self.pieces[token_id][0])]
            complete[[ids[part] for part in parts if part in ids]] = True
            while pairs := [pair for pair in itertools.pairwise(parts) if pair in self.ranks]:
                first = min(pairs, key=self.ranks.__getitem__)
                place = next(place for place, pair in enumerate(itertools.pairwise(parts)) if pair == first)
                parts[place : place + 2] = ["".join(first)]
                complete[ids[parts[place]]] = True
        return complete


KINDS: dict[str, type[Vocabulary]] = {"Unigram": UnigramVocabulary, "WordPiece": WordPieceVocabulary}


def read_vocabulary(name: str, tokenizer: PreTrainedTokenizerBase, trims: bool = False) -> Vocabulary:
    """
    Return the vocabulary of a tokenizer, or refuse a type of model whose tokens cannot be added and removed.

    BPE tokens cannot be added. If `trims`, a BPE tokenizer with byte fallback is accepted. It reads unknown characters
    as bytes.
    """
    model = tokenizer.backend_tokenizer.model
    kind = type(model).__name__
    if trims and kind == "BPE" and model.byte_fallback and model.unk_token is not None:
        return BPEVocabulary(name, tokenizer)
    if kind not in KINDS:
        bpe = ", or BPE with byte fallback" if trims else ""
        raise ConversionError(
            f"The tokenizer of {name} has type {kind}, but this command needs a Unigram or WordPiece tokenizer{bpe}. "
            "Convert the checkpoint without a change of its vocabulary. Or use a checkpoint with a Unigram or "
            "WordPiece tokenizer, for example XLM-R or mBERT."
        )
    return KINDS[kind](name, tokenizer)
