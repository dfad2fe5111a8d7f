"""Segmentation of text in any script into words, for metrics that count words."""

import unicodedata

import regex


# (?w) makes \b the word boundary of Unicode Standard Annex 29, which differs from Python's.
SEGMENT = regex.compile(r"(?ws).+?\b")
SPOKEN = regex.compile(r"[^\p{Punctuation}\p{Separator}\p{Other}]")


def segment(text: str) -> list[str]:
    """
    Split a text into words and punctuation marks, at the word boundaries of Unicode (UAX 29) after NFKC.

    - Tibetan: by syllable. The tsheg separates syllables, and the shad is punctuation.
    - Han, Kana and South-East Asian scripts without spaces: by character (Katakana by run).
    - Other scripts (Arabic, Cyrillic, Latin, Mongolian): by word. Vowel signs, accents, variation selectors and the
      Mongolian vowel separator stay with the letter before them.

    XLM-R's tokenizer normalises with NFKC, so a model cannot generate full-width forms, Arabic presentation forms or
    no-break spaces. After NFKC they compare equal to the forms that it can generate.

    Args:
        text (`str`):
            Text in any script.

    Returns:
        `list[str]`: words and punctuation marks in their order.
    """
    # NFKC turns the no-break tsheg into a tsheg.
    segments = SEGMENT.findall(unicodedata.normalize("NFKC", text).replace("་", " "))
    return [segment for segment in segments if segment.strip()]


def words(text: str) -> list[str]:
    """Split a text into words in lower case, without punctuation unless there is only punctuation."""
    # NFKC can produce capital letters, for example from ℃.
    segments = segment(unicodedata.normalize("NFKC", text).casefold())
    return [segment for segment in segments if SPOKEN.search(segment)] or segments
