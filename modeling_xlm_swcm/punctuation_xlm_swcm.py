"""Restore Chinese punctuation that the normalisation of a tokenizer replaces with ASCII punctuation."""

import re
import unicodedata
from collections.abc import Callable, Iterable


# Full-width marks of Chinese text. NFKC replaces them with ASCII marks. It keeps other marks, such as 。 and 、.
FULL_WIDTH = {unicodedata.normalize("NFKC", mark): mark for mark in "，；？！：（）"}

# Codes of Chinese languages.
CHINESE = {"zh", "zho", "cmn", "yue", "wuu", "nan", "hak", "gan", "lzh"}

HAN = re.compile(r"[\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


def is_chinese(language: str | None) -> bool:
    """Return True if a language code is Chinese, for example `zh` or `zh-Hant`."""
    return language is not None and re.split("[-_]", language)[0].lower() in CHINESE


def restore_marks(text: str, normalize: Callable[[str], str]) -> str:
    """
    Restore the full-width marks of Chinese text that a tokenizer replaced with `,` `;` `?` `!` `:` `(` and `)`.

    A mark becomes full-width if it belongs to Chinese text. For that, the nearest letter or digit must be Chinese:

    - before `?`, `!` and `:`,
    - before or after `,`, `;` and `(`. A `)` follows its `(`.

    So marks in numbers and in Latin text stay, for example in `16,700`, `19:30` and `Hello, world`. Nothing but these
    marks changes, and normalising the result gives the normalised `text`. So a tokenizer reads both texts alike.

    Args:
        text (`str`):
            Chinese text.
        normalize (`Callable`):
            Normalisation of the tokenizer. Marks that it keeps are not restored.

    Returns:
        `str`: text of the same length.
    """
    lost = {mark: full_width for mark, full_width in FULL_WIDTH.items() if normalize(full_width) == mark}
    if lost.keys().isdisjoint(text):
        return text
    is_after_han = follow_han(text)
    is_before_han = [*reversed([*follow_han(reversed(text))])]
    restored, opened = list(text), []
    for place, mark in enumerate(text):
        is_near = is_after_han[place] or (is_before_han[place] and mark not in "?!:")
        if mark == "(":
            opened.append(is_near)
        elif mark == ")":
            is_near = bool(opened) and opened.pop()
        if is_near and mark in lost:
            restored[place] = lost[mark]
    return "".join(restored)


def follow_han(text: Iterable[str]) -> list[bool]:
    """Return for each character whether the nearest letter or digit before it is Chinese."""
    follows, is_han = [], False
    for character in text:
        follows.append(is_han)
        if unicodedata.category(character)[0] in "LN":
            is_han = HAN.match(character) is not None
    return follows
