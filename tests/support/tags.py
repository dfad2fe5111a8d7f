"""Tokenizers with language tags, and a text for each of their languages."""

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase, XLMRobertaTokenizer

from modeling_xlm_swcm import XLMSWCMTokenizer


TEXTS = {
    "bo": "ང་རང་ཆུ་འགྲམ་དུ་དེབ་ཀློག་རྒྱུར་དགའ་པོ་ཡོད།",
    "ug": "ئۇ دەريا بويىدا كىتاب ئوقۇشنى ياخشى كۆرىدۇ.",
    "kk": "Ол өзен жағасында кітап оқығанды ұнатады.",
    "kk-Arab": "ول وزەن جاعاسىندا كىتاپ وقىعاندى ۇناتادى.",
    "mn": "Тэр голын эрэг дээр ном унших дуртай.",
    "zh": "她喜欢坐在河边看书，一直看到天黑。",
    "en": "She likes to read by the river until it is dark.",
}
LANGUAGES = list(TEXTS)
BOS, PAD, EOS, UNK = 0, 1, 2, 3


def unigram_tokenizer(pieces: list[tuple[str, float]]) -> XLMRobertaTokenizer:
    special = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    mask = AddedToken("<mask>", lstrip=True, special=True)
    return XLMRobertaTokenizer(vocab=[*special, *pieces, ("<mask>", 0.0)], mask_token=mask)


def with_tags(encoder_tokenizer: PreTrainedTokenizerBase, languages=LANGUAGES, **options) -> XLMSWCMTokenizer:
    backend, special = encoder_tokenizer.backend_tokenizer, encoder_tokenizer.special_tokens_map
    return XLMSWCMTokenizer(tokenizer_object=backend, languages=languages, **special, **options)
