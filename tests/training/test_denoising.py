"""mBART's noise: masked spans, permuted sentences, word and sentence boundaries, and repeatability."""

import copy
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.encoders import special
from transformers import XLMRobertaTokenizer

from modeling_xlm_swcm import XLMSWCMTokenizer
from modeling_xlm_swcm.training import DataCollatorForDenoising


LANGUAGES = ["bo", "en", "zh"]
# Every third token continues a word, and one word in ten ends a sentence.
TOKENS = [
    f"{'' if number % 3 == 2 else '▁'}w{number}{'.' if number % 30 in (10, 21) else ''}" for number in range(1000)
]


def make_tokenizer(*tokens: str) -> XLMSWCMTokenizer:
    vocab = special("<s>", "<pad>", "</s>", "<unk>") + [(token, -9.0) for token in tokens] + special("<mask>")
    encoder = XLMRobertaTokenizer(vocab=vocab)
    return XLMSWCMTokenizer(
        tokenizer_object=encoder.backend_tokenizer, languages=LANGUAGES, **encoder.special_tokens_map
    )


TOKENIZER = make_tokenizer(*TOKENS)
MASK = TOKENIZER.mask_token_id
COLLATOR = DataCollatorForDenoising(TOKENIZER)
FIRST = TOKENIZER.convert_tokens_to_ids(TOKENS[0])

# The tokens of a text all differ, so that missing tokens can be identified.
texts = st.lists(st.integers(FIRST, FIRST + len(TOKENS) - 1), min_size=0, max_size=254, unique=True)
epochs = st.integers(0, 2**32)


def with_specials(text: list[int], language: str = "en") -> np.ndarray:
    return np.array([TOKENIZER.bos_token_id, TOKENIZER.get_lang_id(language), *text, TOKENIZER.eos_token_id])


def words_of(text: list[int]) -> list[tuple[int, ...]]:
    """Find words by the numbers of the tokens, without the collator."""
    words = []
    for token in text:
        if words and (token - FIRST) % 3 == 2:
            words[-1] += (token,)
        else:
            words.append((token,))
    return words


def sentences_of(text: list[int]) -> list[tuple[int, ...]]:
    sentences, open_sentence = [], ()
    for word in words_of(text):
        ended = open_sentence and (open_sentence[-1] - FIRST) % 30 in (10, 21)
        if ended and (word[-1] - FIRST) % 30 not in (10, 21):
            sentences.append(open_sentence)
            open_sentence = ()
        open_sentence += word
    return [*sentences, open_sentence]


