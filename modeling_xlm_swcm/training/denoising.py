"""mBART's noise on token ids: masked spans of words and permuted sentences.

The method is from Liu et al., 2020 (mBART, arXiv 2001.08210). Su et al. (ACL 2025) use the same values.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import regex
import torch
from transformers import PreTrainedTokenizerBase


# SentencePiece and byte-level BPE mark the start of a word.
WORD_MARKS = ("▁", "Ġ")
# In these scripts without spaces every token is a word. Tibetan is not here: tsheg and shad end its syllables.
UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
SYLLABLE_ENDS = "་༌།༎༏༐༑༔"
SENTENCE_ENDS = ".!?…‥؟۔。！？｡．।॥།༎༏༐༑༔᠃᠉។៕၊။።፧"
# label that the loss ignores
IGNORED = -100
CLOSING = r"[\p{Pe}\p{Pf}\p{Pi}\"'»]"


class TokenTables:
    """
    Boolean tables over a vocabulary that find words and sentences in token ids.

    A word starts at these tokens:

    - a token that begins with "▁",
    - in a WordPiece vocabulary, a token that begins with a letter or digit and not with "##",
    - a token of Chinese, Japanese, Thai, Lao, Khmer or Burmese, unless a lone "▁" precedes it,
    - letters or digits after such a token or after a Tibetan tsheg or shad (a Tibetan word is a syllable),
    - `<unk>`.

    A sentence ends at a token with a full stop, question mark or exclamation mark of its script. Closing quotation
    marks and brackets may follow. A new word must follow, so 3.5 does not end a sentence.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer with the vocabulary.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        prefix = getattr(tokenizer.backend_tokenizer.model, "continuing_subword_prefix", None) or ""
        texts = [tokenizer.convert_tokens_to_string([token.removeprefix(prefix)]).strip() for token in tokens]

        def matches(pattern: str) -> np.ndarray:
            search = regex.compile(pattern).search
            return np.array([search(text) is not None for text in texts])

        self.starts_word = np.array([token.startswith(WORD_MARKS) for token in tokens]) | matches(rf"^{UNSPACED}")
        if prefix:
            self.starts_word |= matches(r"^[\p{L}\p{N}]") & [not token.startswith(prefix) for token in tokens]
        self.starts_word[tokenizer.unk_token_id] = True
        self.is_mark = np.isin(tokens, WORD_MARKS)
        self.ends_word = matches(rf"({UNSPACED}|[{SYLLABLE_ENDS}])$")
        self.is_text = matches(r"^[\p{L}\p{N}]")
        self.ends_sentence = matches(rf"[{regex.escape(SENTENCE_ENDS)}]{CLOSING}*$")
        self.closes = matches(rf"^{CLOSING}+$")
        self.is_special = np.zeros(len(tokens), dtype=bool)
        self.is_special[[i for i in tokenizer.all_special_ids if i != tokenizer.unk_token_id]] = True

    def word_starts(self, ids: np.ndarray) -> np.ndarray:
        """Return the positions of the first token of each word, starting with 0. The shape is (words,)."""
        starts = self.starts_word[ids]
        starts[1:] |= self.ends_word[ids[:-1]] & self.is_text[ids[1:]]
        starts[1:] &= ~self.is_mark[ids[:-1]]
        starts[:1] = True
        return starts.nonzero()[0]

    def sentence_starts(self, ids: np.ndarray, word_starts: np.ndarray) -> np.ndarray:
        """Return the indices of the words that start a sentence, starting with 0. The shape is (sentences,)."""
        ends = self.ends_sentence[ids]
        ends[1:] |= ends[:-1] & self.closes[ids[1:]]
        # Several full stops in a row end one sentence.
        starts = ends[word_starts - 1] & ~ends[word_starts]
        starts[:1] = True
        return starts.nonzero()[0]


def lengths_between(starts: np.ndarray, end: int) -> np.ndarray:
    """Return the distance from each start to the next, and from the last start to `end`."""
    # np.diff is several times slower on short arrays.
    lengths = np.empty_like(starts)
    lengths[:-1] = starts[1:]
    lengths[-1:] = end
    lengths -= starts
    return lengths


