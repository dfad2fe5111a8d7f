"""Check tokenizer.json before the tokenizers library reads it. Errors of the library do not name file and field."""

import base64
import binascii
import json
import math
from typing import Any

import numpy as np

from .errors import ConversionError
from .reading import find_file, read_json


MODELS = ("Unigram", "BPE", "WordPiece")
# Other files of a vocabulary -> type of the model.
VOCABULARY_FILES = {"sentencepiece.bpe.model": "Unigram", "vocab.json": "BPE", "vocab.txt": "WordPiece"}

# The tokenizers library looks up at most five bytes in a charsmap.
MAX_KEY_BYTES = 8

FIELD_KINDS: dict[str, type | tuple[type, ...]] = {
    "tokenizer_class": str,
    "model_max_length": (int, float),
    "padding_side": str,
    "truncation_side": str,
    "auto_map": dict,
    **dict.fromkeys((f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")), (str, dict)),
}


def check_tokenizer_file(source: str, revision: str | None = None) -> str | None:
    """
    Check `tokenizer.json` of a folder or Hub repository.

    Args:
        source (`str`): Folder or Hub id.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.

    Returns:
        `str` or `None`: the type of the model, for example `"Unigram"`. If the file does not exist, the type that
        another file of the vocabulary has, or `None`.

    Raises:
        ConversionError: if the file is damaged, or holds another model than Unigram, BPE or WordPiece.
    """
    if (path := find_file(source, "tokenizer.json", revision)) is None:
        check_sentencepiece_file(source, revision)
        return next((kind for file, kind in VOCABULARY_FILES.items() if find_file(source, file, revision)), None)
    content = read_json(path)
    model = content.get("model")
    if not isinstance(model, dict) or "vocab" not in model:
        raise ConversionError(f"{path} has no model with a vocab. Download it again.")
    # Files of old versions of the library do not name the type.
    kind = model.get("type") or ("BPE" if "merges" in model else "Unigram")
    if kind not in MODELS:
        raise ConversionError(f"{path} holds a {kind} model. Use a checkpoint with a {' or '.join(MODELS)} tokenizer.")
    problem, ids = None, {}
    if kind == "Unigram" and (problem := find_unigram_problem(model)) is None:
        ids = {piece: index for index, (piece, _) in enumerate(model["vocab"])}
    if kind == "WordPiece" and (problem := find_word_piece_problem(model)) is None:
        ids = model["vocab"]
    problem = problem or find_added_token_problem(content.get("added_tokens", []), ids)
    problem = problem or find_charsmap_problem(content.get("normalizer"))
    if problem is not None:
        raise ConversionError(f"{path} is damaged: {problem}. Download it again.")
    return kind


def check_sentencepiece_file(source: str, revision: str | None = None):
    """Refuse a SentencePiece model that is damaged or has a charsmap that cannot be read."""
    if (path := find_file(source, "sentencepiece.bpe.model", revision)) is None:
        return
    # This import is slow, and few checkpoints need it.
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    # The class is made when the module is imported, so mypy does not see it.
    model_class: Any = vars(sentencepiece_model_pb2)["ModelProto"]
    try:
        charsmap = model_class.FromString(path.read_bytes()).normalizer_spec.precompiled_charsmap
    except DecodeError as error:
        raise ConversionError(f"The tokenizer in {path} is damaged. Download it again.") from error
    if charsmap and not is_charsmap(charsmap):
        raise ConversionError(f"{path} is damaged: its precompiled_charsmap cannot be read. Download it again.")


def check_tokenizer_fields(source: str, config: dict):
    """Refuse values in `tokenizer_config.json` of a kind that Transformers cannot read."""
    for field, kinds in FIELD_KINDS.items():
        value = config.get(field)
        if value is not None and (isinstance(value, bool) or not isinstance(value, kinds)):
            raise ConversionError(
                f"{field} in tokenizer_config.json of {source} has the wrong type: {json.dumps(value)}. Correct "
                f"{field}, or download the file again."
            )


def find_unigram_problem(model: dict) -> str | None:
    """Return a description of the first fault in the vocab of a Unigram model, or `None`."""
    vocab, unk_id, seen = model["vocab"], model.get("unk_id"), set()
    if not isinstance(vocab, list):
        return "its vocab is not a list"
    for index, entry in enumerate(vocab):
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str):
            return f"entry {index} of its vocab is not a piece with a score"
        piece, score = entry
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            return f'the score of "{piece}" in its vocab is {json.dumps(score)}, not a finite number'
        if piece in seen:
            return f'its vocab has "{piece}" twice'
        seen.add(piece)
    if not isinstance(unk_id, int) or isinstance(unk_id, bool) or not 0 <= unk_id < len(vocab):
        return f"its unk_id is {json.dumps(unk_id)}, not an id of its vocab"
    return None


def find_word_piece_problem(model: dict) -> str | None:
    """Return a description of the first fault in the vocab of a WordPiece model, or `None`."""
    vocab, unk_token = model["vocab"], model.get("unk_token")
    if not isinstance(vocab, dict):
        return "its vocab is not an object"
    for piece, token_id in vocab.items():
        if isinstance(token_id, bool) or not isinstance(token_id, int) or token_id < 0:
            return f'the id of "{piece}" in its vocab is {json.dumps(token_id)}'
    if len(set(vocab.values())) < len(vocab):
        return "two pieces of its vocab have the same id"
    if not isinstance(unk_token, str) or unk_token not in vocab:
        return f"its unk_token is {json.dumps(unk_token)}, not a piece of its vocab"
    return None


def find_added_token_problem(added_tokens: object, ids: dict[str, int]) -> str | None:
    """Return a description of the first fault in the added tokens, or `None`. `ids` are the ids of the pieces."""
    if not isinstance(added_tokens, list):
        return "its added_tokens is not a list"
    used = set(ids.values())
    for token in added_tokens:
        if not isinstance(token, dict) or not isinstance(token.get("content"), str):
            return "an entry of its added_tokens has no content"
        content, token_id = token["content"], token.get("id")
        if not isinstance(token_id, int) or isinstance(token_id, bool) or token_id < 0:
            return f'the id of "{content}" in its added_tokens is {json.dumps(token_id)}'
        if ids.get(content, token_id) != token_id:
            return f'"{content}" has the id {token_id} in its added_tokens and the id {ids[content]} in its vocab'
        if content not in ids and token_id in used:
            return f'"{content}" in its added_tokens has the id {token_id} of another piece'
    return None


def find_charsmap_problem(normalizer: object) -> str | None:
    """Return a description of a fault in a charsmap of the normalizer, or `None`. The library crashes on faults."""
    if not isinstance(normalizer, dict):
        return None
    for part in normalizer.get("normalizers") or []:
        if problem := find_charsmap_problem(part):
            return problem
    if normalizer.get("type") != "Precompiled":
        return None
    try:
        charsmap = base64.b64decode(normalizer["precompiled_charsmap"], validate=True)
    except (KeyError, TypeError, ValueError, binascii.Error):
        charsmap = b""
    return None if is_charsmap(charsmap) else "the precompiled_charsmap of its normalizer cannot be read"


def is_charsmap(charsmap: bytes) -> bool:
    """
    Return True if every lookup in a charsmap of SentencePiece stays inside its trie and its replacements.

    A charsmap is the size of the trie, a double-array trie in units of four bytes, and the replacements. See
    https://github.com/google/sentencepiece/blob/master/src/normalizer.cc and https://github.com/s-yata/darts-clone.
    """
    size = int.from_bytes(charsmap[:4], "little")
    if len(charsmap) < 4 or size % 4 or not 0 < size <= len(charsmap) - 4:
        return False
    replacements = charsmap[4 + size :]
    try:
        replacements.decode()
    except UnicodeDecodeError:
        return False
    units = np.frombuffer(charsmap, "<u4", size // 4, offset=4).astype(np.int64)
    indices, labels = np.arange(len(units)), units & 0xFF
    is_leaf = units >> 31 == 1
    # The children of a node are at its base, xor their labels.
    bases = indices ^ ((units >> 10) << ((units & 0x200) >> 6))
    parents = indices ^ labels
    is_base = np.zeros(len(units) + 256, dtype=bool)
    found = np.zeros(len(units), dtype=bool)
    found[0] = True
    for _ in range(MAX_KEY_BYTES):
        if (bases[found] | 0xFF >= len(units)).any():
            return False
        is_base[bases[found]] = True
        is_child = is_base[np.minimum(parents, len(units))] & ~is_leaf & (labels > 0)
        if not (is_child & ~found).any():
            break
        found |= is_child
    # A node with a value has it at its base. The value is the start of a replacement.
    values = units[bases[found & (units >> 8 & 1 == 1)]] & 0x7FFFFFFF
    starts = np.frombuffer(replacements, np.uint8)
    return bool((values < len(starts)).all() and ((starts[values] & 0xC0) != 0x80).all())