def random_texts(count: int, length: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [(FIRST + rng.permutation(len(TOKENS))[:length]).tolist() for _ in range(count)]


def changed(**options) -> DataCollatorForDenoising:
    """Return a copy of COLLATOR with other options and the same tables."""
    collator = copy.copy(COLLATOR)
    for name, value in options.items():
        setattr(collator, name, value)
    return collator


@pytest.fixture
def collator() -> DataCollatorForDenoising:
    return COLLATOR


class TestMasking:
    @given(texts, epochs, st.floats(0, 1))
    def test_whole_words_are_masked_as_many_as_asked_and_nothing_else_changes(self, text, epoch, share):
        collator = changed(mask_share=share, permute_sentences=False)
        ids = with_specials(text)
        noised = collator.noise(ids, epoch).tolist()
        assert noised[:2] == ids[:2].tolist() and noised[-1] == ids[-1]
        assert len(noised) <= len(ids)

        words = words_of(text)
        lost = set(text) - set(noised)
        masked = [word for word in words if lost.intersection(word)]
        assert sum(map(len, masked)) == len(lost)
        assert abs(len(masked) - share * len(words)) < 1
        kept = [token for token in noised if token != MASK]
        assert kept == [token for token in ids.tolist() if token not in lost]
        assert noised.count(MASK) <= len(masked)

    @given(texts, epochs)
    def test_every_gap_has_its_mask(self, text, epoch):
        """Two tokens that are not neighbours in the clean text have at least one `<mask>` between them."""
        noised = changed(permute_sentences=False).noise(with_specials(text), epoch).tolist()
        clean = with_specials(text).tolist()
        places = [None if token == MASK else clean.index(token) for token in noised]
        for before, after in zip(places, places[1:], strict=False):
            if before is not None and after is not None:
                assert after == before + 1

    def test_the_share_and_the_spans_are_as_asked_over_many_texts(self):
        collator = DataCollatorForDenoising(TOKENIZER, permute_sentences=False)
        masked = words = masks = 0
        for length in (1, 2, 3, 5, 250):
            share = total = 0
            for text in random_texts(2000 if length < 250 else 300, length):
                noised = collator.noise(with_specials(text)).tolist()
                lost = set(text) - set(noised)
                count = sum(bool(lost.intersection(word)) for word in words_of(text))
                share += count
                total += len(words_of(text))
                if length == 250:
                    masks += noised.count(MASK)
                    masked += count
            words += total
            assert share / total == pytest.approx(0.35, abs=0.025 if length < 250 else 0.002)
        # The last span of a text is shortened, so the mean is slightly below 3.5.
        assert 3.2 < masked / masks < 3.5

    def test_every_place_is_masked_at_times(self):
        """The ends of a text are masked less often, as in mBART, because fewer spans reach them."""
        collator = DataCollatorForDenoising(TOKENIZER, permute_sentences=False)
        text = [FIRST + 3 * number for number in range(40)]
        gone = np.zeros(40)
        for epoch in range(1000):
            noised = set(collator.noise(with_specials(text), epoch).tolist())
            gone += [token not in noised for token in text]
        assert gone.min() > 80
        assert gone[4:-4] / 1000 == pytest.approx(0.36, abs=0.08)

    def test_spans_of_no_words_put_a_mask_between_two_words(self):
        collator = DataCollatorForDenoising(TOKENIZER, span_length=0.5, permute_sentences=False)
        text = [FIRST + 3 * number for number in range(100)]
        noised = collator.noise(with_specials(text)).tolist()
        pairs = Counter(zip(text, text[1:], strict=False))
        between = [pair for pair in zip(noised, noised[2:], strict=False) if pair in pairs]
        assert between


class TestSentences:
    @given(texts, epochs)
    def test_sentences_change_places_whole(self, text, epoch):
        ids = with_specials(text)
        noised = changed(mask_share=0.0).noise(ids, epoch)
        assert noised[:2].tolist() == ids[:2].tolist() and noised[-1] == ids[-1]
        text_of = "-".join(map(str, noised.tolist()))
        assert all("-".join(map(str, sentence)) in text_of for sentence in sentences_of(text))
        assert sorted(noised) == sorted(ids)

    def test_every_order_occurs(self):
        collator = DataCollatorForDenoising(TOKENIZER, mask_share=0.0)
        text = [FIRST + 10, FIRST, FIRST + 21, FIRST + 3, FIRST + 40]
        assert len(sentences_of(text)) == 3
        orders = Counter(tuple(collator.noise(with_specials(text), epoch).tolist()) for epoch in range(600))
        assert len(orders) == 6
        assert min(orders.values()) > 60

    def test_they_can_stay(self, collator):
        (text,) = random_texts(1, 200)
        still = DataCollatorForDenoising(TOKENIZER, mask_share=0.0, permute_sentences=False)
        assert still.noise(with_specials(text)).tolist() == with_specials(text).tolist()


@pytest.mark.parametrize(
    ("tokens", "words", "sentences"),
    [
        (["▁The", "▁fer", "ry", ".", "▁It", "▁left", "!"], ["▁The", "▁ferry.", "▁It", "▁left!"], [0, 2]),
        (["▁At", "▁3", ".", "5", "▁km"], ["▁At", "▁3.5", "▁km"], [0]),
        (["▁No", "...", ".", "▁Yes", "?", "!", "▁So"], ["▁No....", "▁Yes?!", "▁So"], [0, 1, 2]),
        (["▁(", "Go", ".)", "▁Stop", ".", "”", "▁Then"], ["▁(Go.)", "▁Stop.”", "▁Then"], [0, 1, 2]),
        (["▁", "我们", "去", "河边", "。", "没", "有", "风"], ["▁我们", "去", "河边。", "没", "有", "风"], [0, 3]),
        (["▁我", "用", "Py", "thon", "写", "。", "”", "好"], ["▁我", "用", "Python", "写。”", "好"], [0, 4]),
        (["▁ฉัน", "ไป", "ตลาด"], ["▁ฉัน", "ไป", "ตลาด"], [0]),
        (["▁ང", "་", "ཚོས", "་དཔེ", "་", "ཆ", "།", "▁ཁྱེད་", "རང"], ["▁ང་", "ཚོས་དཔེ་", "ཆ།", "▁ཁྱེད་", "རང"], [0, 3]),
        (["▁སོང་", "།", "ང་", "འགྲོ", "།", "།"], ["▁སོང་།", "ང་", "འགྲོ།།"], [0, 1]),
        (["▁شا", "مال", "▁يوق", "؟", "▁بۈگۈن"], ["▁شامال", "▁يوق؟", "▁بۈگۈن"], [0, 2]),
        (["▁ᠨᠣᠮ", "᠃", "▁ᠪᠢ"], ["▁ᠨᠣᠮ᠃", "▁ᠪᠢ"], [0, 1]),
        (["▁ab", "<unk>", "cd", "▁ef"], ["▁ab", "<unk>cd", "▁ef"], [0]),
    ],
)
def test_words_and_sentences_are_found(tokens, words, sentences):
    tokenizer = make_tokenizer(*dict.fromkeys(token for token in tokens if token != "<unk>"))
    tables = DataCollatorForDenoising(tokenizer).tables
    ids = np.array(tokenizer.convert_tokens_to_ids(tokens))
    starts = tables.word_starts(ids)
    assert ["".join(word) for word in np.split(np.array(tokens, dtype=object), starts[1:])] == words
    assert tables.sentence_starts(ids, starts).tolist() == sentences


class TestBatches:
    def test_the_noise_depends_on_text_seed_and_epoch_alone(self, collator):
        first, second = ({"input_ids": with_specials(text).tolist()} for text in random_texts(2, 100))
        other_seed = DataCollatorForDenoising(TOKENIZER, seed=1)

        def noised(batch, row, collator=collator):
            return collator(batch)["input_ids"][row].tolist()

        expected = noised([first, second], 0)
        assert noised([second, first], 1) == expected
        assert noised([first, second], 0, DataCollatorForDenoising(TOKENIZER)) == expected
        assert noised([first | {"epoch": 0}, second], 0) == expected
        assert noised([first | {"epoch": 1}, second], 0) != expected
        assert noised([first, second], 0, other_seed) != expected

    def test_labels_are_the_clean_text_with_its_tag(self, collator):
        texts = random_texts(2, 7)
        batch = collator([{"input_ids": with_specials(text, "bo").tolist()} for text in (texts[0], texts[1][:4])])
        tag, eos = TOKENIZER.get_lang_id("bo"), TOKENIZER.eos_token_id
        assert batch["labels"].tolist() == [[tag, *texts[0], eos], [tag, *texts[1][:4], eos, -100, -100, -100]]
        assert batch["labels"].dtype == batch["input_ids"].dtype == torch.int64
        assert torch.equal(batch["attention_mask"], batch["input_ids"].ne(TOKENIZER.pad_token_id).long())

    def test_translation_pairs_are_only_padded(self, collator):
        (text,) = random_texts(1, 30)
        pair = {"input_ids": with_specials(text).tolist(), "labels": [9, 8, 2]}
        batch = collator([pair, {"input_ids": with_specials(text[:3]).tolist()}])
        assert batch["input_ids"][0].tolist() == pair["input_ids"]
        assert batch["labels"][0].tolist() == [9, 8, 2, -100, -100]

    @given(texts, texts, epochs)
    def test_special_tokens_inside_stay_between_their_texts(self, before, after, epoch):
        collator = COLLATOR
        ids = np.concatenate([with_specials(before), with_specials(after, "zh")])
        noised = collator.noise(ids, epoch).tolist()
        eos = TOKENIZER.eos_token_id
        assert noised.count(eos) == 2
        middle = noised.index(eos)
        assert noised[middle : middle + 3] == [eos, TOKENIZER.bos_token_id, TOKENIZER.get_lang_id("zh")]
        assert set(noised[2:middle]) <= {*before, MASK}
        assert set(noised[middle + 3 : -1]) <= {*after, MASK}

    def test_a_text_of_no_words_stays(self, collator):
        assert collator.noise(with_specials([])).tolist() == with_specials([]).tolist()

    @pytest.mark.parametrize(
        "options", [{"mask_share": 1.1}, {"mask_share": -0.1}, {"span_length": 0}, {"span_length": math.nan}]
    )
    def test_impossible_options_are_refused(self, options):
        (name,) = options
        with pytest.raises(ValueError, match=name):
            DataCollatorForDenoising(TOKENIZER, **options)
