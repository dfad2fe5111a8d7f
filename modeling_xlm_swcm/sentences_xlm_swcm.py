"""Split texts into sentences that fit a model, and join the outputs in the same way.

The rules need no language, because they read mostly marks and few words. This file travels with models and
with exported models, so it imports only the standard library.
"""

import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import NamedTuple, TypeVar


K = TypeVar("K")

LINE = re.compile("[^\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+")
# Texts between tabs, and between the bars of a Markdown table. A backslash before a bar makes it part of the text.
FIELD = re.compile("[^\t]+")
CELL = re.compile(r"(?:\\\||[^|\t])+")
WORD = re.compile(r"[^\W_]")
ALPHABETIC = re.compile(r"[^\W\d_]")
LETTER = re.compile(r"\s*(?:[-–—]+\s*)?[\"“«‘„(]?([^\W\d_])")

# Marks of lists, headings and quotations at the start of a line.
MARKER = re.compile(
    r"\s*(?:>\s*)*(?:(?:[-*+] \[[ xX]\]|[-*+•◦▪●○■□·–—]|#{1,6}|\(?\d{1,3}[.)]|\(?[A-Za-z]\)|[①-⒛])(?:\s+|$)"
    # Several letters with full stops are an abbreviation.
    r"|[a-z]\.\s+(?!\w\.)"
    r"|\d{1,3}(?:、|\.(?=[㐀-鿿]))|[①-⒛])?"
)

CLOSING = "\"'”’»›)]}」』）】》〉"
CLOSINGS = f"[{re.escape(CLOSING)}]*"
# A straight quotation mark can also open the next sentence.
CURVED = f"[{re.escape(CLOSING[2:])}]*"
QUOTE = re.compile('["“”]')
# A mark that is left of a quotation: the next mark closes the quotation.
OPENING_QUOTE = re.compile(r'["“](?:[^"“”]*”|[^"“”]*["“]\s)')
SHAD = "[།༎༏༐༑༔]"
# The lookbehinds start a match at the first of several marks, so the search takes linear time.
END = re.compile(
    # These marks also stand in numbers and addresses, so a space must follow.
    rf"(?<![.!?…؟۔։])[.!?…؟۔։]+(?:\s[”»]|{CLOSINGS[:-1]}|[“‘])*(?=\s)"
    # Chinese and Japanese have no spaces.
    rf"|(?<![!?])[!?]+{CURVED}(?=[\"“]?[぀-ヿ㐀-鿿])"
    rf"|[。！？｡।॥።፧፨။។៕᠃᠉᱾᱿꫰꫱꯫]+{CURVED}"
    rf"|(?<!{SHAD}){SHAD}(?:\s*{SHAD})*{CLOSINGS}(?=\s)"
    # Tibetan has no shad after the letter ga. Some writers leave it out after the particle of a question.
    rf"|(?<=ག){CLOSINGS}(?=\s)"
    rf"|(?<=ག་གམ|ང་ངམ|ད་དམ|ན་ནམ|བ་བམ|མ་མམ|ར་རམ|ས་སམ)་?{CLOSINGS}(?=\s)"
)

# What follows a mark inside a sentence: another mark, or a verb of speech after a quotation.
QUOTED = re.compile('["“”’»」』]$')
SAME_SENTENCE = re.compile(r"\s*(?:[,;:.!?…，。、；：！？،؛؟)\]）」』]|[”»](?=[\s,;:.!?…،؛؟])|(?:ཅེས|ཞེས)(?![ཀ-ྼ]))")
SPEECH = re.compile(r"\s*(?:دې|دەپ|ཞེས|ཅེས|[^，。：！？]{0,15}?(?:[说道问]，|(?:[说道问称]|表示|补充)。))")

