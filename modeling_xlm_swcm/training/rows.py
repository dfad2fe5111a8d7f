"""Names for reading rows of training data, and options for tokenizing them."""

from modeling_xlm_swcm import XLMSWCMTokenizer
from modeling_xlm_swcm.corpora.bad_rows import BadRows, DataError
from modeling_xlm_swcm.corpora.files import is_plain_text
from modeling_xlm_swcm.corpora.rows import check_columns, check_is_table, get_text, read_aligned, read_rows


__all__ = [
    "AS_TEXT",
    "ROWS_AT_ONCE",
    "BadRows",
    "DataError",
    "check_columns",
    "check_is_table",
    "get_text",
    "is_plain_text",
    "known_languages",
    "read_aligned",
    "read_rows",
]

# Tokenizer options: language tags inside a text are ordinary text, and this package checks the lengths itself.
AS_TEXT = {"split_special_tokens": True, "verbose": False, "return_attention_mask": False}

# rows in one call of the tokenizer
ROWS_AT_ONCE = 256


def known_languages(tokenizer: XLMSWCMTokenizer) -> str:
    """Return the languages of a model, and how to add one, for an error about an unknown language."""
    known = ", ".join(tokenizer.languages) or "none"
    return f"Known languages: {known}. Use one of them, or convert the encoder with --languages, and train again."
