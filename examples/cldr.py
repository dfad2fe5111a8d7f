"""Real names in many languages, from the Unicode CLDR data in the `babel` package.

Names of languages, territories, scripts, currencies, months, days and units are paired across languages by CLDR key.
"""

import random
from collections import defaultdict
from dataclasses import dataclass

from babel import Locale
from babel.units import get_unit_name


@dataclass(frozen=True)
class NamePair:
    """One name in two languages. Its `key` is the CLDR key (example: `("territories", "CN")`)."""

    key: tuple[str, ...]
    language: str
    source: str
    target: str


def read_names(language: str) -> dict[tuple[str, ...], str]:
    """Return the names of a language by CLDR key, without names in Latin letters or digits."""
    locale = Locale(language)
    names = {
        (kind, code): name
        for kind in ("languages", "territories", "scripts", "currencies")
        for code, name in getattr(locale, kind).items()
    }
    for kind in ("months", "days"):
        for context, widths in getattr(locale, kind).items():
            for width, entries in widths.items():
                names |= {(kind, context, width, str(index)): name for index, name in entries.items()}
    for unit in locale.unit_display_names:
        names["units", unit] = get_unit_name(unit, "long", locale) or ""
    return {key: name.strip() for key, name in names.items() if not name.isascii()}


def read_name_pairs(source: str, targets: list[str]) -> list[NamePair]:
    """Return every name that CLDR has in `source` and in one of `targets`."""
    sources = read_names(source)
    return [
        NamePair(key, language, sources[key], name)
        for language in targets
        for key, name in read_names(language).items()
        if key in sources
    ]


def split_pairs(pairs: list[NamePair], test_share: float, seed: int) -> tuple[list[NamePair], list[NamePair]]:
    """
    Split pairs into training and test pairs that share no CLDR key and no string, in any language.

    CLDR has many names twice (a month in a date and alone, a language and its country). Keys that share a source or
    target string, directly or through other keys, go to the same side.

    Args:
        pairs (`list[NamePair]`):
            Pairs of all languages.
        test_share (`float`):
            Share of the keys for the test.
        seed (`int`):
            Random seed of the split.

    Returns:
        `tuple[list[NamePair], list[NamePair]]`: training pairs and test pairs.
    """
    keys_by_string = defaultdict(set)
    for pair in pairs:
        keys_by_string[pair.source].add(pair.key)
        keys_by_string[pair.target].add(pair.key)
    group = {pair.key: {pair.key} for pair in pairs}
    for keys in keys_by_string.values():
        merged = set().union(*(group[key] for key in keys))
        group |= dict.fromkeys(merged, merged)

    groups = sorted({min(members): members for members in group.values()}.items())
    random.Random(seed).shuffle(groups)
    test_keys = set()
    for _, members in groups:
        # A large group would dominate the test.
        if len(members) <= 3 and len(test_keys) < test_share * len(group):
            test_keys |= members
    train = [pair for pair in pairs if pair.key not in test_keys]
    return train, [pair for pair in pairs if pair.key in test_keys]
