"""Extend a vocabulary with tokens that are learned from text."""

from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Literal, get_args

import torch

from modeling_xlm_swcm.checkpoints.arguments import check_number, check_seed
from modeling_xlm_swcm.checkpoints.errors import ConversionError, check_choice
from modeling_xlm_swcm.checkpoints.reading import StoredTensor, measure_rows

from .kinds import SPACE, Vocabulary, read_vocabulary
from .pieces import learn_pieces
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
            tokens. An `<unk>` counts as the mean of all old embeddings, and its token gets random noise with their
            standard deviation. `"random"`: this mean and this noise. An output bias gets no noise.
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
    change = partial(add_rows, old_ids=old_ids, vocabulary=vocabulary, segmentations=segmentations, seed=seed)
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
class OldSegmentation:
    """Segmentation of a new token by the old tokenizer: the ids of its known tokens, and the number of `<unk>`."""

    known: list[int]
    unknown: int


def segment_new_tokens(vocabulary: Vocabulary, new: list[tuple[str, float]]) -> list[OldSegmentation]:
    """Segment the new tokens with the old tokenizer."""
    segmentations = []
    for piece, _ in new:
        tokens = vocabulary.backend.model.tokenize(vocabulary.text(piece))
        unknown = sum(token.id == vocabulary.unk_id for token in tokens)
        known = [
            token.id for token in tokens if token.id != vocabulary.unk_id and (token.value != SPACE or piece == SPACE)
        ]
        segmentations.append(OldSegmentation(known, unknown))
    return segmentations


def add_rows(
    tensor: torch.Tensor | StoredTensor,
    old_ids: list[int],
    vocabulary: Vocabulary,
    segmentations: list[OldSegmentation] | None,
    seed: int,
) -> torch.Tensor:
    """Return a vocabulary tensor with rows for the new tokens, random if there are no `segmentations`."""
    changed = select_rows(tensor, old_ids)
    first, count = len(vocabulary.pieces), old_ids.count(-1)
    noise = torch.randn(count, *changed.shape[1:], generator=torch.Generator().manual_seed(seed))
    if changed.ndim == 1:
        noise.zero_()
    mean, deviation = measure_rows(changed[:first], vocabulary.added_tokens)
    noise *= deviation
    rows = mean + noise if segmentations is None else average_old_rows(changed[:first], segmentations, mean, noise)
    changed[first : first + count] = rows
    return changed


def average_old_rows(
    old: torch.Tensor, segmentations: list[OldSegmentation], mean: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """
    Return a row for each new token: the mean of the rows of its old tokens.

    An `<unk>` counts as `mean`, and the row of its token gets `noise`. With little noise such rows are nearly equal,
    and a model hardly tells the tokens apart.
    """
    rows = []
    for segmentation, token_noise in zip(segmentations, noise, strict=True):
        parts = [*old[segmentation.known].float(), *[mean] * segmentation.unknown]
        row = torch.stack(parts).mean(0) if parts else mean
        rows.append(row if parts and not segmentation.unknown else row + token_noise)
    return torch.stack(rows)
