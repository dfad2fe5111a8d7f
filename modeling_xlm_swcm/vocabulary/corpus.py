"""Read text files line by line and measure how tokenizers segment them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import regex
from tokenizers import Tokenizer
from transformers.utils import logging

from modeling_xlm_swcm.checkpoints.errors import ConversionError


MAX_LINE_BYTES = 2**20

BATCH_BYTES = 2**20

# A word is a Chinese character, a Tibetan syllable or a run of letters and marks.
# The tsheg between two Tibetan syllables is not a letter, so it ends a run.
WORD = regex.compile(r"\p{Han}|(?:(?!\p{Han})[\p{L}\p{M}\p{N}])+")


@dataclass(frozen=True)
class Corpus:
    """A UTF-8 text file in one language, with one sentence or paragraph per line."""

    path: Path
    language: str

    @classmethod
    def parse(cls, argument: str) -> "Corpus":
        """
        Parse a command-line argument.

        Args:
            argument (`str`): `bo=some/file.txt`, or a file whose name starts with its language: `bo.news.txt`.

        Returns:
            `Corpus`: The text file and its language.

        Raises:
            ConversionError: if the file does not exist or the language is empty.
        """
        language, equals, path = argument.partition("=")
        if not equals or Path(argument).is_file():
            language, path = Path(argument).name.partition(".")[0], argument
        if not Path(path).is_file():
            problem = "is not a file" if Path(path).exists() else "does not exist"
            raise ConversionError(f'"{path}" {problem}. Pass a UTF-8 text file.')
        if not language.strip():
            raise ConversionError(f"The language of {path} is missing. Pass it before the path: bo={path}.")
        return cls(Path(path), language.strip())

    def lines(self) -> Iterator[tuple[str, int]]:
        """Yield each line that has text, with its size in bytes."""
        try:
            file = self.path.open("rb")
        except OSError as error:
            raise ConversionError(f"Cannot read {self.path}: {error.strerror}. Check the file.") from error
        with file:
            for number, raw in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES), b""), start=1):
                if len(raw) == MAX_LINE_BYTES and not raw.endswith(b"\n"):
                    raise ConversionError(
                        f"Line {number} of {self.path} is longer than 1 MiB. Write one sentence or paragraph per line."
                    )
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                except UnicodeDecodeError as error:
                    raise ConversionError(
                        f"Line {number} of {self.path} is not UTF-8. Convert the file, for example with iconv."
                    ) from error
                if "\0" in line:
                    raise ConversionError(
                        f"Line {number} of {self.path} contains NUL bytes. Convert the file to UTF-8."
                    )
                if line:
                    yield line, len(raw)


def read_corpora(corpora: list[Corpus], progress: str) -> Iterator[tuple[str, list[str]]]:
    """
    Yield batches of lines with their language and show a progress bar.

    Args:
        corpora (`list[Corpus]`): The text files.
        progress (`str`): Label of the progress bar.

    Raises:
        ConversionError: if a file has no text, is not UTF-8 or has a line that is too long.
    """
    with logging.tqdm(
        total=sum(corpus.path.stat().st_size for corpus in corpora), desc=progress, unit="B", unit_scale=True
    ) as bar:
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
        corpora (`list[Corpus]`): The text files.

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
