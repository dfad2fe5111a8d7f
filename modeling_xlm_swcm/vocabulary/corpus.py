"""Read the texts of languages and measure how tokenizers segment them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import regex
from tokenizers import Tokenizer
from transformers.utils import logging

from modeling_xlm_swcm.checkpoints.errors import ConversionError
from modeling_xlm_swcm.checkpoints.languages import check_codes
from modeling_xlm_swcm.corpora.bad_rows import BadRows
from modeling_xlm_swcm.corpora.files import check_format, find_files, is_compressed, is_plain_text
from modeling_xlm_swcm.corpora.rows import stream_texts


# Learning pieces from a text takes a few hundred bytes of memory for each of its bytes.
MAX_TEXT_BYTES = 2**20

BATCH_BYTES = 2**20

# A language code at the start of a file name, such as `bo`, `kk-Arab` or `kaz_Cyrl`.
CODE = regex.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{1,8})*")

# A word is a Chinese character, a Tibetan syllable or a run of letters and marks.
# The tsheg between two Tibetan syllables is not a letter, so it ends a run.
WORD = regex.compile(r"\p{Han}|(?:(?!\p{Han})[\p{L}\p{M}\p{N}])+")


@dataclass(frozen=True)
class Corpus:
    """A file with text in one language: plain text, or rows with a column for the language or `text`."""

    path: Path
    language: str

    @classmethod
    def parse(cls, argument: str) -> "Corpus":
        """
        Parse a command-line argument that names one file.

        Args:
            argument (`str`): `bo=some/file.txt`, or a file whose name starts with its language: `bo.news.txt`.

        Returns:
            `Corpus`: The file and its language.

        Raises:
            ConversionError: if the file does not exist or cannot be read, or the language is empty.
        """
        corpus, *others = cls.parse_all([argument])
        if others:
            raise ConversionError(f"{argument} names {1 + len(others)} files. Pass one file.")
        return corpus

    @classmethod
    def parse_all(cls, arguments: list[str]) -> "list[Corpus]":
        """
        Parse command-line arguments that name files or patterns, for example `bo=texts/*.txt.gz`.

        Raises:
            ConversionError: if a file does not exist or cannot be read, if a language is empty, or if two languages
                differ only in case.
        """
        corpora = []
        for argument in arguments:
            language, equals, path = argument.partition("=")
            if not equals or find_files(argument):
                language, path = "", argument
            if not (files := find_files(path)):
                problem = "is not a file" if Path(path).exists() else "does not exist"
                raise ConversionError(f'"{path}" {problem}. Pass a file with text.')
            for file in files:
                check_format(file)
                code = language if path != argument else Path(file).name.partition(".")[0]
                if not code.strip():
                    raise ConversionError(f"The language of {file} is missing. Pass it before the path: bo={file}.")
                if path == argument and not CODE.fullmatch(code):
                    raise ConversionError(
                        f"The name of {file} does not start with a language code. Pass the code before the path, for "
                        f"example bo={file}."
                    )
                corpora.append(cls(Path(file), code.strip()))
        check_codes(corpus.language for corpus in corpora)
        return corpora

    def has_same_text(self, other: "Corpus") -> bool:
        """Return True if both are the same file, and not two columns of it."""
        is_same_column = self.language == other.language or is_plain_text(str(self.path))
        return is_same_column and self.path.samefile(other.path)

    @property
    def text_bytes(self) -> int:
        """Size of plain text in bytes. 0 if the text is compressed or in a column, so that its size is not known."""
        path = str(self.path)
        return self.path.stat().st_size if is_plain_text(path) and not is_compressed(path) else 0

    def lines(self) -> Iterator[tuple[str, int]]:
        """
        Yield each text, with its size in bytes. Rows without text are left out.

        Raises:
            ConversionError: if a row is not text.
        """
        bad_rows = BadRows(can_skip=False, allow_empty=True)
        advice = f"Rename the column of the text to its language code, or pass another code (CODE={self.path})."
        for place, text in stream_texts(str(self.path), self.language, bad_rows, advice):
            size = len(text.encode()) + 1 if text else 0
            if size > MAX_TEXT_BYTES:
                bad_rows.reject(place, "is longer than 1 MiB", ". Write one sentence or paragraph per line")
            elif text:
                yield text.strip(), size
        bad_rows.report()


def read_corpora(corpora: list[Corpus], progress: str) -> Iterator[tuple[str, list[str]]]:
    """
    Yield batches of texts with their language and show a progress bar.

    Args:
        corpora (`list[Corpus]`): The files.
        progress (`str`): Label of the progress bar.

    Raises:
        ConversionError: if a file has no text, or has rows that are not text.
    """
    total = sum(corpus.text_bytes for corpus in corpora)
    with logging.tqdm(total=total or None, desc=progress, unit="B", unit_scale=True) as bar:
        for corpus in corpora:
            batch: list[str] = []
            size = 0
            for line, line_bytes in corpus.lines():
                if size >= BATCH_BYTES:
                    yield corpus.language, batch
                    bar.update(size)
                    batch, size = [], 0
                batch.append(line)
                size += line_bytes
            if not batch:
                raise ConversionError(f"{corpus.path} has no text. Pass a file with text.")
            yield corpus.language, batch
            bar.update(size)


def encode_batch(tokenizer: Tokenizer, lines: list[str]) -> list[list[int]]:
    """Return the token ids of each line without special tokens, computed on all cores."""
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(lines, add_special_tokens=False)]


@dataclass
class SegmentationStatistics:
    """
    Statistics of the segmentation of a text by one tokenizer.

    Attributes:
        tokens (`int`): Number of tokens without special tokens.
        tokens_per_line (`float`): Mean number of tokens per line.
        fertility (`float`):
            Mean number of tokens per word. A word is a Tibetan syllable, a Chinese character or a run of letters.
        unknown (`float`): Share of tokens that are `<unk>`.
    """

    tokens: int = 0
    tokens_per_line: float = 0.0
    fertility: float = 0.0
    unknown: float = 0.0


@dataclass
class SegmentationComparison:
    """
    Statistics of the segmentation of the same text in one language by two tokenizers.

    Attributes:
        lines (`int`): Number of lines.
        words (`int`): Number of words.
        resegmented (`float`): Share of lines that the two tokenizers segment differently.
        before (`SegmentationStatistics`): Statistics of the first tokenizer.
        after (`SegmentationStatistics`): Statistics of the second tokenizer.
    """

    lines: int = 0
    words: int = 0
    resegmented: float = 0.0
    before: SegmentationStatistics = field(default_factory=SegmentationStatistics)
    after: SegmentationStatistics = field(default_factory=SegmentationStatistics)


def compare_segmentations(
    before: Tokenizer, after: Tokenizer, old_ids: list[int], unk_id: int, corpora: list[Corpus]
) -> dict[str, SegmentationComparison]:
    """
    Compare how two tokenizers segment the same lines.

    Args:
        before (`Tokenizer`): The first tokenizer.
        after (`Tokenizer`): The second tokenizer.
        old_ids (`list[int]`): For each id of `after`, the id of the same token in `before`, or -1 for a new token.
        unk_id (`int`): The id of `<unk>` in `before`.
        corpora (`list[Corpus]`): The files.

    Returns:
        `dict[str, SegmentationComparison]`: The comparison for each language.
    """
    comparisons: dict[str, SegmentationComparison] = {}
    unk_ids = unk_id, old_ids.index(unk_id)
    for language, lines in read_corpora(corpora, "Measuring"):
        comparison = comparisons.setdefault(language, SegmentationComparison())
        comparison.lines += len(lines)
        comparison.words += sum(1 for line in lines for _ in WORD.finditer(line))
        for old, new in zip(encode_batch(before, lines), encode_batch(after, lines), strict=True):
            comparison.resegmented += old != [old_ids[token] for token in new]
            for statistics, tokens, unk in zip(
                (comparison.before, comparison.after), (old, new), unk_ids, strict=True
            ):
                statistics.tokens += len(tokens)
                statistics.unknown += tokens.count(unk)
    for comparison in comparisons.values():
        comparison.resegmented /= comparison.lines
        for statistics in (comparison.before, comparison.after):
            statistics.unknown /= max(1, statistics.tokens)
            statistics.tokens_per_line = statistics.tokens / comparison.lines
            statistics.fertility = statistics.tokens / max(1, comparison.words)
    return comparisons
