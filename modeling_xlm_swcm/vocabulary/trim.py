"""Trim a vocabulary to the languages of some text."""

from os import PathLike
from pathlib import Path

import torch

from modeling_xlm_swcm.checkpoints.errors import ConversionError
from modeling_xlm_swcm.checkpoints.reading import StoredTensor

from .corpus import compare
from .pieces import Pieces, choose_pieces, count_pieces, indispensable
from .report import VocabularyReport
from .rewrite import MIXES_IDS, is_vocabulary, named_ids, prepare, select_rows, write


MAX_MULTIPLE = 65_536
# rows without a token are never to be written: e**-100 is no probability
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
    evaluate: list[str] = (),
    revision: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> VocabularyReport:
    """
    Keep the pieces that some languages need. `id_map.json` in the output has the new id of every old one that is kept.

    Special tokens, tags, and every character that the languages are written with stay in any case, so that their text
    can still be written, in more pieces where a rare one is gone.

    Args:
        checkpoint: Hub id or folder of an encoder or XLM-SWCM model with a Unigram tokenizer.
        output: the folder to write, whole or not at all.
        corpus: UTF-8 text files, each `language=path` or named by its language up to the first dot.
        min_count: keep pieces that occur so often.
        size: keep so many pieces, by their mean share in the languages.
        coverage: keep the most frequent pieces that make up this share of the tokens of each language. The default,
            with 0.9999, where none of the three is given.
        pad_to_multiple_of: add rows that no token has, so that their number is a multiple.
        evaluate: text to measure with instead of the corpus.

    Raises:
        ConversionError: checkpoint, corpus, size or output are not as they should be.
    """
    if sum(option is not None for option in (min_count, size, coverage)) > 1:
        raise ConversionError("Give only one of --min-count, --size and --coverage.")
    coverage = 0.9999 if min_count is size is coverage is None else coverage
    if coverage is not None and not 0 < coverage <= 1:
        raise ConversionError(f"--coverage must be above 0 and at most 1; got {coverage}.")
    if min_count is not None and min_count < 1:
        raise ConversionError(f"--min-count must be at least 1; got {min_count}.")
    if not 1 <= pad_to_multiple_of <= MAX_MULTIPLE:
        raise ConversionError(f"--pad-to-multiple-of must be from 1 to {MAX_MULTIPLE}; got {pad_to_multiple_of}.")
    source, corpora, measured = prepare(checkpoint, output, corpus, evaluate, revision, overwrite)
    if pad_to_multiple_of > 1 and not any(name.endswith("bias") for name in source.tensors if is_vocabulary(name)):
        raise ConversionError(
            f"{source.name} has no output bias, which keeps rows without a token from being written: leave out "
            "--pad-to-multiple-of, or give it after the conversion."
        )
    if named := [name for name in MIXES_IDS if (source.generation_config or {}).get(name)]:
        raise ConversionError(
            f"generation_config.json of {source.name} sets {named[0]}, whose ids would name other pieces; take it out."
        )
    pieces = Pieces(source.name, source.tokenizer)
    counts = count_pieces(pieces, corpora)
    kept = indispensable(pieces, counts)
    kept[[*named_ids(source.config), *named_ids(source.generation_config or {})]] = True
    old_ids = choose_pieces(pieces, counts, kept, min_count, size, coverage).tolist()
    tokenizer = pieces.with_vocab([pieces.vocab[old] for old in old_ids], old_ids)
    options = {"min_count": min_count, "size": size, "coverage": coverage, "pad_to_multiple_of": pad_to_multiple_of}
    report = VocabularyReport("trim", source.name, revision, options)
    report.languages = compare(pieces.backend, tokenizer.backend_tokenizer, old_ids, pieces.unknown, measured)

    tokens = len(old_ids)
    old_ids += [-1] * (-tokens % pad_to_multiple_of)

    def change(tensor: torch.Tensor | StoredTensor) -> torch.Tensor:
        changed = select_rows(tensor, old_ids)
        changed[tokens:] = 0.0 if changed.ndim > 1 else PADDING_BIAS
        return changed

    return write(source, Path(output), tokenizer, old_ids, change, report, overwrite, dry_run)