# Words before a full stop that do not end a sentence, and words that do not end a sentence if a number follows.
START = r"(?<![^\s(\[\"'“‘«„/–—、，་-])"
ABBREVIATION = re.compile(
    # Initials, abbreviations with several full stops, titles and units.
    rf"{START}(?:[^\W\d_]|(?:[^\W\d_]\.)+[^\W\d_]{{1,2}}|vs|cf|[Aa]pprox|"
    "Mr|Mrs|Ms|Dr|Prof|Rev|Gen|Sens?|Reps?|Gov|Capt|Lt|Col|Sgt|Det|Maj|Adm|St|Mt|Hon|Supt|"
    "млн|млрд|трлн|тыс|обл|ул|проф|акад|доц|инж|руб|жж|гг|ғғ|тг|төг)$"
)
NUMBERED = re.compile(
    rf"{START}(?:Nos?|Rs|pp?|[Vv]ol|Figs?|Art|Sec|Ch|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)$"
)

# Tibetan words and particles that end a clause and not a sentence.
CLAUSE_END = re.compile(
    r"(?<![ཀ-ྼ])(?:གི|ཀྱི|གྱི|ཡི|འི|གིས|ཀྱིས|གྱིས|ཡིས|ལ|ན|སུ|ཏུ|དུ|རུ|ནས|ལས|དང|ཏེ|སྟེ|ཞིང|ཅིང|ཤིང|པས|བས|པར|བར|པའི|བའི|ཀྱང|"
    "ཡང|འང|ནི|མོད|རུང|རྒྱུར|སྐབས|རྗེས|དོན|ལྟར|ཐོག|འོག|ནང|ཚེ|དུས|ཟད|ཉིན|དེར|དེ་རིང|ད་དུང|གཉིས་ཀ|[ཀ-ྼ]+འི)་?$"
)

# Places where a sentence that is too long can be cut.
CLAUSE = re.compile(rf"(?<![,;:–—])[,;:–—]+{CLOSINGS}\s+|[，、；：،؛᠂᠈]+{CLOSINGS}\s*|{SHAD}+\s*")
SPACE = re.compile(r"\s+|་")

# Maximum number of logits in a generation step, 1 GiB in float32.
MAX_LOGITS = 2**28

# Letters of Chinese and Japanese.
UNSPACED = re.compile("[぀-ヿ㐀-鿿豈-﫿\U00020000-\U0003ffff]")


class Output(NamedTuple):
    """A generated text, the mean log probability of its tokens and the number of these tokens, if they are known."""

    text: str
    score: float | None = None
    num_tokens: int = 0


