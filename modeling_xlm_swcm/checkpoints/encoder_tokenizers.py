"""Load the tokenizer of an encoder, and check that it belongs to the weights and can be converted."""

import copy
import json
from collections.abc import Iterable
from functools import cache
from importlib.resources import files

from transformers import AutoTokenizer, PreTrainedTokenizerBase, TokenizersBackend

from .errors import ConversionError
from .reading import find_file, load_pretrained, read_json, read_tokenizer_config
from .sentence_transformers import read_max_length
from .tokenizer_files import check_tokenizer_fields, check_tokenizer_file


# Tokens at the ends of a text in BERT-like tokenizers, which stand in for tokens that a tokenizer lacks.
TOKENS_OF_ENDS = {"bos_token": "cls_token", "eos_token": "sep_token"}

# Option of a BERT tokenizer -> field of its normalizer.
NORMALIZER_OPTIONS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}

ENCODER_TOKENIZER_FILES = ("tokenizer.json", "sentencepiece.bpe.model", "vocab.json", "vocab.txt")


def check_tokenizer(name: str, config: dict, tokenizer: PreTrainedTokenizerBase):
    """Check that config and tokenizer have the same pad token, from which positions are counted."""
    if tokenizer.pad_token_id != config["pad_token_id"]:
        raise ConversionError(
            f"pad_token_id is {config['pad_token_id']} in the config of {name} but {tokenizer.pad_token_id} in its "
            "tokenizer. Set both to the same id."
        )


def check_rows(name: str, tokenizer: PreTrainedTokenizerBase, rows: int):
    """Check that every token has a row in the word embeddings."""
    if len(tokenizer) > rows:
        raise ConversionError(
            f"The tokenizer of {name} has {len(tokenizer)} tokens, but its word embeddings have only {rows} rows. "
            "Use the tokenizer that belongs to the weights."
        )


def check_ids(name: str, last: int, size: int):
    """Check that `size` tokens up to the id `last` leave no gaps. Else a new token gets the id of another token."""
    if last >= size:
        raise ConversionError(
            f"The tokenizer of {name} has unused ids below {last}. Use a tokenizer without gaps in its ids."
        )


def load_encoder_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of an encoder, with the maximum length of Sentence Transformers if it is lower."""
    # Without a tokenizer file, Transformers silently makes a tokenizer that knows only the special tokens.
    file = next((file for file in ENCODER_TOKENIZER_FILES if find_file(name, file, revision)), None)
    if file is None:
        raise ConversionError(
            f"{name} has no tokenizer. Add one of these files: {', '.join(ENCODER_TOKENIZER_FILES)}."
        )
    kind, config = check_tokenizer_file(name, revision), read_tokenizer_config(name, revision)
    check_tokenizer_fields(name, config)
    ends = {
        token: config[other].get("content") if isinstance(config[other], dict) else config[other]
        for token, other in TOKENS_OF_ENDS.items()
        if token in config and config[token] is None and config.get(other)
    }
    options = read_normalizer_options(name, revision) if kind == "WordPiece" else {}
    options = {option: value for option, value in options.items() if config.get(option) is None}
    tokenizer = load_pretrained(AutoTokenizer, name, revision=revision, **ends, **options)
    check_backend(name, tokenizer, file, kind)
    if (length := read_max_length(name, revision)) is not None:
        tokenizer.model_max_length = min(length, tokenizer.model_max_length)
    set_ends(name, tokenizer)
    return tokenizer


def read_normalizer_options(name: str, revision: str | None) -> dict[str, bool | None]:
    """Return the options of a BERT tokenizer that make the normalizer in tokenizer.json."""
    # Without these options in tokenizer_config.json, Transformers makes an uncased tokenizer.
    path = find_file(name, "tokenizer.json", revision)
    normalizer = None if path is None else read_json(path).get("normalizer")
    if not isinstance(normalizer, dict) or normalizer.get("type") != "BertNormalizer":
        return {}
    return {option: normalizer.get(field) for option, field in NORMALIZER_OPTIONS.items()}


def set_ends(name: str, tokenizer: PreTrainedTokenizerBase):
    """Set the tokens at the ends of a text where a tokenizer lacks them."""
    for token, other in TOKENS_OF_ENDS.items():
        if getattr(tokenizer, token) is None and getattr(tokenizer, other) is None:
            raise ConversionError(
                f"The tokenizer of {name} has neither {token} nor {other}. Set {token} in its tokenizer_config.json."
            )
        if getattr(tokenizer, token) is None:
            setattr(tokenizer, token, getattr(tokenizer, other))


def copy_with_ends(name: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a tokenizer with tokens at the ends of a text. If the tokenizer lacks them, return a copy with them."""
    if None in (getattr(tokenizer, token) for token in TOKENS_OF_ENDS):
        tokenizer = copy.deepcopy(tokenizer)
        set_ends(name, tokenizer)
    return tokenizer


def check_backend(name: str, tokenizer: PreTrainedTokenizerBase, file: str, kind: str | None):
    """Refuse a tokenizer without a Rust backend, or with a class that replaces the model in its file."""
    tokenizer_class = type(tokenizer).__name__
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise ConversionError(
            f"The tokenizer of {name} is a slow tokenizer, {tokenizer_class}. Use a checkpoint with a fast tokenizer."
        )
    loaded = type(tokenizer.backend_tokenizer.model).__name__
    if kind is not None and loaded != kind:
        raise ConversionError(
            f"tokenizer_class in tokenizer_config.json of {name} makes a {loaded} tokenizer, but {file} holds a "
            f"{kind} model. Correct tokenizer_class."
        )


@cache
def read_language_names() -> dict[str, str]:
    """Return the native name of each language, by code. Source: Unicode CLDR 47."""
    file = files("modeling_xlm_swcm.checkpoints") / "language_names.json"
    return json.loads(file.read_text(encoding="utf-8"))


def find_unreadable_names(tokenizer: TokenizersBackend, languages: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return native names of languages with characters that a tokenizer does not know, and these, by code."""
    unreadable = {}
    for code in languages:
        language, *subtags = code.casefold().split("-")
        # Another script than usual is part of the code, for example in `kk-Arab`.
        script = next((f"-{subtag}" for subtag in subtags if len(subtag) == 4 and subtag.isalpha()), "")
        name = read_language_names().get(language + script)
        if name is None:
            continue
        encoding = tokenizer.backend_tokenizer.encode(name, add_special_tokens=False)
        spans = [
            span
            for span, token_id in zip(encoding.offsets, encoding.ids, strict=True)
            if token_id == tokenizer.unk_token_id
        ]
        if spans:
            unreadable[code] = name, " ".join(name[start:stop] for start, stop in spans)
    return unreadable
