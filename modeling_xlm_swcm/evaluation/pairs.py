"""Read the sources and references of an evaluation from a file, a Hub dataset or a benchmark."""

import itertools
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from modeling_xlm_swcm.corpora.bad_rows import BadRows, DataError
from modeling_xlm_swcm.corpora.files import JSON, find_files, suffix_of
from modeling_xlm_swcm.corpora.rows import check_is_table, get_text, list_columns, read_file, read_rows, unnest
from modeling_xlm_swcm.training.examples import Pair

from .benchmarks import Files, find_benchmark
from .languages import match_code


# Columns of texts and titles, in order of preference.
TITLE_COLUMNS = (("text", "summary"), ("content", "title"), ("text", "title"))

# Columns with the language of a text and its title.
LANGUAGE_COLUMNS = ("lang", "language")

Row = tuple[str, dict]


@dataclass
class EvaluationData:
    """
    Texts of an evaluation.

    Attributes:
        name (`str`):
            Name of the data, for tables and the model card.
        task (`str`):
            "translation" or "summarization".
        pairs (`dict[str, list[Pair]]`):
            Sources and references of each direction, for example `zh-bo`, or of each language of a summarization.
        skipped (`dict[str, int]`):
            Number of skipped rows of each direction.
        names (`set[str]`):
            Names of languages in the data.
    """

    name: str
    task: str
    pairs: dict[str, list[Pair]] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)


def read_data(
    data: str,
    targets: list[str],
    source: str | None,
    *,
    subset: str | None = None,
    spellings: dict[str, list[str]] | None = None,
    max_samples: int | None = None,
    skip_bad_rows: bool = False,
) -> EvaluationData:
    """
    Read sources and references.

    Args:
        data (`str`):
            File, Hub id of a dataset, name of a benchmark, or folder with the files of a benchmark.
        targets (`list[str]`):
            Language codes of the references.
        source (`str`, *optional*):
            Language code of the sources. Without a source, the references are titles of texts in the same language.
        subset (`str`, *optional*):
            Subset of a benchmark, or configuration of a Hub dataset.
        spellings (`dict[str, list[str]]`, *optional*):
            Names of languages in the data.
        max_samples (`int`, *optional*):
            Maximum number of rows of each direction.
        skip_bad_rows (`bool`, *optional*, defaults to `False`):
            Skip bad rows, with a warning.

    Returns:
        [`EvaluationData`]: the texts.

    Raises:
        DataError: if the data cannot be read, lacks a language, or has rows that cannot be used.
    """
    bad_rows = BadRows(skip_bad_rows)
    reader = PairReader(source, spellings or {}, bad_rows, max_samples)
    files = find_benchmark(data, subset)
    if files is None:
        if subset is not None and find_files(data):
            raise DataError(f'`subset="{subset}"` has no effect on the file {data}. Remove `subset`.')
        check_is_table(data, TITLE_COLUMNS[0] if source is None else [source, *targets])
        found = EvaluationData(Path(data).name if Path(data).exists() else data, reader.task)
        for target in targets:
            rows = read_rows(data, bad_rows, subset, "test")
            reader.add_direction(found, target, reader.read_table(data, rows, target))
    else:
        benchmark = files.benchmark
        titles = benchmark.is_summarization(files.subset)
        if titles != (source is None):
            advice = "Remove `source`." if titles else "Pass `source`."
            raise DataError(f"{benchmark.name} {files.subset} is for {describe(titles)}. {advice}")
        # A folder can hold another version, for example FLORES-200.
        name = Path(data).resolve().name if Path(data).is_dir() else benchmark.repo_id
        found = EvaluationData(f"{name} ({files.subset})", reader.task)
        for target in targets:
            reader.add_direction(found, target, reader.read_benchmark(files, target))
    bad_rows.report()
    found.names = reader.names
    for direction, pairs in found.pairs.items():
        if not pairs:
            raise DataError(f"{data} has no row for {direction}. Pass other data or another `target`.")
    return found


def describe(is_summarization: bool) -> str:
    """Return the name of a task, with a description of its data."""
    return "summarization: texts with titles in the same language" if is_summarization else "translation"


def match_titles(names: list[str]) -> tuple[str, ...] | None:
    """Return the columns of texts and titles among the columns of a table, or `None`."""
    return next((columns for columns in TITLE_COLUMNS if {*columns} <= {*names}), None)


