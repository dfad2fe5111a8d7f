"""Token ids of sources and targets, made from rows of text."""

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from modeling_xlm_swcm import XLMSWCMTokenizer

from .coverage import Coverage
from .denoising import TokenTables
from .rows import AS_TEXT, ROWS_AT_ONCE, BadRows


# <s> <src> ... </s>, and <tgt> ... </s>
SOURCE_FRAME, TARGET_FRAME = 3, 2


class Pair(NamedTuple):
    """A source and its target, with the place of their row, their language codes and other right targets."""

    place: str
    source: str | tuple[str, ...]
    target: str
    src_lang: str
    tgt_lang: str
    other_targets: tuple[str, ...] = ()


def batched(rows: Iterable, size: int = ROWS_AT_ONCE) -> Iterator[list]:
    """Yield lists of up to `size` rows."""
    rows = iter(rows)
    while batch := list(itertools.islice(rows, size)):
        yield batch


def truncate(ids: list[int], limit: int) -> list[int]:
    """Return at most `limit` token ids. The last id stays the end token."""
    return ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]]


def encode_pairs(
    pairs: Iterable[Pair],
    tokenizer: XLMSWCMTokenizer,
    max_source_length: int,
    max_target_length: int,
    bad_rows: BadRows,
    coverage: Coverage | None = None,
) -> Iterator[dict[str, list[int]]]:
    """
    Encode pairs of texts with the tags of their languages.

    Tags and special tokens that occur in a text are ordinary text.

    Args:
        pairs (`Iterable[Pair]`):
            Pairs to encode.
        tokenizer ([`XLMSWCMTokenizer`]):
            Tokenizer of the model.
        max_source_length (`int`):
            Maximum length of a source in tokens, special tokens included.
        max_target_length (`int`):
            Maximum length of a target in tokens, special tokens included.
        bad_rows ([`BadRows`]):
            Collects the pairs that are too long, have no token or have an unknown language.
        coverage ([`Coverage`], *optional*):
            Counts the unknown tokens of the remaining pairs.

    Returns:
        `Iterator[dict[str, list[int]]]`: `input_ids` and `labels` of each remaining pair.
    """
    for batch in batched(pairs):
        for (src_lang, tgt_lang), group in itertools.groupby(batch, key=lambda pair: (pair.src_lang, pair.tgt_lang)):
            group = list(group)
            if unknown := [code for code in (src_lang, tgt_lang) if code not in tokenizer.languages]:
                known = ", ".join(tokenizer.languages)
                for pair in group:
                    bad_rows.reject(pair.place, f'is in the unknown language "{unknown[0]}"', f" (known: {known})")
                continue
            sources, targets = [pair.source for pair in group], [pair.target for pair in group]
            encoded = tokenizer(sources, text_target=targets, src_lang=src_lang, tgt_lang=tgt_lang, **AS_TEXT)
            for pair, source, target in zip(group, encoded["input_ids"], encoded["labels"], strict=True):
                if len(source) > max_source_length:
                    bad_rows.reject(pair.place, f"has a source of more than {max_source_length} tokens")
                elif len(target) > max_target_length:
                    bad_rows.reject(pair.place, f"has a target of more than {max_target_length} tokens")
                elif len(source) <= SOURCE_FRAME or len(target) <= TARGET_FRAME:
                    bad_rows.reject(pair.place, "has a text without any token")
                else:
                    if coverage is not None:
                        coverage.add(f"sources in {src_lang}", pair.source, source[2:-1])
                        coverage.add(f"targets in {tgt_lang}", pair.target, target[1:-1])
                    yield {"input_ids": source, "labels": target}


def encode_texts(
    texts: Iterable[str],
    tokenizer: XLMSWCMTokenizer,
    language: str,
    max_length: int,
    tables: TokenTables,
    coverage: Coverage | None = None,
) -> Iterator[dict[str, list[int]]]:
    """
    Encode texts for denoising. A text that is longer than `max_length` tokens becomes several examples.

    Args:
        texts (`Iterable[str]`):
            Texts in one language.
        tokenizer ([`XLMSWCMTokenizer`]):
            Tokenizer of the model.
        language (`str`):
            Language code of the texts.
        max_length (`int`):
            Maximum length of an example in tokens, special tokens included.
        tables ([`TokenTables`]):
            Word and sentence tables of the vocabulary.
        coverage ([`Coverage`], *optional*):
            Counts the unknown tokens.

    Returns:
        `Iterator[dict[str, list[int]]]`: `input_ids` of each example. A text without a token gives no example.
    """
    head, eos = [tokenizer.bos_token_id, tokenizer.get_lang_id(language)], [tokenizer.eos_token_id]
    for batch in batched(texts):
        encoded = tokenizer(batch, add_special_tokens=False, **AS_TEXT)
        for text, ids in zip(batch, encoded["input_ids"], strict=True):
            if coverage is not None:
                coverage.add(f"texts in {language}", text, ids)
            for part in split_ids(np.array(ids), max_length - 3, tables) if ids else ():
                yield {"input_ids": head + part.tolist() + eos}


def split_ids(ids: np.ndarray, limit: int, tables: TokenTables) -> Iterator[np.ndarray]:
    """
    Split token ids into parts of at most `limit` ids.

    A part ends where the last sentence in its second half starts, or else where the last word starts.
    """
    while len(ids) > limit:
        words = tables.word_starts(ids[: limit + 1])
        sentences = words[tables.sentence_starts(ids[: limit + 1], words)]
        end = max(sentences[-1] if sentences[-1] > limit // 2 else words[-1], 0) or limit
        yield ids[:end]
        ids = ids[end:]
    yield ids
