"""Extend a vocabulary with tokens that are learnt from text."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch

from modeling_xlm_swcm.checkpoints.errors import ConversionError
from modeling_xlm_swcm.checkpoints.reading import StoredTensor, blocks

from .corpus import compare
from .pieces import SPACE, Pieces, learn_pieces, script
from .report import VocabularyReport
from .rewrite import prepare, select_rows, write


MAX_PIECES = 10_000_000
INITS = ("mean-of-pieces", "random")


def extend(
    checkpoint: str | PathLike,
    output: str | PathLike,
    *,
    corpus: list[str],
    size: int,
    init: str = "mean-of-pieces",
    evaluate: list[str] = (),
    revision: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
    dry_run: bool = False,
) -> VocabularyReport:
    """
    Add pieces that are learnt from text. Old ids stay, and text in other scripts is cut as before.

    Args:
        checkpoint: Hub id or folder of an encoder or XLM-SWCM model with a Unigram tokenizer.
        output: the folder to write, whole or not at all.
        corpus: UTF-8 text files, each `language=path` or named by its language up to the first dot.
        size: of the Unigram vocabulary that is learnt; the pieces of it that the checkpoint lacks are added.
        init: of the new rows. "mean-of-pieces": the mean of the rows of the pieces that the new one was cut into,
            where `<unk>` counts as the mean of its script's rows, or of all, and then with noise. "random": random
            embeddings, at the mean bias.
        evaluate: text to measure with instead of the corpus.
        seed: of the sample to learn from, and of noise and random rows.

    Raises:
        ConversionError: checkpoint, corpus, size or output are not as they should be.
    """
    if init not in INITS:
        raise ConversionError(f"init must be one of {', '.join(INITS)}; got {init}.")
    if not 1 <= size <= MAX_PIECES:
        raise ConversionError(f"--size must be from 1 to {MAX_PIECES:,}; got {size}.")
    source, corpora, measured = prepare(checkpoint, output, corpus, evaluate, revision, overwrite)
    pieces = Pieces(source.name, source.tokenizer)
    new = learn_pieces(pieces, corpora, size, seed)
    if not new:
        raise ConversionError(f"{source.name} has every piece that was learnt; give a larger --size, or other text.")
    old_ids = [*range(len(pieces.vocab)), *[-1] * len(new)]
    tokenizer = pieces.with_vocab(pieces.vocab + new, old_ids)
    report = VocabularyReport("extend", source.name, revision, {"size": size, "init": init, "seed": seed})
    report.languages = compare(pieces.backend, tokenizer.backend_tokenizer, old_ids, pieces.unknown, measured)

    first, last = len(pieces.vocab), len(pieces.vocab) + len(new)
    old_ids += range(last, source.rows)  # of rows that no token has; the new tokens take the first of them
    origins = find_origins(pieces, [piece for piece, _ in new]) if init == "mean-of-pieces" else None
    std = source.config.get("initializer_range", 0.02)

    def change(tensor: torch.Tensor | StoredTensor) -> torch.Tensor:
        changed = select_rows(tensor, old_ids)
        noise = std * torch.randn(len(new), *changed.shape[1:], generator=torch.Generator().manual_seed(seed))
        if changed.ndim == 1:
            noise.zero_()
        mean = mean_row(changed[:first], pieces.added)
        if origins is not None:
            rows = mean_of_pieces(changed[:first], origins, mean, noise)
        else:
            rows = noise if changed.ndim > 1 else mean.expand(len(new))
        changed[first:last] = rows
        return changed

    return write(source, Path(output), tokenizer, old_ids, change, report, overwrite, dry_run)


def mean_row(tensor: torch.Tensor, added: Iterable[int]) -> torch.Tensor:
    """Mean over the pieces: special tokens and tags are no words, and may have been added since."""
    is_piece = torch.ones(len(tensor), dtype=torch.bool)
    is_piece[list(added)] = False
    return (sum(block[is_piece[rows]].double().sum(0) for rows, block in blocks(tensor)) / is_piece.sum()).float()


@dataclass
class Origins:
    """What new pieces were cut into.

    Attributes:
        pieces: for each the ids of old pieces, and the scripts (or None) of the parts that were `<unk>`.
        script_ids: the ids of the old pieces that are written in one of these scripts alone.
    """

    pieces: list[tuple[list[int], list[str | None]]]
    script_ids: dict[str, list[int]]


def find_origins(pieces: Pieces, new: list[str]) -> Origins:
    origins, model = [], pieces.backend.model
    for piece in new:
        known, unknown = [], []
        for token in model.tokenize(piece):
            if token.id == pieces.unknown:
                unknown += [next(filter(None, map(script, token.value)), None)]
            elif token.value != SPACE or piece == SPACE:
                known.append(token.id)
        origins.append((known, unknown))
    wanted = {of for _, unknown in origins for of in unknown} - {None}
    script_ids = defaultdict(list)
    for index, (piece, _) in enumerate(pieces.vocab):
        of = {script(character) for character in piece.removeprefix(SPACE)}
        if len(of) == 1 and of <= wanted and index not in pieces.added:
            script_ids[of.pop()].append(index)
    return Origins(origins, script_ids)


def mean_of_pieces(old: torch.Tensor, origins: Origins, mean: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """A row per new piece: the mean over its old pieces, with `noise` where a part of it was `<unk>`.

    Such a part counts as the mean of its script's rows, or as `mean` where the script has none.
    """
    of_script = {of: old[ids].float().mean(0) for of, ids in origins.script_ids.items()}
    rows = []
    for (known, unknown), own_noise in zip(origins.pieces, noise, strict=True):
        parts = [*old[known].float(), *(of_script.get(of, mean) for of in unknown)]
        row = torch.stack(parts).mean(0) if parts else mean
        rows.append(row if parts and not unknown else row + own_noise)
    return torch.stack(rows)
