"""What the decoders learn: the pairs of each task, to train on and held out."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from modeling_xlm_swcm.training.examples import Pair
from modeling_xlm_swcm.training.rows import BadRows, DataError, read_rows


SOURCE, TARGETS = "zh", ["bo", "ug", "kk", "mn"]
CHINESE_TITLES, KAZAKH_TITLES = ["titles/zh.csl.jsonl", "titles/zh.cmrc.jsonl"], "titles/kk.kazqad.jsonl"


@dataclass(frozen=True)
class Task:
    """
    Args:
        title: with the number of pairs.
        files: in the data folder.
        languages: of sources and targets.
        read_train: data folder, number of pairs -> pairs.
        read_held_out: data folder, "dev" or "test", number of lines at equal distances or None for all -> pairs,
            sorted by length for batches without much padding.
        pairs_a_line: held out, that follow each other; the bootstrap draws them together.
        cut_sources: those that are too long are cut off; otherwise such a pair is left out of training.
    """

    title: str
    files: list[str]
    languages: list[str]
    read_train: Callable[[Path, int], list[Pair]]
    read_held_out: Callable[[Path, str, int | None], list[Pair]]
    pairs_a_line: int
    cut_sources: bool


def read_split(path: Path, split: str) -> list[tuple[str, dict]]:
    bad_rows = BadRows()
    rows = [(place, row) for place, row in read_rows(str(path), bad_rows) if row["split"] == split]
    bad_rows.report()
    return rows


def take(rows: list, count: int, path: Path) -> list:
    """The first so many of the rows in an order of chance, so that they are a sample."""
    if len(rows) < count:
        raise DataError(f"{path} has {len(rows)} training lines; the plan has {count}.")
    random.Random(0).shuffle(rows)
    return rows[:count]


def thin_out(rows: list, lines: int | None, path: Path) -> list:
    lines = len(rows) if lines is None else lines
    if len(rows) < lines:
        raise DataError(f"{path} has {len(rows)} lines of the split; the plan has {lines}.")
    return [rows[number * len(rows) // lines] for number in range(lines)]


def to_pairs(rows: list[tuple[str, dict]]) -> list[Pair]:
    """Every sentence into each language."""
    return [Pair(place, row[SOURCE], row[code], SOURCE, code) for place, row in rows for code in TARGETS]


def read_translation_train(data: Path, count: int) -> list[Pair]:
    return to_pairs(take(read_split(data / "ntrex.tsv", "train"), count, data / "ntrex.tsv"))


def read_translation_held_out(data: Path, split: str, lines: int | None) -> list[Pair]:
    rows = thin_out(read_split(data / "ntrex.tsv", split), lines, data / "ntrex.tsv")
    return to_pairs(sorted(rows, key=lambda row: len(row[1][SOURCE])))


def read_titles(path: Path, split: str) -> list[Pair]:
    return [Pair(place, row["text"], row["title"], row["lang"], row["lang"]) for place, row in read_split(path, split)]


def read_titles_train(data: Path, count: int) -> list[Pair]:
    """All Chinese ones, and `count` Kazakh ones."""
    chinese = [pair for name in CHINESE_TITLES for pair in read_titles(data / name, "train")]
    return chinese + take(read_titles(data / KAZAKH_TITLES, "train"), count, data / KAZAKH_TITLES)


def read_titles_held_out(data: Path, split: str, lines: int | None) -> list[Pair]:
    """Kazakh ones."""
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
        cut_sources=False,
    ),
    "titles": Task(
        title="titles, {} of them Kazakh",
        files=[*CHINESE_TITLES, KAZAKH_TITLES],
        languages=["zh", "kk"],
        read_train=read_titles_train,
        read_held_out=read_titles_held_out,
        pairs_a_line=1,
        cut_sources=True,
    ),
}
