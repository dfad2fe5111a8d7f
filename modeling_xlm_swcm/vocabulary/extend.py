"""Extend a vocabulary with tokens that are learned from text."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Literal, get_args

import torch

from modeling_xlm_swcm.checkpoints.arguments import check_number, check_seed
from modeling_xlm_swcm.checkpoints.errors import ConversionError, check_choice
from modeling_xlm_swcm.checkpoints.reading import StoredTensor, blocks

from .kinds import SPACE, Vocabulary, read_vocabulary
from .pieces import find_script, learn_pieces
from .report import VocabularyReport
from .rewrite import build_tokenizer, read_source, select_rows, write_checkpoint


MAX_SIZE = 10_000_000
Init = Literal["mean-of-pieces", "random"]
INITS = get_args(Init)


def extend(
    checkpoint: str | PathLike,
    output: str | PathLike,
    *,
    corpus: list[str],
    size: int,
    init: str = "mean-of-pieces",
    evaluate: list[str] | tuple[str, ...] = (),
    revision: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
    dry_run: bool = False,
) -> VocabularyReport:
    """
    Add tokens that are learned from text. Old token ids and the segmentation of text in other scripts do not change.

    Args:
        checkpoint (`str` or `PathLike`):
            Hub id or folder of an encoder or XLM-SWCM model with a Unigram or WordPiece tokenizer.
        output (`str` or `PathLike`):
            The folder to write.
        corpus (`list[str]`):
            Files with text, as `language=path` or as files whose name starts with the language. The text of .jsonl,
            .json, .csv, .tsv and .parquet files is in the column with the name of the language, or else in `text`.
        size (`int`):
            Size of the Unigram vocabulary to learn. Only tokens that the checkpoint lacks are added.
        init (`str`, *optional*, defaults to `"mean-of-pieces"`):
            How to initialise the embeddings of new tokens. `"mean-of-pieces"`: the mean of the embeddings of the old
            tokens. If an old token was `<unk>`, the mean over its script is used instead, with noise. `"random"`:
            random embeddings and the mean output bias.
        evaluate (`list[str]`, *optional*):
            Text files to measure on. By default, the corpus is used.
        revision (`str`, *optional*):
            Revision of the checkpoint on the Hub.
        seed (`int`, *optional*, defaults to 0):
            Random seed for the sample of lines and for new weights.
        overwrite (`bool`, *optional*, defaults to `False`):
            Replace `output` if it holds a model.
        dry_run (`bool`, *optional*, defaults to `False`):
            Do everything except writing.

    Returns:
        `VocabularyReport`: What changed, and how the text was segmented before and after.

    Raises:
        ConversionError: if the checkpoint, the corpus, the size or the output cannot be used.
    """
    check_extend_options(size, init, seed)
    source, corpora, evaluation = read_source(checkpoint, output, corpus, evaluate, revision, overwrite)
    vocabulary = read_vocabulary(source.name, source.tokenizer)
    new, num_learned = learn_pieces(vocabulary, corpora, size, seed)
    if not new:
        raise ConversionError(
            f"{source.name} already has every token of this corpus. Use a larger `size` or other text."
        )
    old_ids = [*range(len(vocabulary.pieces)), *[-1] * len(new)]
    options = {"size": size, "init": init, "seed": seed}
    report = VocabularyReport("extend", source.name, revision, options, num_learned=num_learned)
    tokenizer = build_tokenizer(vocabulary, vocabulary.pieces + new, old_ids, report, evaluation)
    # New tokens replace the first rows that no token uses. The other unused rows stay.
    old_ids += range(len(old_ids), source.rows)
    segmentations = segment_new_tokens(vocabulary, new) if init == "mean-of-pieces" else None
    std = source.config.get("initializer_range", 0.02)
    change = partial(add_rows, old_ids=old_ids, vocabulary=vocabulary, segmentations=segmentations, std=std, seed=seed)
    return write_checkpoint(source, Path(output), tokenizer, old_ids, change, report, overwrite, dry_run)


def check_extend_options(size: int, init: str, seed: int):
    """Refuse options that cannot be used with any checkpoint."""
    check_choice("init", init, INITS)
    check_seed(seed)
    check_number("size", size)
    if not 1 <= size <= MAX_SIZE:
        remedy = "larger" if size < 1 else "smaller"
        raise ConversionError(f"`size` must be from 1 to {MAX_SIZE:,} (got {size}). Use a {remedy} size.")


@dataclass
class OldSegmentations:
    """
    The segmentation of new tokens by the old tokenizer.

    Attributes:
        parts (`list[tuple[list[int], list[str | None]]]`):
            For each new token, the ids of its known old tokens, and for each `<unk>` its script, or `None` for a text
            without letters.
        script_ids (`dict[str | None, list[int]]`):
            For each of these scripts, the ids of the old tokens in only this script.
    """

    parts: list[tuple[list[int], list[str | None]]]
    script_ids: dict[str | None, list[int]]


def segment_new_tokens(vocabulary: Vocabulary, new: list[tuple[str, float]]) -> OldSegmentations:
    """Segment the new tokens with the old tokenizer."""
    parts, model = [], vocabulary.backend.model
    for piece, _ in new:
        known, unknown = [], []
        text = vocabulary.text(piece)
        for token in model.tokenize(text):
            if token.id == vocabulary.unk_id:
                # Unigram returns the unknown characters, and WordPiece returns `[UNK]`.
                characters = token.value if token.value in text else text
                unknown += [next(filter(None, map(find_script, characters)), None)]
            elif token.value != SPACE or piece == SPACE:
                known.append(token.id)
        parts.append((known, unknown))
    unknown_scripts = {script for _, unknown in parts for script in unknown} - {None}
    script_ids = defaultdict(list)
    for index, (piece, _) in enumerate(vocabulary.pieces):
        scripts = {find_script(character) for character in vocabulary.text(piece).removeprefix(SPACE)}
        if len(scripts) == 1 and scripts <= unknown_scripts and index not in vocabulary.added_tokens:
            script_ids[scripts.pop()].append(index)
    return OldSegmentations(parts, script_ids)


def add_rows(
    tensor: torch.Tensor | StoredTensor,
    old_ids: list[int],
    vocabulary: Vocabulary,
    segmentations: OldSegmentations | None,
    std: float,
    seed: int,
) -> torch.Tensor:
    """Return a vocabulary tensor with rows for the new tokens, random if there are no `segmentations`."""
    changed = select_rows(tensor, old_ids)
    first, count = len(vocabulary.pieces), old_ids.count(-1)
    noise = std * torch.randn(count, *changed.shape[1:], generator=torch.Generator().manual_seed(seed))
    if changed.ndim == 1:
        noise.zero_()
    mean = compute_mean_row(changed[:first], vocabulary.added_tokens)
    if segmentations is not None:
        rows = average_old_rows(changed[:first], segmentations, mean, noise)
    else:
        rows = noise if changed.ndim > 1 else mean.expand(count)
    changed[first : first + count] = rows
    return changed


def compute_mean_row(tensor: torch.Tensor, added_tokens: Iterable[int]) -> torch.Tensor:
    """Return the mean of the rows, without the rows of special tokens, language tags and other added tokens."""
    is_piece = torch.ones(len(tensor), dtype=torch.bool)
    is_piece[list(added_tokens)] = False
    return (sum(block[is_piece[rows]].double().sum(0) for rows, block in blocks(tensor)) / is_piece.sum()).float()


def average_old_rows(
    old: torch.Tensor, segmentations: OldSegmentations, mean: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """
    Return a row for each new token: the mean of the rows of its old tokens.

    An `<unk>` counts as the mean row of its script, or as `mean` if the script has no rows. Tokens with an `<unk>`
    get noise, because their rows could be equal otherwise.
    """
    script_means = {script: old[ids].float().mean(0) for script, ids in segmentations.script_ids.items()}
    rows = []
    for (known, unknown), token_noise in zip(segmentations.parts, noise, strict=True):
        parts = [*old[known].float(), *(script_means.get(script, mean) for script in unknown)]
        row = torch.stack(parts).mean(0) if parts else mean
        rows.append(row if parts and not unknown else row + token_noise)
    return torch.stack(rows)
