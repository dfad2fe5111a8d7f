"""Check lists of language codes."""

from collections.abc import Iterable

from .errors import ConversionError


def check_spellings(codes: Iterable[str]):
    """Refuse language codes that differ only in case, such as `bo` and `BO`. They name the same language."""
    seen: dict[str, str] = {}
    for code in codes:
        if (other := seen.setdefault(code.casefold(), code)) != code:
            raise ConversionError(
                f'The language codes "{other}" and "{code}" differ only in case. Use one spelling for each language.'
            )