def gather_ranges(values: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenate `values[start : start + length]` of all ranges."""
    ends = lengths.cumsum()
    return values[np.arange(ends[-1]) + (starts - ends + lengths).repeat(lengths)]


def pad(rows: Sequence[np.ndarray], value: int) -> torch.Tensor:
    """Pad rows of ids on the right. The shape is (rows, longest row)."""
    padded = np.full((len(rows), max(map(len, rows))), value)
    for row, target in zip(rows, padded, strict=True):
        target[: len(row)] = row
    return torch.from_numpy(padded)


@dataclass
class DataCollatorForDenoising:
    r"""
    Pad a batch, and add mBART's noise to the examples without `labels`.

    The noise permutes sentences and masks spans of words. Examples with `labels` (translation pairs) are only padded,
    so a batch can hold both kinds.

    An example without labels is `{"input_ids": <s> <tag> ... </s>}`, with `"epoch"` if it is read several times. Its
    labels become the clean `<tag> ... </s>`. Special tokens and tags keep their places, and no input gets longer. The
    noise depends only on the ids, `seed` and the epoch.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer with a mask token.
        mask_share (`float`, *optional*, defaults to 0.35):
            Share of the words that are masked, as the mean over many texts.
        span_length (`float`, *optional*, defaults to 3.5):
            Mean length of a masked span in words (Poisson distribution). A span of length 0 inserts a `<mask>`
            between two words.
        permute_sentences (`bool`, *optional*, defaults to `True`):
            Whether to permute the sentences of a text.
        seed (`int`, *optional*, defaults to 0):
            Random seed of the noise.

    Returns:
        `dict[str, torch.Tensor]`: `input_ids` and `attention_mask` of shape (batch, source_len) and `labels` of shape
        (batch, target_len).

    Raises:
        ValueError: if an option is out of range or the tokenizer has no mask token.
    """

    tokenizer: PreTrainedTokenizerBase
    mask_share: float = 0.35
    span_length: float = 3.5
    permute_sentences: bool = True
    seed: int = 0

    def __post_init__(self):
        if not 0 <= self.mask_share <= 1:
            raise ValueError(
                f"mask_share must be between 0 and 1 (got {self.mask_share}). Use a share, for example 0.35."
            )
        if not 0 < self.span_length < math.inf:
            raise ValueError(
                f"span_length must be a finite number above 0 (got {self.span_length}). Use another number."
            )
        self.mask = self.tokenizer.mask_token_id
        if self.mask is None:
            raise ValueError("Denoising needs a <mask> token. Use the tokenizer of a masked language model.")
        self.tables = TokenTables(self.tokenizer)

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        """Return a batch of examples."""
        inputs, labels = zip(*map(self._encode, examples), strict=True)
        input_ids = pad(inputs, self.tokenizer.pad_token_id)
        attention_mask = pad([np.ones_like(ids) for ids in inputs], 0)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": pad(labels, IGNORED)}

    def _encode(self, example: dict) -> tuple[np.ndarray, np.ndarray]:
        ids = np.asarray(example["input_ids"], dtype=np.int64)
        if "labels" in example:
            return ids, np.asarray(example["labels"], dtype=np.int64)
        return self.noise(ids, int(example.get("epoch", 0))), ids[1:]

    def noise(self, ids: np.ndarray, epoch: int = 0) -> np.ndarray:
        """Return ids (int64, of shape (source_len,)) with noise. The result is never longer."""
        key = hashlib.blake2b(ids.tobytes(), digest_size=16, salt=self.seed.to_bytes(8, "little"))
        key.update(epoch.to_bytes(8, "little"))
        rng = np.random.Generator(np.random.Philox(key=np.frombuffer(key.digest(), "<u8")))
        special = self.tables.is_special[ids]
        # Runs of special tokens stay, runs of text get noise.
        starts = [0, *((special[1:] != special[:-1]).nonzero()[0] + 1).tolist()]
        runs = [ids[start:end] for start, end in zip(starts, [*starts[1:], len(ids)], strict=True)]
        return np.concatenate(
            [run if special[start] else self._noise_text(run, rng) for start, run in zip(starts, runs, strict=True)]
        )

    def _noise_text(self, ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        starts = self.tables.word_starts(ids)
        lengths = lengths_between(starts, len(ids))
        if self.permute_sentences:
            sentences = self.tables.sentence_starts(ids, starts)
            if len(sentences) > 1:
                words_in = lengths_between(sentences, len(starts))
                order = rng.permutation(len(sentences))
                words = gather_ranges(np.arange(len(starts)), sentences[order], words_in[order])
                starts, lengths = starts[words], lengths[words]

        # Random rounding gives short texts the requested share on average.
        masked = int(self.mask_share * len(starts) + rng.random())
        if masked == 0:
            return gather_ranges(ids, starts, lengths)
        spans = self._draw_spans(masked, rng)
        # Every order of spans and kept words is equally likely.
        is_span = np.zeros(len(starts) - masked + len(spans), dtype=bool)
        is_span[rng.permutation(len(is_span))[: len(spans)]] = True
        words_taken = np.ones(len(is_span), dtype=np.int64)
        words_taken[is_span] = spans
        first_word = words_taken.cumsum() - words_taken
        # The mask is a word of length 1 in front of the text, so one gather builds the result.
        kept = ~is_span
        word_starts = np.zeros(len(is_span), dtype=np.int64)
        word_lengths = np.ones(len(is_span), dtype=np.int64)
        word_starts[kept] = starts[first_word[kept]] + 1
        word_lengths[kept] = lengths[first_word[kept]]
        return gather_ranges(np.concatenate(([self.mask], ids)), word_starts, word_lengths)

    def _draw_spans(self, masked: int, rng: np.random.Generator) -> np.ndarray:
        """Draw lengths of at most `masked` spans that cover `masked` words, so that no text gets longer."""
        covered = np.minimum(rng.poisson(self.span_length, masked).cumsum(), masked)
        covered[-1] = masked
        spans = covered[: (covered == masked).argmax() + 1].copy()
        spans[1:] -= covered[: len(spans) - 1]
        return spans
