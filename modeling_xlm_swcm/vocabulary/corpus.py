"""Plain text, read line by line, and what a tokenizer makes of it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import regex
from tokenizers import Tokenizer
from transformers.utils import logging

from modeling_xlm_swcm.checkpoints.errors import ConversionError


MAX_LINE_BYTES = 2**20

BATCH_BYTES = 2**20

# a Chinese character, a Tibetan syllable (the tsheg between two is no letter), elsewhere a run of letters and marks
WORD = regex.compile(r"\p{Han}|(?:(?!\p{Han})[\p{L}\p{M}\p{N}])+")


@dataclass(frozen=True)
class Corpus:
    """A UTF-8 text file of one language with a sentence or paragraph a line."""

    path: Path
    language: str

    @classmethod
    def named(cls, name: str) -> "Corpus":
        """`bo=some/file.txt`, or a file named by its language up to the first dot: `bo.news.txt`."""
        language, equals, path = name.partition("=")
        if not equals or Path(name).is_file():
            language, path = Path(name).name.partition(".")[0], name
        if not Path(path).is_file():
            raise ConversionError(f'"{path}" is no file; give one of text.')
        if not language.strip():
            raise ConversionError(f"The language of {path} has no name: give it as bo={path}.")
        return cls(Path(path), language.strip())

    def lines(self) -> Iterator[tuple[str, int]]:
        """The lines that hold text, each with its size in the file."""
        try:
            file = self.path.open("rb")
        except OSError as error:
            raise ConversionError(f"{self.path} cannot be read: {error.strerror}.") from error
        with file:
            for number, raw in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES), b""), start=1):
                if len(raw) == MAX_LINE_BYTES and not raw.endswith(b"\n"):
                    raise ConversionError(
                        f"Line {number} of {self.path} is over a megabyte long; put one sentence or paragraph a line."
                    )
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                except UnicodeDecodeError as error:
                    raise ConversionError(
                        f"Line {number} of {self.path} is not UTF-8; convert the file, for instance with iconv."
                    ) from error
                if "\0" in line:
                    raise ConversionError(f"Line {number} of {self.path} holds NUL bytes; convert the file to UTF-8.")
                if line:
                    yield line, len(raw)


def read_corpora(corpora: list[Corpus], progress: str) -> Iterator[tuple[str, list[str]]]:
    """Batches of lines with their language, under a progress bar.

    Raises:
        ConversionError: a file that holds no text, or is not UTF-8 text in lines.
    """
    with logging.tqdm(
        total=sum(corpus.path.stat().st_size for corpus in corpora), desc=progress, unit="B", unit_scale=True
    ) as bar:
        for corpus in corpora:
            batch, size = [], 0
            for line, line_bytes in corpus.lines():
                if size >= BATCH_BYTES:
                    yield corpus.language, batch
                    bar.update(size)
                    batch, size = [], 0
                batch.append(line)
                size += line_bytes
            if not batch:
                raise ConversionError(f"{corpus.path} holds no text.")
            yield corpus.language, batch
            bar.update(size)


def encode(tokenizer: Tokenizer, lines: list[str]) -> list[list[int]]:
    """The ids of each line without special tokens, on all cores."""
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(lines, add_special_tokens=False)]


@dataclass
class Measure:
    """What a tokenizer makes of some text.

    Attributes:
        tokens: without special tokens.
        tokens_per_line: their mean number in a line.
        fertility: tokens per word, where a word is a Tibetan syllable, a Chinese character, or letters in a row.
        unknown: share of tokens that are `<unk>`.
    """

    tokens: int = 0
    tokens_per_line: float = 0.0
    fertility: float = 0.0
    unknown: float = 0.0


@dataclass
class Comparison:
    """Two tokenizers on the same text of one language; `resegmented` is the share of lines that they cut apart."""

    lines: int = 0
    words: int = 0
    resegmented: float = 0.0
    before: Measure = field(default_factory=Measure)
    after: Measure = field(default_factory=Measure)


def compare(
    before: Tokenizer, after: Tokenizer, old_ids: list[int], unknown: int, corpora: list[Corpus]
) -> dict[str, Comparison]:
    """By language, what two tokenizers make of the same lines.

    Args:
        old_ids: for each id of the second tokenizer that of the first, -1 for none.
        unknown: the first one's id of `<unk>`.
    """
    comparisons: dict[str, Comparison] = {}
    unknown_ids = unknown, old_ids.index(unknown)
    for language, lines in read_corpora(corpora, "Measuring"):
        comparison = comparisons.setdefault(language, Comparison())
        comparison.lines += len(lines)
        comparison.words += sum(1 for line in lines for _ in WORD.finditer(line))
        for old, new in zip(encode(before, lines), encode(after, lines), strict=True):
            comparison.resegmented += old != [old_ids[token] for token in new]
            for measure, tokens, unk in zip(
                (comparison.before, comparison.after), (old, new), unknown_ids, strict=True
            ):
                measure.tokens += len(tokens)
                measure.unknown += tokens.count(unk)
    for comparison in comparisons.values():
        comparison.resegmented /= comparison.lines
        for measure in (comparison.before, comparison.after):
            measure.unknown /= max(1, measure.tokens)
            measure.tokens_per_line = measure.tokens / comparison.lines
            measure.fertility = measure.tokens / max(1, comparison.words)
    return comparisons
