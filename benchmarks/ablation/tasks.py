"""Tasks of the ablation: pairs for training, development and test."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from modeling_xlm_swcm.training.examples import Pair
from modeling_xlm_swcm.training.rows import BadRows, DataError, check_columns, read_rows


SOURCE, TARGETS = "zh", ["bo", "ug", "kk", "mn"]
PARALLEL_TARGETS = ["kk", "ug", "mn"]
# the number of pairs that stands for all pairs of a file
ALL = "all"
SOFTWARE = "software.tsv"
CHINESE_TITLES, KAZAKH_TITLES = ["titles/zh.csl.jsonl", "titles/zh.cmrc.jsonl"], "titles/kk.kazqad.jsonl"


@dataclass(frozen=True)
class Task:
    """
    A task that decoders are trained and scored on.

    Args:
        title (`str`):
            Title with a place for the number of pairs.
        files (`list[str]`):
            Files inside the data folder.
        languages (`list[str]`):
            Languages of sources and targets.
        read_train (`Callable`):
            Function of the data folder and the number of pairs (or "all"). Returns the training pairs.
        read_held_out (`Callable`):
            Function of the data folder, the split ("dev" or "test") and the number of lines (`None` for all). Returns
            pairs from evenly spaced lines, sorted by length.
        pairs_a_line (`int`):
            Number of consecutive pairs that the bootstrap samples as one unit.
        truncate_sources (`bool`):
            Whether to truncate long sources. Otherwise their pairs are left out of training.
    """

    title: str
    files: list[str]
    languages: list[str]
    read_train: Callable[[Path, int | str], list[Pair]]
    read_held_out: Callable[[Path, str, int | None], list[Pair]]
    pairs_a_line: int
    truncate_sources: bool


def read_split(path: Path, split: str) -> list[tuple[str, dict]]:
    """Read the rows of a split with their places."""
    bad_rows = BadRows()
    rows = check_columns(str(path), read_rows(str(path), bad_rows), {"split": "--data"})
    rows = [(place, row) for place, row in rows if row["split"] == split]
    bad_rows.report()
    return rows


def sample_rows(rows: list, count: int, path: Path) -> list:
    """Return `count` random rows. Smaller samples are part of larger ones."""
    if len(rows) < count:
        raise DataError(
            f"{path} has {len(rows)} training lines, but the plan needs {count}. Use a smaller number of pairs."
        )
    random.Random(0).shuffle(rows)
    return rows[:count]


def thin_out(rows: list, lines: int | None, path: Path) -> list:
    """Return `lines` evenly spaced rows, or all rows for None."""
    lines = len(rows) if lines is None else lines
    if len(rows) < lines:
        raise DataError(
            f"{path} has {len(rows)} lines of the split, but the plan needs {lines}. Use a smaller number of lines."
        )
    return [rows[number * len(rows) // lines] for number in range(lines)]


def to_pairs(rows: list[tuple[str, dict]], targets: list[str]) -> list[Pair]:
    """Return a pair for each sentence and target language."""
    return [Pair(place, row[SOURCE], row[code], SOURCE, code) for place, row in rows for code in targets]


def read_complete_rows(path: Path, split: str, languages: list[str]) -> list[tuple[str, dict]]:
    """Read the rows of a split that have text in all languages."""
    rows = check_columns(str(path), read_split(path, split), dict.fromkeys(languages, "--data"))
    return [(place, row) for place, row in rows if all(row[code] for code in languages)]


def make_pair_task(title: str, name: str, targets: list[str], complete_only: bool = False) -> Task:
    """
    Return a task of translation from Chinese, with one file of pairs.

    Args:
        title (`str`):
            Title with a place for the number of pairs.
        name (`str`):
            Name of the file, which has a column for each language.
        targets (`list[str]`):
            Languages of the targets.
        complete_only (`bool`, *optional*, defaults to `False`):
            Whether to leave out rows without text in one of the languages.
    """
    languages = [SOURCE, *targets]
    read_rows_of = partial(read_complete_rows, languages=languages) if complete_only else read_split

    def read_train(data: Path, count: int) -> list[Pair]:
        return to_pairs(sample_rows(read_rows_of(data / name, "train"), count, data / name), targets)

    def read_held_out(data: Path, split: str, lines: int | None) -> list[Pair]:
        rows = thin_out(read_rows_of(data / name, split), lines, data / name)
        return to_pairs(sorted(rows, key=lambda row: len(row[1][SOURCE])), targets)

    return Task(
        title=title,
        files=[name],
        languages=languages,
        read_train=read_train,
        read_held_out=read_held_out,
        pairs_a_line=len(targets),
        truncate_sources=False,
    )


def make_software_task(title: str, targets: list[str], helpers: list[str] | None = None) -> Task:
    """
    Return a task of interface strings from Chinese. Each language has separate rows.

    Args:
        title (`str`):
            Title with a place for the number of pairs.
        targets (`list[str]`):
            Languages of the targets. A language with too few pairs takes part with all pairs.
        helpers (`list[str]`, *optional*):
            Other target languages. Training uses all their pairs. They are not scored.
    """
    helpers = helpers or []

    def read_language(data: Path, split: str, code: str) -> list[tuple[str, dict]]:
        return read_complete_rows(data / SOFTWARE, split, [SOURCE, code])

    def read_train(data: Path, count: int | str) -> list[Pair]:
        pairs = []
        for code in [*helpers, *targets]:
            rows = read_language(data, "train", code)
            kept = len(rows) if code in helpers or count == ALL else min(count, len(rows))
            pairs += to_pairs(sample_rows(rows, kept, data / SOFTWARE), [code])
        return pairs

    def read_held_out(data: Path, split: str, lines: int | None) -> list[Pair]:
        pairs = []
        for code in targets:
            rows = read_language(data, split, code)
            rows = thin_out(rows, None if lines is None else min(lines, len(rows)), data / SOFTWARE)
            pairs += to_pairs(sorted(rows, key=lambda row: len(row[1][SOURCE])), [code])
        return pairs

    return Task(
        title=title,
        files=[SOFTWARE],
        languages=[SOURCE, *helpers, *targets],
        read_train=read_train,
        read_held_out=read_held_out,
        pairs_a_line=1,
        truncate_sources=False,
    )


def read_titles(path: Path, split: str) -> list[Pair]:
    return [Pair(place, row["text"], row["title"], row["lang"], row["lang"]) for place, row in read_split(path, split)]


def read_titles_train(data: Path, count: int) -> list[Pair]:
    """Return all Chinese titles and `count` Kazakh titles."""
    chinese = [pair for name in CHINESE_TITLES for pair in read_titles(data / name, "train")]
    return chinese + sample_rows(read_titles(data / KAZAKH_TITLES, "train"), count, data / KAZAKH_TITLES)


def read_titles_held_out(data: Path, split: str, lines: int | None) -> list[Pair]:
    """Return Kazakh titles only."""
    pairs = thin_out(read_titles(data / KAZAKH_TITLES, split), lines, data / KAZAKH_TITLES)
    return sorted(pairs, key=lambda pair: len(pair.source))


TASKS = {
    "translation": make_pair_task("{} pairs a language", "ntrex.tsv", TARGETS),
    "parallel": make_pair_task("interface strings, {} complete rows", SOFTWARE, PARALLEL_TARGETS, complete_only=True),
    "software": make_software_task("interface strings, {} pairs a language", ["kk", "mn", "ug"]),
    "software-kk": make_software_task("interface strings, {} pairs, Kazakh", ["kk"]),
    "software-dz": make_software_task("interface strings, {} pairs, Dzongkha", ["dz"]),
    "software-transfer": make_software_task(
        "interface strings, all pairs of Kazakh and {} pairs of the others", ["mn", "ug"], helpers=["kk"]
    ),
    "titles": Task(
        title="titles, {} of them Kazakh",
        files=[*CHINESE_TITLES, KAZAKH_TITLES],
        languages=["zh", "kk"],
        read_train=read_titles_train,
        read_held_out=read_titles_held_out,
        pairs_a_line=1,
        truncate_sources=True,
    ),
}
