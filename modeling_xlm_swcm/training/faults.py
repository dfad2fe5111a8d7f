"""Count faults of generated texts that scores do not show."""

from collections.abc import Sequence
from difflib import SequenceMatcher

import numpy as np
import regex

from modeling_xlm_swcm.corpora.scripts import find_main_script

from .segmentation import words


# A text is repetitive if a phrase of up to `MAX_PHRASE` words occurs `COPIES` times in a row.
MAX_PHRASE, COPIES = 16, 4
# Some loops repeat a part of a word.
REPEATED_LETTERS = regex.compile(r"([\p{L}\p{M}]{1,8}?)\1{5}")

# A text is a copy if it shares at least this share of its words with the source, in the same order.
COPY_RATIO = 0.8


def find_cut(ids: np.ndarray, ends: Sequence[int]) -> list[bool]:
    """
    Find the outputs that reached the maximum length: outputs without an end token.

    Args:
        ids (`np.ndarray` of shape `(texts, length)`):
            Generated token ids from the start token on, with padding.
        ends (`Sequence[int]`):
            Ids of the end tokens.

    Returns:
        `list[bool]`: True for each output without an end token.
    """
    # The start token can be an end token.
    return (~np.isin(ids[:, 1:], ends).any(axis=1)).tolist()


def count_faults(
    outputs: Sequence[str],
    references: Sequence[str],
    sources: Sequence[str] | None = None,
    has_unk: Sequence[bool] | None = None,
    is_cut: Sequence[bool] | None = None,
) -> dict[str, int]:
    """
    Count the generated texts with each kind of fault. A text can have several faults.

    - `unk`: the model generated `<unk>`.
    - `empty`: the text is empty.
    - `repeated`: the text repeats a phrase four times in a row, or a part of a word six times.
    - `cut`: the text reached the maximum length.
    - `wrong_script`: most letters are in another script than most letters of all references. A wrong language in the
      right script is not found.
    - `copied`: the text is nearly the source.

    A text does not count as `repeated`, `wrong_script` or `copied` if its reference has the same property.

    Args:
        outputs (`Sequence[str]`):
            Generated texts.
        references (`Sequence[str]`):
            Reference of each text. All references are in one language.
        sources (`Sequence[str]`, *optional*):
            Source of each text. Without sources, `copied` is not counted.
        has_unk (`Sequence[bool]`, *optional*):
            Whether the model generated `<unk>`. Without it, `unk` is not counted.
        is_cut (`Sequence[bool]`, *optional*):
            Whether the text reached the maximum length. Without it, `cut` is not counted.

    Returns:
        `dict[str, int]`: number of texts for each kind of fault.
    """
    found = find_faults(outputs, references, sources, has_unk, is_cut)
    return {fault: sum(flags) for fault, flags in found.items()}


def find_faults(
    outputs: Sequence[str],
    references: Sequence[str],
    sources: Sequence[str] | None = None,
    has_unk: Sequence[bool] | None = None,
    is_cut: Sequence[bool] | None = None,
) -> dict[str, list[bool]]:
    """Return a flag per text for each kind of fault. [`count_faults`] describes arguments and faults."""
    pairs = list(zip(outputs, references, strict=True))
    script = find_main_script(references)
    found = {
        "unk": has_unk,
        "empty": [not output.strip() for output in outputs],
        "repeated": [is_repetitive(output) and not is_repetitive(reference) for output, reference in pairs],
        "cut": is_cut,
        "wrong_script": [
            find_main_script([output]) not in (None, script, find_main_script([reference]))
            for output, reference in pairs
        ],
        "copied": sources and [is_copied(*texts) for texts in zip(outputs, references, sources, strict=True)],
    }
    return {fault: list(flags) for fault, flags in found.items() if flags is not None}


def is_repetitive(text: str) -> bool:
    """Return True if a phrase occurs several times in a row."""
    parts = words(text)
    for length in range(1, MAX_PHRASE + 1):
        run = 0
        for word, later in zip(parts, parts[length:], strict=False):
            run = run + 1 if word == later else 0
            if run == (COPIES - 1) * length:
                return True
    return REPEATED_LETTERS.search(text) is not None


def is_copied(output: str, reference: str, source: str) -> bool:
    """Return True if the output is nearly the source and the reference is not."""
    return is_similar(output, source) and not is_similar(reference, source)


def is_similar(first: str, second: str) -> bool:
    """Return True if two texts have most words in common, in the same order."""
    matcher = SequenceMatcher(None, words(first), words(second), autojunk=False)
    # The quick ratio is an upper limit of the ratio.
    return matcher.quick_ratio() >= COPY_RATIO and matcher.ratio() >= COPY_RATIO
