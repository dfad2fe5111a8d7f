"""Tokenizer of a small encoder, learned from text."""

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import XLMRobertaTokenizer

from modeling_xlm_swcm.checkpoints.reading import load_pretrained
from modeling_xlm_swcm.checkpoints.tokenizer_files import check_tokenizer_file
from modeling_xlm_swcm.training.checkpoints import TrainingError
from modeling_xlm_swcm.training.encoder import EncoderArguments, sample_lines
from modeling_xlm_swcm.vocabulary.corpus import Corpus, read_corpora
from modeling_xlm_swcm.vocabulary.pieces import read_learnt_pieces


SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>"]
MASK = "<mask>"
# Number of characters of the largest language in the text sample for a new vocabulary.
SAMPLED_CHARACTERS = 500_000


def read_texts(files: list[str]) -> dict[str, list[str]]:
    """Return the lines of each language."""
    texts = {}
    if files:
        for language, lines in read_corpora(Corpus.parse_all(files), "Reading"):
            texts.setdefault(language, []).extend(lines)
    return texts


def make_tokenizer(
    args: EncoderArguments, texts: dict[str, list[str]], checkpoint: str | None = None
) -> XLMRobertaTokenizer:
    """Load the tokenizer of the checkpoint or of `--tokenizer_name`, or else learn one from the text."""
    if name := checkpoint or args.tokenizer_name:
        check_tokenizer_file(name)
        return load_pretrained(XLMRobertaTokenizer, name, model_max_length=args.max_length)
    lines = sample_lines(texts, SAMPLED_CHARACTERS, args.sampling_exponent)
    return train_tokenizer(lines, args.vocab_size, args.max_length)


def train_tokenizer(texts: list[str], vocab_size: int, max_length: int) -> XLMRobertaTokenizer:
    """
    Learn a Unigram vocabulary with the id layout of XLM-R: special tokens first, `<mask>` last.

    Args:
        texts (`list[str]`):
            Lines to learn from.
        vocab_size (`int`):
            Number of tokens, without `<mask>`.
        max_length (`int`):
            Maximum length of an input in tokens.

    Returns:
        `XLMRobertaTokenizer`: the tokenizer.

    Raises:
        TrainingError: if the vocabulary is too small for the characters of the text.
    """
    tokenizer = Tokenizer(models.Unigram())
    # The XLM-R tokenizer below has no normaliser, so the vocabulary is learned without one.
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        seed_size=10 * vocab_size,
        special_tokens=SPECIAL_TOKENS,
        unk_token="<unk>",
        show_progress=False,
    )
    try:
        tokenizer.train_from_iterator(texts, trainer)
    except Exception as error:  # The library raises only this class.
        raise TrainingError(
            f"--vocab_size {vocab_size} is too small for the characters of the text. Use a larger size."
        ) from error
    special = [(token, 0.0) for token in SPECIAL_TOKENS]
    # A text can spell <mask>.
    vocab = [*special, *read_learnt_pieces(tokenizer, [*SPECIAL_TOKENS, MASK]), (MASK, 0.0)]
    return XLMRobertaTokenizer(vocab=vocab, model_max_length=max_length)
