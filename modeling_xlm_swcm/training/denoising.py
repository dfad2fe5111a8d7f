"""mBART's noise on token ids: spans of words become `<mask>`, sentences change places.

Source: Liu et al., 2020 (mBART, arXiv 2001.08210), with the values that Su et al., ACL 2025 take over.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import regex
import torch
from transformers import PreTrainedTokenizerBase


WORD_MARKS = ("▁", "Ġ")  # of SentencePiece and of byte-level BPE, at the start of a word
# scripts without spaces: every piece is a word, except in Tibetan, which ends its syllables with a tsheg or shad
UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
SYLLABLE_ENDS = "་༌།༎༏༐༑༔"
SENTENCE_ENDS = ".!?…‥؟۔。！？｡．।॥།༎༏༐༑༔᠃᠉។៕၊။።፧"
IGNORED = -100  # of labels, by the loss
CLOSING = r"[\p{Pe}\p{Pf}\p{Pi}\"'»]"


class PieceTables:
    """What the pieces of a vocabulary say about words and sentences: boolean tables over the ids, made once.

    A word starts at a piece that begins with "▁"; at each piece of Chinese, Japanese, Thai, Lao, Khmer or Burmese that
    no lone "▁" precedes; at letters or digits behind such a piece or behind a Tibetan tsheg or shad, so that a Tibetan
    word is a syllable; and at `<unk>`.
    A sentence ends with a piece that ends with its script's full stop, question or exclamation mark and the quotation
    marks and brackets that close behind it, where a new word follows (not within 3.5).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        texts = [tokenizer.convert_tokens_to_string([piece]).strip() for piece in pieces]

        def matches(pattern: str) -> np.ndarray:
            search = regex.compile(pattern).search
            return np.array([search(text) is not None for text in texts])

        self.starts_word = np.array([piece.startswith(WORD_MARKS) for piece in pieces]) | matches(rf"^{UNSPACED}")
        self.starts_word[tokenizer.unk_token_id] = True
        self.is_mark = np.isin(pieces, WORD_MARKS)
        self.ends_word = matches(rf"({UNSPACED}|[{SYLLABLE_ENDS}])$")
        self.is_text = matches(r"^[\p{L}\p{N}]")
        self.ends_sentence = matches(rf"[{regex.escape(SENTENCE_ENDS)}]{CLOSING}*$")
        self.closes = matches(rf"^{CLOSING}+$")
        self.is_special = np.zeros(len(pieces), dtype=bool)
        self.is_special[[i for i in tokenizer.all_special_ids if i != tokenizer.unk_token_id]] = True

    def word_starts(self, ids: np.ndarray) -> np.ndarray:
        """Where the words of a text start, the first at 0; shape (words,)."""
        starts = self.starts_word[ids]
        starts[1:] |= self.ends_word[ids[:-1]] & self.is_text[ids[1:]]
        starts[1:] &= ~self.is_mark[ids[:-1]]
        starts[:1] = True
        return starts.nonzero()[0]

    def sentence_starts(self, ids: np.ndarray, word_starts: np.ndarray) -> np.ndarray:
        """Which of the words start a sentence, the first word included, as indices of words; shape (sentences,)."""
        ends = self.ends_sentence[ids]
        ends[1:] |= ends[:-1] & self.closes[ids[1:]]
        # several full stops end one sentence
        starts = ends[word_starts - 1] & ~ends[word_starts]
        starts[:1] = True
        return starts.nonzero()[0]


def lengths_between(starts: np.ndarray, end: int) -> np.ndarray:
    """From each start to the next one or, from the last, to `end`; np.diff takes many times as long."""
    lengths = np.empty_like(starts)
    lengths[:-1] = starts[1:]
    lengths[-1:] = end
    lengths -= starts
    return lengths


