"""Tasks of the ablation: pairs for training, development and test."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from modeling_xlm_swcm.training.examples import Pair
from modeling_xlm_swcm.training.rows import BadRows, DataError, check_columns, read_rows


SOURCE, TARGETS = "zh", ["bo", "ug", "kk", "mn"]
PARALLEL_TARGETS = ["kk", "ug", "mn"]
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
            Function of the data folder and the number of pairs. Returns the training pairs.
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
    read_train: Callable[[Path, int], list[Pair]]
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
            f"{path} has {len(rows)} training lines, and the plan needs {count}. Use a smaller number of pairs."
        )
    random.Random(0).shuffle(rows)
    return rows[:count]


def thin_out(rows: list, lines: int | None, path: Path) -> list:
    """Return `lines` evenly spaced rows, or all rows for None."""
    lines = len(rows) if lines is None else lines
    if len(rows) < lines:
        raise DataError(
            f"{path} has {len(rows)} lines of the split, and the plan needs {lines}. Use a smaller number of lines."
        )
    return [rows[number * len(rows) // lines] for number in range(lines)]


def to_pairs(rows: list[tuple[str, dict]], targets: list[str]) -> list[Pair]:
    """Return a pair for each sentence and target language."""
    return [Pair(place, row[SOURCE], row[code], SOURCE, code) for place, row in rows for code in targets]


def read_translation_train(data: Path, count: int) -> list[Pair]:
    return to_pairs(sample_rows(read_split(data / "ntrex.tsv", "train"), count, data / "ntrex.tsv"), TARGETS)


def read_translation_held_out(data: Path, split: str, lines: int | None) -> list[Pair]:
    rows = thin_out(read_split(data / "ntrex.tsv", split), lines, data / "ntrex.tsv")
    return to_pairs(sorted(rows, key=lambda row: len(row[1][SOURCE])), TARGETS)


def read_complete_rows(path: Path, split: str) -> list[tuple[str, dict]]:
    """Read the rows of a split that have text in all languages."""
    languages = [SOURCE, *PARALLEL_TARGETS]
    rows = check_columns(str(path), read_split(path, split), dict.fromkeys(languages, "--data"))
    return [(place, row) for place, row in rows if all(row[code] for code in languages)]


def read_parallel_train(data: Path, count: int) -> list[Pair]:
    path = data / "parallel.tsv"
    return to_pairs(sample_rows(read_complete_rows(path, "train"), count, path), PARALLEL_TARGETS)


def read_parallel_held_out(data: Path, split: str, lines: int | None) -> list[Pair]:
    path = data / "parallel.tsv"
    rows = thin_out(read_complete_rows(path, split), lines, path)
    return to_pairs(sorted(rows, key=lambda row: len(row[1][SOURCE])), PARALLEL_TARGETS)


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
    "translation": Task(
        title="{} pairs a language",
        files=["ntrex.tsv"],
        languages=[SOURCE, *TARGETS],
        read_train=read_translation_train,
        read_held_out=read_translation_held_out,
        pairs_a_line=len(TARGETS),
        truncate_sources=False,
    ),
    "parallel": Task(
        title="parallel.tsv, {} pairs a language",
        files=["parallel.tsv"],
        languages=[SOURCE, *PARALLEL_TARGETS],
        read_train=read_parallel_train,
        read_held_out=read_parallel_held_out,
        pairs_a_line=len(PARALLEL_TARGETS),
        truncate_sources=False,
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
