"""One way to cut text of any script into words, for scores that count words."""

import unicodedata

import regex


# `.+?` up to the next word boundary of Unicode Standard Annex 29, not of Python
SEGMENT = regex.compile(r"(?ws).+?\b")
SPOKEN = regex.compile(r"[^\p{Punctuation}\p{Separator}\p{Other}]")


def segment(text: str) -> list[str]:
    """Words and punctuation marks, by the word boundaries of Unicode (UAX 29) in NFKC-normalised text.

    - Tibetan: by syllable; the tsheg parts syllables as a blank parts words, and shad is punctuation.
    - Han, Kana and scripts of South-East Asia, which write no spaces: by character (Katakana by run).
    - Others (Arabic, Cyrillic, Latin, Mongolian ...): by word. Vowel signs, accents, variation selectors and the
      Mongolian vowel separator stay with the letter before them.

    NFKC, because XLM-R's tokenizer normalises what a model reads and writes: full-width forms, Arabic presentation
    forms and no-break spaces (so a Mongolian suffix counts as a word) have to compare equal to what it can write.
    """
    # NFKC makes the no-break tsheg a tsheg
    segments = SEGMENT.findall(unicodedata.normalize("NFKC", text).replace("་", " "))
    return [segment for segment in segments if segment.strip()]


def words(text: str) -> list[str]:
    """What `segment` gives in lower case and without punctuation, unless there is nothing else."""
    segments = segment(text.casefold())
    return [segment for segment in segments if SPOKEN.search(segment)] or segments