@dataclass
class Side:
    """
    Rows of one language of a benchmark with parallel files.

    Args:
        name (`str`):
            Path of the file in the benchmark.
        rows (`dict[str | int, Row]`):
            Rows by their id, or by their line.
        bad (`int`):
            Number of bad rows, which are not in `rows`.
        has_ids (`bool`):
            Whether the file has a column `id`.
    """

    name: str
    rows: dict[str | int, Row]
    bad: int
    has_ids: bool

    @property
    def total(self) -> int:
        """Number of rows of the file."""
        return len(self.rows) + self.bad


@dataclass
class PairReader:
    """
    Make pairs of sources and references from rows.

    Args:
        source (`str`, *optional*):
            Language code of the sources.
        spellings (`dict[str, list[str]]`):
            Names of languages in the data.
        bad_rows ([`BadRows`]):
            Collects rows that cannot be used.
        max_samples (`int`, *optional*):
            Maximum number of rows.
    """

    source: str | None
    spellings: dict[str, list[str]]
    bad_rows: BadRows
    max_samples: int | None = None
    names: set[str] = field(default_factory=set, init=False)
    # language code by its name in the data
    codes: dict[str, str] = field(default_factory=dict, init=False)

    @property
    def task(self) -> str:
        """Task of the pairs."""
        return "summarization" if self.source is None else "translation"

    def name_direction(self, target: str) -> str:
        """Return the name of the pairs with references in a language."""
        return target if self.source is None else f"{self.source}-{target}"

    def add_direction(self, found: EvaluationData, target: str, pairs: Iterable[Pair]):
        """Read the pairs of a direction, and count the rows that are skipped."""
        # Each direction counts the bad rows of a source file again.
        before, self.bad_rows.last_place = self.bad_rows.count, None
        direction = self.name_direction(target)
        found.pairs[direction] = [*pairs]
        found.skipped[direction] = self.bad_rows.count - before

    def read_table(self, path: str, rows: Iterator[Row], target: str) -> Iterator[Pair]:
        """Yield the pairs of rows with one column for each language, or with columns of texts and titles."""
        # Rows of JSON differ.
        read = [*rows] if suffix_of(path) in JSON else [*itertools.islice(rows, 1)]
        if not read:
            return
        rows = itertools.chain(read, rows)
        names = [*dict.fromkeys(str(name) for _, row in read for name in unnest(row))]
        if self.source is None:
            columns = self.find_titles(names, path)
            rows = self.select_language(rows, target)
        else:
            columns = (self.find(self.source, names, path), self.find(target, names, path))
        yield from self.make_pairs(itertools.islice(rows, self.max_samples), columns, target)

    def select_language(self, rows: Iterable[Row], target: str) -> Iterator[Row]:
        """Yield the rows that name no language, or the language of the target. A row without its language is bad."""
        for place, row in rows:
            column = next((name for name in LANGUAGE_COLUMNS if name in row), None)
            code = target if column is None else get_text(place, row, column, self.bad_rows)
            if code is not None and match_code(target, [code]) is not None:
                yield place, row

    def find_titles(self, names: list[str], path: str) -> tuple[str, ...]:
        """Return the names of the columns of texts and titles."""
        if columns := match_titles(names):
            return columns
        raise DataError(
            f"{path} has no columns of texts and titles (columns: {list_columns(names)}). Name them text and "
            "summary, or pass `source` for a translation."
        )

    def find(self, code: str, names: list[str], place: str) -> str:
        """Return the name of a language among `names`."""
        self.names |= {*names}
        name = match_code(code, names, self.spellings.get(code, ()))
        if name is None and match_titles(names):
            raise DataError(f"{place} holds texts and titles (columns: {list_columns(names)}). Leave out `source`.")
        if name is None:
            raise DataError(
                f"{place} has no text in {code} (found: {list_columns(names)}). Pass another language. If {code} is "
                f'among these under another name, add `codes=["{code}=NAME"]`.'
            )
        if (other := self.codes.setdefault(name, code)) != code:
            raise DataError(f"{other} and {code} both have the name {name} in {place}. Correct `codes`.")
        return name

    def make_pairs(self, rows: Iterator[Row], columns: tuple[str, ...], target: str) -> Iterator[Pair]:
        """Yield the pairs of a column of sources and a column of references."""
        for place, row in rows:
            source, reference = (get_text(place, row, column, self.bad_rows) for column in columns)
            if source is not None and reference is not None:
                yield Pair(place, source, reference, self.source or target, target)

    def read_benchmark(self, files: Files, target: str) -> Iterator[Pair]:
        """Yield the pairs of a benchmark."""
        columns = files.benchmark.columns[files.subset]
        if len(columns) == 1:
            yield from self.read_parallel_files(files, target, columns[0])
        elif columns:
            rows = self.read_language(files, self.find(target, [*files.paths], files.benchmark.name))
            yield from self.make_pairs(itertools.islice(rows, self.max_samples), columns, target)
        else:
            yield from self.read_file_of_pairs(files, target)

    def read_language(self, files: Files, code: str) -> Iterator[Row]:
        """Yield the rows of the file of a language. All places name the path in the benchmark."""
        name = files.paths[code]
        path = files.fetch(name)
        self.bad_rows.renamed = (path, name)
        for place, row in read_file(path, self.bad_rows):
            yield name + place.removeprefix(path), row

    def read_file_of_pairs(self, files: Files, target: str) -> Iterator[Pair]:
        """Yield the pairs of the file of the target or the source language. Its columns are language codes."""
        place = files.benchmark.name
        codes = [
            name
            for code in (target, self.source)
            if (name := match_code(code or "", files.paths, self.spellings.get(code or "", ())))
        ]
        if not codes:
            self.find(target, [*files.paths], place)
        self.names |= {*files.paths}
        renamed = files.benchmark.codes
        rows = (
            (place, {renamed.get(name, name): text for name, text in row.items()})
            for place, row in self.read_language(files, codes[0])
        )
        yield from self.read_table(f"{place} {files.paths[codes[0]]}", rows, target)

    def read_parallel_files(self, files: Files, target: str, column: str) -> Iterator[Pair]:
        """Yield the pairs of two files, by the column `id`, or else by line."""
        codes = [self.find(code or "", [*files.paths], files.benchmark.name) for code in (self.source, target)]
        sides = [self.read_side(files, code) for code in codes]
        check_sides(*sides)
        sources, references = (side.rows for side in sides)
        keys = (key for key in sources if key in references)
        for key in itertools.islice(keys, self.max_samples):
            source, reference = (get_text(*side[key], column, self.bad_rows) for side in (sources, references))
            if source is not None and reference is not None:
                yield Pair(sources[key][0], source, reference, self.source or target, target)

    def read_side(self, files: Files, code: str) -> Side:
        """Return the rows of a language by their column `id`, or by their line if no row has this column."""
        before = self.bad_rows.count
        read = [*self.read_language(files, code)]
        has_ids = any("id" in row for _, row in read)
        rows: dict[str | int, list[Row]] = defaultdict(list)
        for place, row in read:
            # A place ends with the number of its line or row.
            key = row.get("id") if has_ids else int(re.findall(r"\d+", place)[-1])
            # Python treats True as 1.
            if isinstance(key, str | int) and not isinstance(key, bool):
                rows[key].append((place, row))
            else:
                found = f" (found type {type(key).__name__})" if "id" in row else ""
                self.bad_rows.reject(place, 'has no text or number in the column "id"', found)
        for same in rows.values():
            for place, _ in same if len(same) > 1 else []:
                self.bad_rows.reject(place, f"has the same {'id' if has_ids else 'line'} as another row")
        good = {key: same[0] for key, same in rows.items() if len(same) == 1}
        return Side(files.paths[code], good, self.bad_rows.count - before, has_ids)


def check_sides(source: Side, reference: Side):
    """Refuse two files whose rows cannot be paired. Bad rows count as rows."""
    reasons = []
    if source.rows and reference.rows and source.has_ids != reference.has_ids:
        lacking = reference if source.has_ids else source
        reasons.append(f"{lacking.name} has no ids")
    elif not (source.has_ids or reference.has_ids) and source.total != reference.total:
        reasons.append("their numbers of rows differ")
    for side, other in ((source, reference), (reference, source)):
        missing = [key for key in other.rows if key not in side.rows]
        # A row without its parallel row is expected only if the parallel row is bad.
        if len(missing) > side.bad:
            key = f"{'id' if other.has_ids else 'line'} {json.dumps(missing[0], ensure_ascii=False)}"
            reasons.append(f"{side.name} has no usable row with the {key}")
    if reasons:
        names = [f"{side.name} ({side.total} {'row' if side.total == 1 else 'rows'})" for side in (source, reference)]
        raise DataError(
            f"{' and '.join(names)} do not belong together: {reasons[0]}. Correct the files, or download both again."
        )
