"""Encourage the target terms of a glossary in generated texts.

Transformers 5 has no constrained beam search, so no term can be forced. A bias on the scores of tokens makes the terms
more probable.
"""

import itertools
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase


DEFAULT_STRENGTH = 2.0
# Lower-case letters of Latin, Greek, Cyrillic and Armenian. Their words begin after a space or a mark.
CASED = "[a-zß-ɏͰ-֏Ḁ-῿]"
TSHEG = "་"
# Contexts of a term that can change its tokens: the start of a text, a space before it, and a mark before it.
CONTEXTS = ("", ", ", "(")


class Term(NamedTuple):
    """
    A target term.

    Args:
        target (`str`):
            The term.
        form (`str`):
            The term as the tokenizer decodes it, without spaces and differences of case.
        variants (`list[list[int]]`):
            Token ids of the term in several contexts.
    """

    target: str
    form: str
    variants: list[list[int]]


class Terms:
    """
    Target terms for source terms.

    Args:
        terms (`Mapping[str, str]`, `str` or `PathLike`):
            Target term of each source term, or a UTF-8 file with a source term, a tab and a target term in each line.
        tokenizer (`PreTrainedTokenizerBase`):
            Tokenizer of the model.

    Raises:
        ValueError: if a term or a line of the file cannot be used, or the file cannot be read.
    """

    def __init__(self, terms: Mapping[str, str] | str | PathLike, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.terms: dict[str, Term] = {}
        for place, source, target in read_terms(terms):
            if simplify(source) in self.terms:
                raise ValueError(f'{place}: the source term "{source}" is given twice. Keep one of its target terms.')
            self.terms[simplify(source)] = make_term(place, target.rstrip(TSHEG) or target, tokenizer)
        if not self.terms and not isinstance(terms, Mapping):
            raise ValueError(f"{terms} has no terms. Write a source term, one tab and a target term in each line.")
        # Of terms with the same start, the longest counts.
        sources = sorted(self.terms, key=len, reverse=True)
        pattern = "|".join(f"(?<!{CASED})" * bool(re.match(CASED, source)) + re.escape(source) for source in sources)
        self.pattern = re.compile(pattern or "(?!)")

    def find(self, text: str) -> torch.Tensor:
        """Return a mask of the terms that a source text has, of shape `(1, num_terms)`."""
        found = set(self.pattern.findall(simplify(text)))
        return torch.tensor([source in found for source in self.terms], dtype=torch.bool)[None]

    def list_missing(self, found: torch.Tensor, text: str) -> list[str]:
        """Return the target terms that a generated text lacks. `found` is a row of [`Terms.find`]."""
        return [term.target for term in self._select(found) if term.form not in squeeze(text)]

    def _select(self, found: torch.Tensor) -> list[Term]:
        return list(itertools.compress(self.terms.values(), found.tolist()))

    def processors(self, found: torch.Tensor, strength: float | None = None) -> LogitsProcessorList:
        """
        Return the processors of `generate` that encourage the terms of each source.

        Args:
            found (`torch.Tensor` of shape `(batch_size, num_terms)`):
                Terms of each source, from [`Terms.find`].
            strength (`float`, *optional*, defaults to 2.0):
                Bias of a term's tokens, in nats.

        Returns:
            `LogitsProcessorList`: one processor, or none if no source has a term.
        """
        strength = check_strength(DEFAULT_STRENGTH if strength is None else strength)
        if not found.any():
            return LogitsProcessorList()
        terms = [self._select(row) for row in found]
        return LogitsProcessorList([TermsLogitsProcessor(terms, strength, self.tokenizer)])


class TermsLogitsProcessor(LogitsProcessor):
    """
    Add a bias to the tokens of terms that a text does not have yet.

    The score of a token that begins or continues a term grows by `strength`. If a text has begun a term, all other
    tokens lose the bias that the begun term got. So a beam keeps only the bias of whole terms.

    Args:
        terms (`list[list[Term]]`):
            Terms of each source.
        strength (`float`):
            Bias of a token, in nats.
        tokenizer (`PreTrainedTokenizerBase`):
            Tokenizer of the model, to find the terms that a text has.
    """

    def __init__(self, terms: list[list[Term]], strength: float, tokenizer: PreTrainedTokenizerBase):
        self.terms, self.strength, self.tokenizer = terms, strength, tokenizer

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores of next tokens with the bias."""
        scores = scores.clone()
        beams = len(input_ids) // len(self.terms)
        for row, ids in enumerate(input_ids.tolist()):
            if variants := self._missing_variants(ids, self.terms[row // beams]):
                begun, lengths = measure_progress(ids, variants)
                gains = torch.tensor(list(lengths.values()), device=scores.device, dtype=scores.dtype)
                scores[row] -= self.strength * begun
                scores[row, list(lengths)] += self.strength * gains
        return scores

    def _missing_variants(self, ids: list[int], terms: list[Term]) -> list[list[int]]:
        """Return the token ids of the terms that a text does not have."""
        text = decode(ids, self.tokenizer) if terms else ""
        return [variant for term in terms if term.form not in text for variant in term.variants]


def measure_progress(ids: list[int], variants: list[list[int]]) -> tuple[int, dict[int, int]]:
    """
    Return the length of the begun term at the end of a text, and the length that each next token would give it.

    Lengths are in tokens. A next token that neither begins nor continues a term is left out.
    """
    matches = [
        (length, variant[length])
        for variant in variants
        for length in range(min(len(variant), len(ids) + 1))
        if ids[len(ids) - length :] == variant[:length]
    ]
    begun = max((length for length, _ in matches), default=0)
    # A term that begins again inside a begun term would get its bias at every step.
    return begun, {token: length + 1 for length, token in sorted(matches) if length or not begun}


def read_terms(terms: Mapping[str, str] | str | PathLike) -> Iterator[tuple[str, str, str]]:
    """Yield place, source term and target term of each term."""
    if isinstance(terms, Mapping):
        for source, target in terms.items():
            if not (isinstance(source, str) and isinstance(target, str) and source.strip() and target.strip()):
                raise ValueError(f"terms has the item {source!r}: {target!r}. Pass two texts that are not empty.")
            yield "terms", source.strip(), target.strip()
        return
    if not isinstance(terms, str | PathLike):
        raise ValueError(f"terms is of type {type(terms).__name__}. Pass a dict or the path of a file.")
    try:
        lines = Path(terms).read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError as error:
        raise ValueError(f"The terms file {terms} does not exist. Check the path.") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"The terms file {terms} cannot be read. Pass a UTF-8 text file.") from error
    for number, line in enumerate(lines, 1):
        fields = [field.strip() for field in line.split("\t")]
        if fields == [""]:
            continue
        if len(fields) != 2 or not all(fields):
            found = line.rstrip("\r")
            raise ValueError(
                f"{terms}:{number} is {found!r}. Write a source term, one tab and a target term in each line."
            )
        yield f"{terms}:{number}", fields[0], fields[1]


def make_term(place: str, target: str, tokenizer: PreTrainedTokenizerBase) -> Term:
    """Return a target term with its tokens in several contexts."""
    # In Tibetan, the last token of a word usually has the tsheg after the word.
    endings = ("", TSHEG) if re.search(r"[ཀ-ྼ]$", target) else ("",)
    contexts = [context for context in CONTEXTS for _ in endings]
    texts = [context + target + ending for context in CONTEXTS for ending in endings]
    texts += [context.rstrip() for context in contexts]
    encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    variants: list[list[int]] = []
    for ids, before in zip(encoded[: len(contexts)], encoded[len(contexts) :], strict=True):
        # A token can also join the context and the term. Then the context is left out.
        if ids[: len(before)] == before and ids[len(before) :] not in variants:
            variants.append(ids[len(before) :])
    if not variants[0] or tokenizer.unk_token_id in variants[0]:
        raise ValueError(f'{place}: the tokenizer reads the target term "{target}" as <unk>. Remove the term.')
    if len(variants[0]) > tokenizer.model_max_length:
        raise ValueError(
            f"{place}: the target term has {len(variants[0])} tokens, but the model has at most "
            f"{tokenizer.model_max_length}. Remove the term."
        )
    return Term(target, decode(variants[0], tokenizer), variants)


def decode(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text of token ids, in the form in which terms are compared."""
    return squeeze(tokenizer.batch_decode([ids], skip_special_tokens=True)[0])


def squeeze(text: str) -> str:
    """Return a text as [`simplify`] does, without spaces. Some tokenizers decode other spaces than they read."""
    return simplify(text).replace(" ", "")


def simplify(text: str) -> str:
    """Return a text without differences of case and compatibility characters, with single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def check_strength(strength: float) -> float:
    """Return a strength, or refuse a value that is not a positive number."""
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 < strength < math.inf:
        raise ValueError(f"terms_strength must be a number above 0 (got {strength!r}). Use another number.")
    return float(strength)
