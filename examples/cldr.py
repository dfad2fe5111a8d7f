"""Real names in many languages, from the Unicode CLDR data that the `babel` package carries.

Names of languages, territories, scripts, currencies, months, days and units, paired over languages by CLDR key.
"""

import random
from collections import defaultdict
from dataclasses import dataclass

from babel import Locale
from babel.units import get_unit_name


@dataclass(frozen=True)
class Pair:
    """One name in two languages; `key` is what it names, such as `("territories", "CN")`."""

    key: tuple[str, ...]
    language: str
    source: str
    target: str


def read_names(language: str) -> dict[tuple[str, ...], str]:
    """CLDR key -> name, without the names that CLDR leaves in Latin letters or figures."""
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


def read_pairs(source: str, targets: list[str]) -> list[Pair]:
    """Every name that CLDR has both in `source` and in one of `targets`."""
    sources = read_names(source)
    return [
        Pair(key, language, sources[key], name)
        for language in targets
        for key, name in read_names(language).items()
        if key in sources
    ]


def split_pairs(pairs: list[Pair], test_share: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """
    Training and test pairs that have no CLDR key and no string in common, in any language.

    CLDR says many names twice (months in a date and alone, a language and its country): keys that share a source or a
    target string, directly or over others, go to the same side.
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
        # a large group would be most of the test
        if len(members) <= 3 and len(test_keys) < test_share * len(group):
            test_keys |= members
    train = [pair for pair in pairs if pair.key not in test_keys]
    return train, [pair for pair in pairs if pair.key in test_keys]