def gather_ranges(values: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """`values[start : start + length]` for all ranges, one behind the other."""
    ends = lengths.cumsum()
    return values[np.arange(ends[-1]) + (starts - ends + lengths).repeat(lengths)]


def pad(rows: Sequence[np.ndarray], value: int) -> torch.Tensor:
    """Rows of ids, padded on the right; shape (rows, longest row)."""
    padded = np.full((len(rows), max(map(len, rows))), value)
    for row, target in zip(rows, padded, strict=True):
        target[: len(row)] = row
    return torch.from_numpy(padded)


@dataclass
class DataCollatorForDenoising:
    r"""
    Pads a batch, and gives each example without `labels` mBART's noise: its sentences are permuted and its words
    masked in spans. Examples with `labels` (translation pairs) are only padded, so that a batch may hold both.

    An example is `{"input_ids": <s> <tag> ... </s>}`, with `"epoch"` where it is read repeatedly; its labels become
    the clean `<tag> ... </s>`. Special tokens and tags stay in their places, and no input gets longer. The noise is a
    function of the ids, `seed` and epoch alone.

    Args:
        mask_share: of the words of a text, in the mean over many texts.
        span_length: mean of the Poisson distribution of the length of a masked span in words. A span of length 0 puts
            a `<mask>` between two words.
        permute_sentences: whether sentences change places.
        seed: of the noise.

    Returns:
        `input_ids` and `attention_mask` of shape (batch, source_len) and `labels` of shape (batch, target_len).
    """

    tokenizer: PreTrainedTokenizerBase
    mask_share: float = 0.35
    span_length: float = 3.5
    permute_sentences: bool = True
    seed: int = 0

    def __post_init__(self):
        if not 0 <= self.mask_share <= 1:
            raise ValueError(f"mask_share must be between 0 and 1; got {self.mask_share}.")
        if not 0 < self.span_length < math.inf:
            raise ValueError(f"span_length must be above 0; got {self.span_length}.")
        self.mask = self.tokenizer.mask_token_id
        if self.mask is None:
            raise ValueError("Denoising needs a <mask> token, and the tokenizer has none.")
        self.tables = PieceTables(self.tokenizer)

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        inputs, labels = zip(*map(self._prepare, examples), strict=True)
        input_ids = pad(inputs, self.tokenizer.pad_token_id)
        attention_mask = pad([np.ones_like(ids) for ids in inputs], 0)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": pad(labels, IGNORED)}

    def _prepare(self, example: dict) -> tuple[np.ndarray, np.ndarray]:
        ids = np.asarray(example["input_ids"], dtype=np.int64)
        if "labels" in example:
            return ids, np.asarray(example["labels"], dtype=np.int64)
        return self.noise(ids, int(example.get("epoch", 0))), ids[1:]

    def noise(self, ids: np.ndarray, epoch: int = 0) -> np.ndarray:
        """The ids (int64, of shape (source_len,)) with noise; at most as many."""
        key = hashlib.blake2b(ids.tobytes(), digest_size=16, salt=self.seed.to_bytes(8, "little"))
        key.update(epoch.to_bytes(8, "little"))
        rng = np.random.Generator(np.random.Philox(key=np.frombuffer(key.digest(), "<u8")))
        special = self.tables.is_special[ids]
        # runs of special tokens, which stay, and of text, which gets noise
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

        # rounded at random, so that short texts have the asked share in the mean
        masked = int(self.mask_share * len(starts) + rng.random())
        if masked == 0:
            return gather_ranges(ids, starts, lengths)
        spans = self._draw_spans(masked, rng)
        # an arrangement of the spans and of the words that stay, each as likely as any other
        is_span = np.zeros(len(starts) - masked + len(spans), dtype=bool)
        is_span[rng.permutation(len(is_span))[: len(spans)]] = True
        words_taken = np.ones(len(is_span), dtype=np.int64)
        words_taken[is_span] = spans
        first_word = words_taken.cumsum() - words_taken
        # a place in front of the text holds the mask, as a word of length 1
        kept = ~is_span
        word_starts = np.zeros(len(is_span), dtype=np.int64)
        word_lengths = np.ones(len(is_span), dtype=np.int64)
        word_starts[kept] = starts[first_word[kept]] + 1
        word_lengths[kept] = lengths[first_word[kept]]
        return gather_ranges(np.concatenate(([self.mask], ids)), word_starts, word_lengths)

    def _draw_spans(self, masked: int, rng: np.random.Generator) -> np.ndarray:
        """Lengths of spans that cover `masked` words; at most as many spans, so that no text gets longer."""
        covered = np.minimum(rng.poisson(self.span_length, masked).cumsum(), masked)
        covered[-1] = masked
        spans = covered[: (covered == masked).argmax() + 1].copy()
        spans[1:] -= covered[: len(spans) - 1]
        return spans
