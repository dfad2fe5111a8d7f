"""Phrases that CLDR composes, in several languages: dates, months, amounts, sums of money and lists of countries.

The same content is composed in each language, for example `1974年3月2日` and `1974 ж. 2 наурыз`. A phrase is left out
if CLDR does not translate a part of it.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta

from babel import Locale
from babel.dates import format_date, format_skeleton
from babel.lists import format_list
from babel.numbers import format_currency
from babel.units import format_unit
from cldr import NamePair


FIRST_DAY, DAYS = date(1950, 1, 1), 36_500
UNITS = [
    *("length-kilometer", "length-meter", "length-centimeter", "mass-kilogram", "mass-gram", "volume-liter"),
    *("temperature-celsius", "area-square-kilometer", "speed-kilometer-per-hour", "digital-megabyte"),
    *("duration-day", "duration-hour", "duration-minute", "duration-week", "duration-month", "duration-year"),
]
CURRENCIES = ["CNY", "USD", "EUR", "RUB", "KZT", "MNT", "JPY", "INR", "GBP", "KRW", "TRY", "UZS"]
COUNTRIES = ["CN", "KZ", "MN", "RU", "IN", "US", "JP", "FR", "DE", "TR", "KR", "NP"]


@dataclass(frozen=True)
class Content:
    """The content of a phrase, for every language. All contents of a `group` are in the same split."""

    kind: str
    group: tuple
    write: Callable[[str], str]


def draw_date(rng: random.Random) -> Content:
    day = FIRST_DAY + timedelta(days=rng.randrange(DAYS))
    style = rng.choice(["long", "full"])
    return Content("date", (day.year, day.month), lambda language: format_date(day, style, locale=language))


def draw_month(rng: random.Random) -> Content:
    day = FIRST_DAY + timedelta(days=rng.randrange(DAYS))
    return Content("month", (day.year, day.month), lambda language: format_skeleton("yMMMM", day, locale=language))


def draw_amount(rng: random.Random) -> Content:
    number, unit = draw_number(rng), rng.choice(UNITS)
    return Content("amount", (number, unit), lambda language: format_unit(number, unit, "long", locale=language))


def draw_money(rng: random.Random) -> Content:
    number, currency = draw_number(rng), rng.choice(CURRENCIES)

    def write(language: str) -> str:
        return format_currency(number, currency, locale=language, format_type="name", currency_digits=False)

    return Content("money", (number, currency), write)


def draw_countries(rng: random.Random) -> Content:
    codes = tuple(rng.sample(COUNTRIES, 3))

    def write(language: str) -> str:
        names = Locale.parse(language).territories
        return format_list([names[code] for code in codes], locale=language)

    return Content("countries", tuple(sorted(codes)), write)


def draw_number(rng: random.Random) -> int:
    return rng.randint(1, rng.choice([20, 100, 999]))


DRAWS = {draw_date: 6, draw_month: 1, draw_amount: 3, draw_money: 2, draw_countries: 1}


def compose_pairs(
    source: str, targets: list[str], count: int, test_share: float, seed: int
) -> tuple[list[NamePair], list[NamePair]]:
    """
    Compose phrases and pair them across languages.

    Args:
        source (`str`):
            Language of the sources.
        targets (`list[str]`):
            Languages of the targets.
        count (`int`):
            Number of different sources.
        test_share (`float`):
            Share of the groups for the test, for example of the months. No test source is in training.
        seed (`int`):
            Random seed of phrases and split.

    Returns:
        `tuple[list[NamePair], list[NamePair]]`: training pairs and test pairs.

    Raises:
        ValueError: if there are too few different phrases.
    """
    rng = random.Random(seed)
    contents: dict[str, Content] = {}
    draws = 0
    while len(contents) < count:
        if (draws := draws + 1) > 20 * count:
            raise ValueError(f"Found only {len(contents):,} different phrases (got {count:,}). Use a smaller number.")
        draw = rng.choices(list(DRAWS), weights=list(DRAWS.values()))[0]
        content = draw(rng)
        if is_translated(text := content.write(source)):
            contents.setdefault(text, content)
    held_out: dict[tuple, bool] = {}
    train, test = [], []
    for text, content in contents.items():
        is_test = held_out.setdefault(content.group, rng.random() < test_share)
        for language in targets:
            if is_translated(target := content.write(language)):
                key = (content.kind, text)
                (test if is_test else train).append(NamePair(key, language, text, target))
    return train, test


def is_translated(text: str) -> bool:
    """Return False for a text with an English word, a currency code or the id of a unit."""
    return re.search("[A-Za-z]", text) is None
