"""Match the language codes of models and data: `zh`, `zho_Hans`, `cmn_Hans`, `zho-CN` and `zh_CN` are one language."""

import re
from collections.abc import Iterable, Sequence

from babel.core import get_global

from modeling_xlm_swcm.corpora.bad_rows import DataError


def normalize_code(code: str) -> tuple[str, str | None]:
    """
    Return the shortest ISO 639 code of a language, and its script, for example `("zh", "Hans")` for `cmn_Hans`.

    A code without a script has the usual script of its language and territory (Unicode CLDR).
    """
    first, *others = re.split("[-_]+", code.strip("_"))
    # The alias of `sh` is `sr_Latn`.
    language, *more = get_global("language_aliases").get(first.lower(), first.lower()).split("_")
    script = next((part.title() for part in others + more if re.fullmatch("[A-Za-z]{4}", part)), None)
    territory = next((part.upper() for part in others if re.fullmatch("[A-Za-z]{2}", part)), None)
    likely = get_global("likely_subtags")
    usual = likely.get(f"{language}_{territory}") or likely.get(language)
    return language, script or (usual.split("_")[1] if usual else None)


def match_code(code: str, candidates: Iterable[str], spellings: Sequence[str] = ()) -> str | None:
    """
    Find the candidate that names the same language in the same script.

    Args:
        code (`str`):
            Language code.
        candidates (`Iterable[str]`):
            Codes to choose from, in any spelling.
        spellings (`Sequence[str]`, *optional*):
            Spellings of the language that are chosen first.

    Returns:
        `str` or `None`: the candidate, or `None` if no candidate names the language.
    """
    candidates = list(candidates)
    for name in (*spellings, code):
        if name in candidates:
            return name
    wanted = normalize_code(code)
    same = [name for name in candidates if normalize_code(name) == wanted]
    # The shorter code of eng and eng-GB is the general one.
    return min(same, key=len, default=None)


def split_spellings(words: Iterable[str]) -> dict[str, list[str]]:
    """
    Return the spellings of each language from words such as `kk-Arab=kk`.

    Raises:
        DataError: if a word has another form.
    """
    spellings: dict[str, list[str]] = {}
    for word in words:
        code, _, name = word.partition("=")
        if not code or not name:
            raise DataError(f'`codes` cannot be "{word}". Use CODE=NAME, for example kk-Arab=kk.')
        spellings.setdefault(code, []).append(name)
    return spellings
