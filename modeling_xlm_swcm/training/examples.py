"""Rows as examples: token ids of sources and targets."""

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from modeling_xlm_swcm import XLMSWCMTokenizer

from .denoising import PieceTables
from .rows import AS_TEXT, ROWS_AT_ONCE, BadRows


class Pair(NamedTuple):
    """A row to translate, summarise or answer; the languages are codes of the tokenizer."""

    place: str
    source: str
    target: str
    src_lang: str
    tgt_lang: str


# --- examples ---


def batched(rows: Iterable, size: int = ROWS_AT_ONCE) -> Iterator[list]:
    rows = iter(rows)
    while batch := list(itertools.islice(rows, size)):
        yield batch


def cut_off(ids: list[int], limit: int) -> list[int]:
    """A source of at most `limit` tokens, the last one its end."""
    return ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]]


def encode_pairs(
    pairs: Iterable[Pair],
    tokenizer: XLMSWCMTokenizer,
    max_source_length: int,
    max_target_length: int,
    bad_rows: BadRows,
) -> Iterator[dict[str, list[int]]]:
    """`input_ids` and `labels` of each pair, with the tags of its languages; lengths in tokens, special ones included.

    A pair that is too long, or whose language the tokenizer does not know, is a bad row. Tags and special tokens that
    are spelt out in a text are read as text.
    """
    for batch in batched(pairs):
        for (src_lang, tgt_lang), group in itertools.groupby(batch, key=lambda pair: (pair.src_lang, pair.tgt_lang)):
            group = list(group)
            if unknown := [code for code in (src_lang, tgt_lang) if code not in tokenizer.languages]:
                known = ", ".join(tokenizer.languages)
                for pair in group:
                    bad_rows.reject(pair.place, f'is in the unknown language "{unknown[0]}"', f" (known: {known})")
                continue
            before = tokenizer.src_lang, tokenizer.tgt_lang
            tokenizer.src_lang, tokenizer.tgt_lang = src_lang, tgt_lang
            sources, targets = [pair.source for pair in group], [pair.target for pair in group]
            encoded = tokenizer(sources, text_target=targets, **AS_TEXT)
            tokenizer.src_lang, tokenizer.tgt_lang = before
            for pair, source, target in zip(group, encoded["input_ids"], encoded["labels"], strict=True):
                if len(source) > max_source_length:
                    bad_rows.reject(pair.place, f"has a source of more than {max_source_length} tokens")
                elif len(target) > max_target_length:
                    bad_rows.reject(pair.place, f"has a target of more than {max_target_length} tokens")
                else:
                    yield {"input_ids": source, "labels": target}


def encode_texts(
    texts: Iterable[str], tokenizer: XLMSWCMTokenizer, language: str, max_length: int, tables: PieceTables
) -> Iterator[dict[str, list[int]]]:
    """`input_ids` of each text, or of its pieces where it is longer, cut between sentences or else between words."""
    head, eos = [tokenizer.bos_token_id, tokenizer.get_lang_id(language)], [tokenizer.eos_token_id]
    for batch in batched(texts):
        encoded = tokenizer(batch, add_special_tokens=False, **AS_TEXT)
        for ids in encoded["input_ids"]:
            for piece in cut(np.array(ids), max_length - 3, tables):
                yield {"input_ids": head + piece.tolist() + eos}


def cut(ids: np.ndarray, limit: int, tables: PieceTables) -> Iterator[np.ndarray]:
    """`ids` in pieces of at most `limit`, cut where the last sentence of the second half starts, or else a word."""
    while len(ids) > limit:
        words = tables.word_starts(ids[: limit + 1])
        sentences = words[tables.sentence_starts(ids[: limit + 1], words)]
        end = max(sentences[-1] if sentences[-1] > limit // 2 else words[-1], 0) or limit
        yield ids[:end]
        ids = ids[end:]
    yield ids
