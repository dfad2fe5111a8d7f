"""Files of known benchmarks, in a local folder or on the Hub. No text of a benchmark is part of this package."""

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download

from modeling_xlm_swcm.checkpoints.errors import ConversionError
from modeling_xlm_swcm.checkpoints.hub_errors import translate_hub_errors
from modeling_xlm_swcm.corpora.bad_rows import DataError
from modeling_xlm_swcm.corpora.files import find_files


@dataclass(frozen=True)
class Benchmark:
    r"""
    Where a benchmark keeps its texts.

    Args:
        name (`str`):
            Short name for `--data`.
        repo_id (`str`):
            Dataset on the Hub.
        pattern (`str`):
            Regular expression for the end of a file's path, with the language as the group `code`. SUBSET stands for
            the subset.
        columns (`dict[str, tuple[str, ...]]`):
            Columns of each subset, the default subset first. One column: each language has a file of parallel texts.
            Two columns: source and target. No column: the columns are language codes.
        codes (`dict[str, str]`, *optional*):
            BCP-47 codes of languages that the files name differently.
    """

    name: str
    repo_id: str
    pattern: str
    columns: dict[str, tuple[str, ...]]
    codes: dict[str, str] = field(default_factory=dict)

    def find_files(self, names: Iterable[str], subset: str) -> dict[str, str]:
        """Return the file of each language in a subset."""
        pattern = re.compile(rf"(?:^|/){self.pattern.replace('SUBSET', re.escape(subset))}$")
        found = [(match["code"], name) for name in sorted(names) if (match := pattern.search(name))]
        return {self.codes.get(code, code): name for code, name in found}

    def is_summarization(self, subset: str) -> bool:
        """Return True if the texts of a subset have titles."""
        return len(self.columns[subset]) == 2


# MiLiC-Eval and CMHG write Kazakh in the Arabic script and Mongolian in the traditional script.
SCRIPTS = {"kk": "kk-Arab", "mn": "mn-Mong"}
TITLES = ("content", "title")

BENCHMARKS = (
    Benchmark(
        "flores+",
        "openlanguagedata/flores_plus",
        r"SUBSET/(?:SUBSET\.)?(?P<code>[a-z]{3}_[A-Z][a-z]{3}(?:_\w+)?)(?:\.(?:jsonl|parquet|SUBSET))?",
        {"devtest": ("text",), "dev": ("text",)},
    ),
    Benchmark(
        "ntrex",
        "davidstap/NTREX",
        r"newstest2019-(?:src|ref)\.(?P<code>[a-z]{3}(?:-\w+)?)\.txt",
        {"test": ("text",)},
    ),
    Benchmark(
        "milic-eval",
        "pkupie/milic-eval",
        r"SUBSET/(?P<code>\w+)/test\.json",
        {"translation_article": (), "translation_dialogue": (), "title_generation": TITLES},
        SCRIPTS,
    ),
    Benchmark(
        "cmhg",
        "KEVVVV/CMHG",
        r"(?P<code>bo|mn|ug)/SUBSET\.csv",
        {"average_score_4_or_higher": TITLES, "average_score_below_4": TITLES},
        SCRIPTS,
    ),
)


@dataclass(frozen=True)
class Files:
    """
    The files of one subset of a benchmark.

    Args:
        benchmark ([`Benchmark`]):
            The benchmark.
        subset (`str`):
            Name of the subset.
        paths (`dict[str, str]`):
            File of each language.
        fetch (`Callable`):
            Function that returns the local path of a file.
    """

    benchmark: Benchmark
    subset: str
    paths: dict[str, str]
    fetch: Callable[[str], str]


def find_benchmark(data: str, subset: str | None = None) -> Files | None:
    """
    Find the files of a benchmark.

    Args:
        data (`str`):
            Name of a benchmark, its Hub id, or a folder with its files.
        subset (`str`, *optional*):
            Subset. Defaults to the first subset of the benchmark that has files.

    Returns:
        [`Files`] or `None`: the files, or `None` if `data` is not a known benchmark.

    Raises:
        DataError: if there is no such subset, or a folder holds no benchmark.
        ConversionError: if the Hub does not return the list of files.
    """
    if Path(data).is_dir():
        names = [path.relative_to(data).as_posix() for path in Path(data).rglob("*") if path.is_file()]
        for benchmark in BENCHMARKS:
            for known in [subset] if subset in benchmark.columns else benchmark.columns:
                if paths := benchmark.find_files(names, known):
                    check_subset(benchmark, subset)
                    return Files(benchmark, known, paths, lambda name: str(Path(data, name)))
        if subset is not None:
            check_is_present(data, names, subset)
        known_names = ", ".join(benchmark.name for benchmark in BENCHMARKS)
        raise DataError(f"The folder {data} holds no known benchmark ({known_names}). Pass a file.")
    for benchmark in BENCHMARKS:
        if data.lower() in (benchmark.name, benchmark.repo_id.lower()):
            check_subset(benchmark, subset)
            return find_on_hub(benchmark, subset or next(iter(benchmark.columns)))
    near = difflib.get_close_matches(data.lower(), [benchmark.name for benchmark in BENCHMARKS], 1)
    if near and not find_files(data):
        raise DataError(f"There is no file or benchmark {data}. Did you mean {near[0]}?")
    return None


def check_is_present(folder: str, names: list[str], subset: str):
    """Refuse a subset without files in a folder that has files of other subsets."""
    for benchmark in BENCHMARKS:
        if found := [known for known in benchmark.columns if benchmark.find_files(names, known)]:
            raise DataError(
                f"The folder {folder} has no file of the subset {subset} (found: {', '.join(found)}). Use another "
                "subset, or download the files."
            )


def check_subset(benchmark: Benchmark, subset: str | None):
    """Refuse a subset that the benchmark does not have."""
    if subset is not None and subset not in benchmark.columns:
        known = ", ".join(benchmark.columns)
        raise DataError(f"{benchmark.name} has no subset {subset}. Use one of: {known}.")


def find_on_hub(benchmark: Benchmark, subset: str) -> Files:
    """Return the files of a benchmark on the Hub. Only files that are read are downloaded."""
    place = f"datasets/{benchmark.repo_id}"

    def fetch(name: str) -> str:
        with translate_hub_errors(place):
            return hf_hub_download(benchmark.repo_id, name, repo_type="dataset")

    try:
        with translate_hub_errors(place):
            names = HfApi().list_repo_files(benchmark.repo_id, repo_type="dataset")
    except ConversionError as error:
        raise DataError(
            f"{error} If you have the files of {benchmark.name}, pass their folder instead of {benchmark.name}."
        ) from error
    paths = benchmark.find_files(names, subset)
    if not paths:
        raise DataError(
            f"{place} has other files than xlm-swcm expects. Download the texts. Then pass a file with one column for "
            "each language."
        )
    return Files(benchmark, subset, paths, fetch)
