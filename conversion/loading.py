"""Model and tokenizer of a checkpoint, whole and fit for each other, or an error that says what is not."""

from os import PathLike

from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.utils import logging

from modeling_xlm_swcm import XLMSWCMForConditionalGeneration, XLMSWCMTokenizer

from .checkpoint import ConversionError, load_pretrained
from .encoder import check_rows


def load_model(source: str | PathLike, **options) -> XLMSWCMForConditionalGeneration:
    """
    `AutoModelForSeq2SeqLM.from_pretrained(source, **options)`, with every key in its place.

    Raises:
        ConversionError: a file is damaged, or the weights are not those that the config describes.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what is missing would be made up, with a warning
    try:
        model, info = load_pretrained(AutoModelForSeq2SeqLM, source, output_loading_info=True, **options)
    finally:
        logging.set_verbosity(verbosity)
    for kind, keys in info.items():
        if keys:
            key = str(sorted(map(str, keys))[0])
            raise ConversionError(f"The weights in {source} do not fit its config: {kind.replace('_', ' ')}, {key}.")
    return model


def load_tokenizer(source: str | PathLike, vocab_size: int) -> XLMSWCMTokenizer:
    """
    Raises:
        ConversionError: a file is damaged, or the tokenizer is not that of a model with `vocab_size` rows.
    """
    tokenizer = load_pretrained(AutoTokenizer, source)
    if not isinstance(tokenizer, XLMSWCMTokenizer):
        raise ConversionError(f"The tokenizer in {source} is a {type(tokenizer).__name__}, not an XLMSWCMTokenizer.")
    check_rows(str(source), tokenizer, vocab_size)
    return tokenizer
