"""Trim a vocabulary to the languages of a corpus."""

from functools import partial
from os import PathLike
from pathlib import Path

import numpy as np
import torch

from modeling_xlm_swcm.checkpoints.arguments import check_number
from modeling_xlm_swcm.checkpoints.errors import ConversionError
from modeling_xlm_swcm.checkpoints.families import MODEL_TYPES
from modeling_xlm_swcm.checkpoints.reading import StoredTensor

from .corpus import Corpus
from .kinds import Vocabulary, read_vocabulary
from .pieces import count_tokens, find_required_tokens, select_tokens
from .report import VocabularyReport
from .rewrite import (
    MIXED_ID_FIELDS,
    SourceCheckpoint,
    build_tokenizer,
    find_token_ids,
    has_row_per_token,
    read_source,
    select_rows,
    write_checkpoint,
)


MAX_MULTIPLE = 65_536
DEFAULT_COVERAGE = 0.9999
# Rows without a token must never be generated. A logit of -100 gives them a probability of almost zero.
PADDING_BIAS = -100.0


def trim(
    checkpoint: str | PathLike,
    output: str | PathLike,
    *,
    corpus: list[str],
    min_count: int | None = None,
    size: int | None = None,
    coverage: float | None = None,
    pad_to_multiple_of: int = 1,
    evaluate: list[str] | tuple[str, ...] = (),
    revision: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> VocabularyReport:
    """
    Keep the tokens that the languages of a corpus need.

    `id_map.json` in `output` maps the old ids of kept tokens to new ids. Special tokens, language tags
    and all characters of the languages are always kept.

    Args:
        checkpoint (`str` or `PathLike`):
            Hub id or folder of an encoder or XLM-SWCM model with a Unigram or WordPiece tokenizer, or a BPE tokenizer
            with byte fallback.
        output (`str` or `PathLike`):
            The folder to write.
        corpus (`list[str]`):
            Files with text, as `language=path` or as files whose name starts with the language. The text of .jsonl,
            .json, .csv, .tsv and .parquet files is in the column with the name of the language, or else in `text`.
        min_count (`int`, *optional*):
            Keep tokens that occur at least N times in the corpus.
        size (`int`, *optional*):
            Number of tokens to keep, by their mean share over the languages. A BPE tokenizer also keeps the tokens
            from which these tokens are merged.
        coverage (`float`, *optional*):
            Keep the most frequent tokens that make up this share of each language's text. If `min_count`, `size` and
            `coverage` are not set, the coverage is 0.9999.
        pad_to_multiple_of (`int`, *optional*, defaults to 1):
            Add unused rows up to a multiple of this number.
        evaluate (`list[str]`, *optional*):
            Text files to measure on. By default, the corpus is used.
        revision (`str`, *optional*):
            Revision of the checkpoint on the Hub.
        overwrite (`bool`, *optional*, defaults to `False`):
            Replace `output` if it holds a model.
        dry_run (`bool`, *optional*, defaults to `False`):
            Do everything except writing.

    Returns:
        `VocabularyReport`: What changed, and how the text was segmented before and after.

    Raises:
        ConversionError: if the checkpoint, the corpus, the size or the output cannot be used.
    """
    options = check_trim_options(min_count, size, coverage, pad_to_multiple_of)
    source, corpora, evaluation = read_source(checkpoint, output, corpus, evaluate, revision, overwrite)
    check_source(source, pad_to_multiple_of)
    vocabulary = read_vocabulary(source.name, source.tokenizer, trims=True)
    old_ids = select_old_ids(source, vocabulary, corpora, options)
    check_positions(source, old_ids)
    report = VocabularyReport("trim", source.name, revision, options)
    pieces = [vocabulary.pieces[old] for old in old_ids]
    tokenizer = build_tokenizer(vocabulary, pieces, old_ids, report, evaluation)
    old_ids += [-1] * (-len(old_ids) % pad_to_multiple_of)
    change = partial(keep_rows, old_ids=old_ids)
    return write_checkpoint(source, Path(output), tokenizer, old_ids, change, report, overwrite, dry_run)


def check_trim_options(
    min_count: int | None, size: int | None, coverage: float | None, pad_to_multiple_of: int
) -> dict:
    """Refuse options that cannot be used with any checkpoint, and return the options with their defaults."""
    options = {"min_count": min_count, "size": size, "coverage": coverage, "pad_to_multiple_of": pad_to_multiple_of}
    given = [f"`{name}`" for name in ("min_count", "size", "coverage") if options[name] is not None]
    if len(given) > 1:
        raise ConversionError(
            f"{' and '.join(given)} cannot be combined. Use only one of `min_count`, `size` and `coverage`."
        )
    for name, value in options.items():
        if value is not None or name == "pad_to_multiple_of":
            check_number(name, value, is_whole=name != "coverage")
    if coverage is not None and not 0 < coverage <= 1:
        raise ConversionError(
            f"`coverage` must be above 0 and at most 1 (got {coverage}). Use a share, for example 0.9999."
        )
    if min_count is not None and min_count < 1:
        raise ConversionError(f"`min_count` must be at least 1 (got {min_count}). Use a larger number.")
    if not 1 <= pad_to_multiple_of <= MAX_MULTIPLE:
        raise ConversionError(
            f"`pad_to_multiple_of` must be from 1 to {MAX_MULTIPLE} (got {pad_to_multiple_of}). Use, for example, 64."
        )
    return options if given else options | {"coverage": DEFAULT_COVERAGE}


def check_source(source: SourceCheckpoint, pad_to_multiple_of: int):
    """Refuse a checkpoint that cannot be trimmed with these options."""
    has_bias = any(name.endswith("bias") for name in source.tensors if has_row_per_token(name))
    if pad_to_multiple_of > 1 and not has_bias:
        raise ConversionError(
            f"{source.name} has no output bias, so the model could generate unused ids. Leave out "
            "`pad_to_multiple_of`, or trim after the conversion."
        )
    if mixed := [name for name in MIXED_ID_FIELDS if (source.generation_config or {}).get(name)]:
        raise ConversionError(
            f"generation_config.json of {source.name} sets {mixed[0]}, whose token ids cannot be renumbered. "
            "Remove this setting."
        )


def select_old_ids(
    source: SourceCheckpoint, vocabulary: Vocabulary, corpora: list[Corpus], options: dict
) -> list[int]:
    """Return the ids of the tokens to keep, in order."""
    counts = count_tokens(vocabulary, corpora)
    required = find_required_tokens(vocabulary, counts)
    required[[*find_token_ids(source.config), *find_token_ids(source.generation_config or {})]] = True
    kept = select_tokens(counts, required, options["min_count"], options["size"], options["coverage"])
    return np.flatnonzero(vocabulary.add_parts(kept)).tolist()


def check_positions(source: SourceCheckpoint, old_ids: list[int]):
    """Refuse to move the padding token if the positions are counted from its id."""
    family, pad = MODEL_TYPES.get(source.config["model_type"]), source.config.get("pad_token_id")
    is_counted = family is None or not family.has_positions_from_zero
    has_table = any("position_embeddings" in name for name in source.tensors)
    if is_counted and has_table and pad is not None and old_ids.index(pad) != pad:
        raise ConversionError(
            f"The padding token of {source.name} has the id {pad}, and the model counts positions from this id. "
            "Trimming would change the id. Use a checkpoint whose padding token is one of the first tokens."
        )


def keep_rows(tensor: torch.Tensor | StoredTensor, old_ids: list[int]) -> torch.Tensor:
    """Return a vocabulary tensor with the rows of `old_ids`, and padding rows where the id is -1."""
    changed = select_rows(tensor, old_ids)
    changed[torch.tensor(old_ids) == -1] = 0.0 if changed.ndim > 1 else PADDING_BIAS
    return changed