def split_texts(
    texts: Iterable[str],
    count_tokens: Callable[[list[str]], list[int]],
    limit: int,
    warn: Callable[[int, str], object],
) -> list[list[str]]:
    """
    Split each text into sentences of at most `limit` tokens.

    A sentence ends at a line break, a tab or the end of a table cell. A cell without letters stays as it is. A
    sentence that is too long is cut at commas, or else between words, or else between characters.

    Args:
        texts (`Iterable[str]`):
            Texts in any language.
        count_tokens (`Callable`):
            Function that returns the number of tokens of each sentence in a list.
        limit (`int`):
            Maximum number of tokens of a sentence.
        warn (`Callable`):
            Function that gets the index of the text and a message for each sentence that is cut.

    Returns:
        `list[list[str]]`: the parts of each text. Sentences have odd indices. The spaces, line breaks and list markers
        around them have even indices. Joined, the parts are the text.
    """
    documents = [split_sentences(text) for text in texts]
    sentences = list_sentences(documents)
    lengths = iter(count_tokens(sentences) if sentences else [])
    return [
        cut_long_sentences(index, parts, list(itertools.islice(lengths, len(parts) // 2)), count_tokens, limit, warn)
        for index, parts in enumerate(documents)
    ]


def cut_long_sentences(index: int, parts: list[str], lengths: list[int], count_tokens, limit: int, warn) -> list[str]:
    """Return the parts of a text with all sentences cut to `limit` tokens."""
    fitting = parts[:1]
    for sentence, length, gap in zip(parts[1::2], lengths, parts[2::2], strict=True):
        pieces = [sentence]
        if length > limit:
            pieces = cut(sentence, lambda piece: count_tokens([piece])[0] <= limit)
            warn(
                index,
                f"A sentence has {length} tokens, but the maximum is {limit}. It is cut into {len(pieces[::2])} "
                f"parts. Shorten it, or add full stops. It starts with {sentence[:60]!r}.",
            )
        fitting += [*pieces, gap]
    return fitting


def list_sentences(documents: list[list[str]]) -> list[str]:
    """Return the sentences of all texts, from the parts that [`split_texts`] returns."""
    return [sentence for parts in documents for sentence in parts[1::2]]


def join_texts(documents: list[list[str]], outputs: Iterable[str]) -> list[str]:
    """
    Join the outputs for the sentences of each text in the same way as the sentences.

    If a text has no space between two sentences, their outputs get a space. Chinese and Japanese outputs get none.

    Args:
        documents (`list[list[str]]`):
            Parts of each text, from [`split_texts`].
        outputs (`Iterable[str]`):
            One output for each sentence, in the order of [`list_sentences`].

    Returns:
        `list[str]`: the outputs of each text, with the spaces, line breaks and list markers of the text.
    """
    remaining, texts = iter(outputs), []
    for parts in documents:
        gaps, sentences = parts[::2], list(itertools.islice(remaining, len(parts) // 2))
        for number, (left, right) in enumerate(itertools.pairwise(sentences), 1):
            gaps[number] = gaps[number] or needs_space(left, right) * " "
        texts.append(gaps[0] + "".join(sentence + gap for sentence, gap in zip(sentences, gaps[1:], strict=True)))
    return texts


def join_outputs(documents: list[list[str]], outputs: Iterable[Output]) -> list[Output]:
    """
    Join the outputs for the sentences of each text: texts as in [`join_texts`], scores as a mean over all tokens.

    Args:
        documents (`list[list[str]]`):
            Parts of each text, from [`split_texts`].
        outputs (`Iterable[Output]`):
            One output for each sentence, in the order of [`list_sentences`].

    Returns:
        `list[Output]`: one output for each text.
    """
    outputs = list(outputs)
    texts, remaining, joined = join_texts(documents, [output.text for output in outputs]), iter(outputs), []
    for text, parts in zip(texts, documents, strict=True):
        sentences = list(itertools.islice(remaining, len(parts) // 2))
        total = sum((output.score or 0) * output.num_tokens for output in sentences if output.num_tokens)
        tokens = sum(output.num_tokens for output in sentences)
        joined.append(Output(text, total / tokens if tokens else None, tokens))
    return joined


def needs_space(left: str, right: str) -> bool:
    """Return True if a space belongs between two sentences."""
    words = WORD.search(left[::-1]), WORD.search(right)
    return all(word is not None and not UNSPACED.match(word.group()) for word in words)


def batches_by_length(
    rows: Mapping[K, Sized], batch_tokens: int, sequences: int = 1, vocab_size: int = 1
) -> Iterator[list[K]]:
    """
    Yield batches of keys, longest rows first.

    Args:
        rows (`Mapping`):
            Token ids by key.
        batch_tokens (`int`):
            Maximum size of a batch in tokens, with padding, times `sequences`. A longer row is a batch.
        sequences (`int`, *optional*, defaults to 1):
            Number of sequences that are generated for a row: beams or samples.
        vocab_size (`int`, *optional*, defaults to 1):
            Number of logits of a sequence in a generation step. A batch has at most `MAX_LOGITS`. A row with more
            logits is a batch.

    Yields:
        `list`: keys of the rows of a batch.
    """
    batch: list[K] = []
    for key in sorted(rows, key=lambda key: -len(rows[key])):
        size = (len(batch) + 1) * sequences
        if batch and (size * len(rows[batch[0]]) > batch_tokens or size * vocab_size > MAX_LOGITS):
            yield batch
            batch = []
        batch.append(key)
    if batch:
        yield batch


def split_sentences(text: str) -> list[str]:
    """Split a text into sentences of any length. Return its parts as [`split_texts`] does."""
    parts, place = [], 0
    for cell in find_cells(text):
        for start, stop in find_sentences(cell.group()):
            parts += [text[place : cell.start() + start], text[cell.start() + start : cell.start() + stop]]
            place = cell.start() + stop
    return [*parts, text[place:]]


def find_cells(text: str) -> Iterator[re.Match]:
    """Yield the lines of a text. A line with tabs and the row of a table are yielded as their cells."""
    for line in LINE.finditer(text):
        marker = MARKER.match(line.group())
        is_row = marker is not None and line.group().startswith("|", marker.end())
        cells = list((CELL if is_row else FIELD).finditer(text, *line.span()))
        # A model makes up words for a number alone.
        yield from (cell for cell in cells if ALPHABETIC.search(cell.group()) or not is_row and len(cells) == 1)


def find_sentences(line: str) -> Iterator[tuple[int, int]]:
    """Yield start and end of each sentence of a line. Each sentence has a letter or digit."""
    marker = MARKER.match(line)
    start, stop = marker.end() if marker else 0, len(line.rstrip())
    last = next((place for place in range(stop, start, -1) if WORD.match(line, place - 1)), start)
    word = WORD.search(line, start)
    for place in [*find_ends(line, start, last), stop]:
        if word and word.start() < place:
            yield start + len(line[start:place]) - len(line[start:place].lstrip()), place
            start, word = place, WORD.search(line, place)


def find_ends(line: str, start: int, last: int) -> Iterator[int]:
    """Yield the places before `last` where a sentence ends, after its marks."""
    is_quoted = False
    for end in END.finditer(line, start):
        place = end.end()
        for quote in QUOTE.findall(line, start, place):
            # Some writers close a quotation with an opening mark.
            is_quoted = not is_quoted and quote != "”"
        if is_quoted and QUOTE.match(line, place) and not OPENING_QUOTE.match(line, place):
            place, is_quoted = place + 1, False
        start = place
        if place < last and is_end(line, end.start(), place):
            yield place


def is_end(line: str, start: int, place: int) -> bool:
    """Return True if a sentence ends at the marks between two places."""
    mark, before, after = line[start:place], line[max(0, start - 40) : start], line[place : place + 40]
    letter = LETTER.match(after)
    # Georgian has capitals, but not at the start of a sentence.
    is_small = letter is not None and letter.group(1) != letter.group(1).title()
    if is_small or SAME_SENTENCE.match(after) or QUOTED.search(mark) and SPEECH.match(after):
        return False
    if mark == ".":
        is_before_number = after.lstrip()[:1].isdigit()
        return not (ABBREVIATION.search(before) or is_before_number and NUMBERED.search(before))
    return not CLAUSE_END.search(before)


def cut(sentence: str, fits: Callable[[str], bool]) -> list[str]:
    """Cut a sentence until all parts fit. Parts have even indices, and the spaces between them have odd indices."""
    if fits(sentence) or len(sentence) < 2:
        return [sentence]
    place = find_cut_place(sentence)
    left, right = sentence[:place].rstrip(), sentence[place:].lstrip()
    return [*cut(left, fits), sentence[len(left) : len(sentence) - len(right)], *cut(right, fits)]


def find_cut_place(sentence: str) -> int:
    """Return the place nearest to the middle where a sentence can be cut: a comma, or else a space, or else any."""
    words = [word.start() for word in WORD.finditer(sentence)] or [0]
    for pattern in (CLAUSE, SPACE):
        # Both parts have a letter or digit.
        places = [end.end() for end in pattern.finditer(sentence) if words[0] < end.end() <= words[-1]]
        if places:
            return min(places, key=lambda place: abs(2 * place - len(sentence)))
    middle = len(sentence) // 2
    return next((place for place in range(middle, 0, -1) if not is_mark(sentence[place])), middle)


def is_mark(character: str) -> bool:
    """Return True if a character belongs to the character before it."""
    return unicodedata.category(character).startswith("M")
