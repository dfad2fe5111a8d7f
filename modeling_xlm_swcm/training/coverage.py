"""Measure how well a vocabulary covers the texts of each language: unknown tokens and rewritten characters."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from transformers.utils import logging

from modeling_xlm_swcm import XLMSWCMTokenizer
from modeling_xlm_swcm.checkpoints.errors import escape_unprintable

from .rows import DataError


logger = logging.get_logger(__name__)

MAX_UNK_SHARE = 0.1
# If a corpus names its number of examples, only this number of examples is checked before training.
SAMPLED_EXAMPLES = 1000
# Number of characters that a message names, and maximum length of its example.
NAMED_CHARACTERS = 5
EXAMPLE_LENGTH = 60


@dataclass
class TextCount:
    """Counts over some texts of a language."""

    texts: int = 0
    tokens: int = 0
    unknown: int = 0
    empty: int = 0
    example: str = ""
    rewritten: Counter[str] = field(default_factory=Counter)

    @property
    def unk_share(self) -> float:
        """Share of the tokens that are `<unk>`."""
        return self.unknown / max(self.tokens, 1)


class Coverage:
    """
    Count the unknown tokens and rewritten characters in the texts of each language.

    Args:
        tokenizer ([`XLMSWCMTokenizer`]):
            Tokenizer of the model.
        max_unk_share (`float`, *optional*, defaults to 0.1):
            Maximum share of `<unk>` among the tokens of a language.
    """

    def __init__(self, tokenizer: XLMSWCMTokenizer, max_unk_share: float = MAX_UNK_SHARE):
        self.unknown, self.max_unk_share = tokenizer.unk_token_id, max_unk_share
        self.normalizer = tokenizer.backend_tokenizer.normalizer
        self.counts: dict[str, TextCount] = defaultdict(TextCount)
        self.normalized: dict[str, str] = {}

    def add(self, texts: str, text: str | tuple[str, ...], ids: Sequence[int]):
        """
        Count a text.

        Args:
            texts (`str`):
                Kind and language of the text, for example "targets in bo".
            text (`str` or `tuple[str, ...]`):
                The text, or the parts of a source.
            ids (`Sequence[int]`):
                Token ids of the text, without special tokens.
        """
        text = text if isinstance(text, str) else " ".join(text)
        count, unknown = self.counts[texts], ids.count(self.unknown)
        count.texts += 1
        count.tokens += len(ids)
        count.unknown += unknown
        count.empty += not ids
        if unknown and not count.example:
            example = text if len(text) <= EXAMPLE_LENGTH else f"{text[:EXAMPLE_LENGTH]}..."
            count.example = escape_unprintable(example)
        if self.normalizer is not None:
            count.rewritten.update(character for character in text if self._normalize(character) != character)

    def _normalize(self, character: str) -> str:
        if character not in self.normalized:
            # All white space becomes a space, which is not worth a message.
            is_space = character.isspace()
            self.normalized[character] = character if is_space else self.normalizer.normalize_str(character)
        return self.normalized[character]

    def report(self):
        """
        Log unknown tokens, rewritten characters and texts without tokens.

        Raises:
            DataError: if a language has a larger share of `<unk>` than `max_unk_share`.
        """
        self.log()
        for texts, count in self.counts.items():
            if count.unk_share > self.max_unk_share:
                raise DataError(
                    f"{count.unk_share:.1%} of the tokens of the {texts} are <unk>, more than --max_unk_share "
                    f'{self.max_unk_share:g} (example: "{count.example}"). Add the missing characters to the '
                    "vocabulary with xlm-swcm vocab extend, or pass a larger --max_unk_share."
                )

    def describe(self) -> dict[str, float]:
        """Return the share of `<unk>` among the tokens of each kind of text, for the model card."""
        return {f"unk_share ({texts})": round(count.unk_share, 6) for texts, count in sorted(self.counts.items())}

    def log(self):
        """Log unknown tokens, rewritten characters and texts without tokens, only in the first process."""
        if os.environ.get("RANK", "0") == "0":
            for message in self.messages():
                logger.warning(message)

    def messages(self) -> Iterator[str]:
        """Yield a sentence for each problem in the texts of a language."""
        for texts, count in self.counts.items():
            if count.unknown:
                share = f"{count.unk_share:.2%}" if count.unk_share >= 0.0001 else "Less than 0.01%"
                yield f'{share} of the tokens of the {texts} are <unk> (example: "{count.example}").'
            if count.rewritten:
                examples = ", ".join(
                    f"{ascii(character) if not character.isprintable() else character} -> "
                    f"{self._normalize(character) or 'nothing'} ({number} x)"
                    for character, number in count.rewritten.most_common(NAMED_CHARACTERS)
                )
                number = "1 character" if len(count.rewritten) == 1 else f"{len(count.rewritten)} characters"
                yield f"The tokenizer rewrites {number} of the {texts}: {examples}."
            if count.empty:
                yield f"{count.empty} of the {count.texts} {texts} have no token."


def check_unk_share(share: float):
    """
    Check the option --max_unk_share.

    Raises:
        DataError: if it is not between 0 and 1.
    """
    if not 0 <= share <= 1:
        raise DataError(f"--max_unk_share must be between 0 and 1 (got {share:g}). Use a share, for example 0.1.")
