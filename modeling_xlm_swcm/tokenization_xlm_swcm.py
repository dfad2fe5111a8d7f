"""Tokenizer of XLM-SWCM: the tokenizer of the encoder, with one tag for each language."""

# This import checks the version of Transformers, so it comes first.
from .compat_xlm_swcm import check_transformers  # noqa: F401


# isort: split
import copy
import json
from collections.abc import Iterable
from weakref import WeakKeyDictionary

from tokenizers import AddedToken, Encoding, Tokenizer, models, processors
from transformers import BatchEncoding, TokenizersBackend

from .punctuation_xlm_swcm import is_chinese, restore_marks


# Prefix of control pieces in the model that reads text. No text contains it: spaces become "▁" before segmentation.
UNREACHABLE = "\0 "


def language_tag(code: str) -> str:
    """Return the tag of a language, for example `<kk-Arab>` for `kk-Arab`."""
    return f"<{code}>"


def check_unicode(texts: tuple):
    """Raise a `ValueError` if one of the texts, or of the texts in lists, is not valid Unicode."""
    try:
        json.dumps(texts, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise ValueError(f"A text has the lone surrogate {half}, which is not valid Unicode. Remove it.") from error


def hide_special_tokens(model: dict, special_ids: set[int]):
    """
    Put `UNREACHABLE` before the special tokens in the vocabulary of a model, so that no text can spell them.

    Args:
        model (`dict`):
            The model in `tokenizer.json`. It is changed in place.
        special_ids (`set[int]`):
            Ids of the special tokens.

    Raises:
        ValueError: if the model is of another type than Unigram or WordPiece.
    """
    if model["type"] == "Unigram":
        # In a Unigram vocabulary, the special tokens have the best score.
        for token_id in special_ids & set(range(len(model["vocab"]))):
            model["vocab"][token_id][0] = UNREACHABLE + model["vocab"][token_id][0]
    elif model["type"] == "WordPiece":
        model["vocab"] = {UNREACHABLE * (id in special_ids) + piece: id for piece, id in model["vocab"].items()}
        if model["unk_token"] not in model["vocab"]:
            model["unk_token"] = UNREACHABLE + model["unk_token"]
    else:
        raise ValueError(
            f"A text contains a special token. A vocabulary of the type {model['type']} cannot read special tokens as "
            "text. Remove the special token from the text."
        )


def make_unigram(fields: dict) -> models.Unigram:
    """Return the Unigram model with these fields of `tokenizer.json`."""
    vocab = [(piece, score) for piece, score in fields["vocab"]]
    return models.Unigram(vocab, fields["unk_id"], fields.get("byte_fallback", False))


def make_word_piece(fields: dict) -> models.WordPiece:
    """Return the WordPiece model with these fields of `tokenizer.json`."""
    names = ("vocab", "unk_token", "max_input_chars_per_word", "continuing_subword_prefix")
    return models.WordPiece(**{name: fields[name] for name in names if name in fields})


TEXT_MODELS = {"Unigram": make_unigram, "WordPiece": make_word_piece}
# The cache is not an attribute of the tokenizer, because fingerprints of the library datasets contain all attributes.
TEXT_MODEL_CACHE: WeakKeyDictionary["XLMSWCMTokenizer", models.Model] = WeakKeyDictionary()


class XLMSWCMTokenizer(TokenizersBackend):
    r"""
    Tokenizer that loads the `tokenizer.json` of an encoder and adds one tag for each language.

    It supports the Unigram model of XLM-R and CamemBERT, the byte-level BPE of RoBERTa and the WordPiece model of
    BERT. A source is `<s> <src> ... </s>`. A target (`text_target=`) is `<tgt> ... </s>`. The decoder reads it after
    its start token: `<s> <tgt> ...`. In generation, `forced_bos_token_id` sets the tag at this position. Without
    `languages`, a source is `<s> ... </s>` and a target is `... </s>`. BERT writes `[CLS]` for `<s>` and `[SEP]` for
    `</s>`.

    Languages are arguments of a call: `tokenizer(text, src_lang="zh", text_target=target, tgt_lang="bo")`. A call
    changes no state, so threads can share a tokenizer.

    As in Transformers, special tokens and tags inside a text become their ids by default, for example `<mask>`. With
    `split_special_tokens=True`, they are ordinary text: the tokenizer segments their characters, and decoding returns
    them. Set it, here or in a call, for text that you did not write yourself. Training scripts, pipelines and exported
    models always do.

    XLM-R's normalisation replaces full-width marks such as `，` with ASCII marks. `decode` and `batch_decode` with
    `skip_special_tokens=True` restore the marks of a sequence with a Chinese tag. `restore_punctuation=False` returns
    the text as the model generated it.

    Args:
        languages (`list[str]`, *optional*):
            BCP-47 codes, for example `bo` or `kk-Arab`. Each code gets a tag.
        src_lang (`str`, *optional*):
            Default language of the sources. You can also set `tokenizer.src_lang` later.
        tgt_lang (`str`, *optional*):
            Default language of the targets. You can also set `tokenizer.tgt_lang` later.

    Raises:
        ValueError: if `bos_token` or `eos_token` is missing, if a language is not in `languages`, or if you tokenize a
            text without a language.
    """

    vocab_files_names = {"tokenizer_file": "tokenizer.json"}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(self, *args, languages=None, src_lang=None, tgt_lang=None, **kwargs):
        if isinstance(languages, str):
            raise ValueError(f'languages must be a list of codes (got "{languages}"). Put the code in a list.')
        self._languages = list(languages or ())
        for code in self._languages:
            if not code:
                raise ValueError("languages has an empty code. Remove it.")
            if self._languages.count(code) > 1:
                raise ValueError(f"languages has {code} twice. Remove it.")
        self._src_lang = self._tgt_lang = None
        tags = [AddedToken(language_tag(code), special=True, normalized=False) for code in self._languages]
        known = [token for token in kwargs.pop("extra_special_tokens", None) or [] if str(token) not in map(str, tags)]
        kwargs |= {"languages": self._languages, "src_lang": src_lang, "tgt_lang": tgt_lang}
        super().__init__(*args, extra_special_tokens=known + tags, **kwargs)
        for name, example in (("bos_token", "[CLS]"), ("eos_token", "[SEP]")):
            if getattr(self, name) is None:
                raise ValueError(f"The tokenizer has no {name}. Pass `{name}`, for BERT `{example}`.")
        reserved = {str(token) for token in self._special_tokens_map.values() if token is not None}
        if clash := [code for code in self._languages if language_tag(code) in reserved]:
            raise ValueError(
                f"Cannot add the language {clash[0]}: {language_tag(clash[0])} is already a special token of this "
                f"tokenizer. Use a longer code, for example {clash[0]}-Latn."
            )
        self.src_lang = src_lang
        self.tgt_lang = tgt_lang

    @classmethod
    def convert_to_native_format(cls, trust_remote_code=False, **kwargs):
        """Return the loading options unchanged."""
        # `tokenizer.json` is complete, so Transformers must not rebuild the tokenizer from a vocabulary.
        return kwargs

    @property
    def languages(self) -> list[str]:
        """`list[str]`: Codes of the languages that have a tag."""
        return list(self._languages)

    @property
    def src_lang(self) -> str | None:
        """`str` or `None`: Default language of the sources."""
        return self._src_lang

    @src_lang.setter
    def src_lang(self, code: str | None):
        self._src_lang = self._check_language(code)
        # Each call makes a new template. This template is saved for other users of `tokenizer.json`.
        tags = [] if code is None else [language_tag(code)]
        self._tokenizer.post_processor = self._make_template([self.bos_token, *tags])

    @property
    def tgt_lang(self) -> str | None:
        """`str` or `None`: Default language of the targets."""
        return self._tgt_lang

    @tgt_lang.setter
    def tgt_lang(self, code: str | None):
        self._tgt_lang = self._check_language(code)

    @property
    def lang_code_to_id(self) -> dict[str, int]:
        """`dict[str, int]`: Id of the tag of each language, as in mBART."""
        return {code: self.get_lang_id(code) for code in self._languages}

    def get_lang_id(self, code: str) -> int:
        """
        Return the id of the tag of a language, for `generate(forced_bos_token_id=...)`.

        Args:
            code (`str`):
                Code of the language.

        Returns:
            `int`: the id.

        Raises:
            ValueError: if the language is not in `languages`.
        """
        if code is None:
            raise ValueError(f"The language is None. {self._list_languages()}")
        return self.convert_tokens_to_ids(language_tag(self._check_language(code)))

    def _check_language(self, code: str | None) -> str | None:
        if code is not None and code not in self._languages:
            raise ValueError(f'Unknown language "{code}". {self._list_languages()}')
        return code

    def _list_languages(self) -> str:
        """Return a sentence that lists the languages, or says how to add languages."""
        if not self._languages:
            return "The tokenizer has no languages. Pass --languages to xlm-swcm convert."
        return f"Choose one of: {', '.join(self._languages)}."

    def __call__(
        self,
        text=None,
        text_pair=None,
        text_target=None,
        text_pair_target=None,
        *args,
        src_lang: str | None = None,
        tgt_lang: str | None = None,
        **kwargs,
    ) -> BatchEncoding:
        """
        Tokenize sources, targets or both. The ids of targets are the `labels` if there are sources too.

        Args:
            text (`str` or `list`, *optional*):
                Source or sources.
            text_pair (`str` or `list`, *optional*):
                Second part of each source, for example the context of a question.
            text_target (`str` or `list`, *optional*):
                Target or targets.
            text_pair_target (`str` or `list`, *optional*):
                Second part of each target.
            args (*optional*):
                Further positional arguments of Transformers' tokenizers.
            src_lang (`str`, *optional*, defaults to `tokenizer.src_lang`):
                Language of `text`.
            tgt_lang (`str`, *optional*, defaults to `tokenizer.tgt_lang`):
                Language of `text_target`.
            kwargs (*optional*):
                Further arguments of Transformers' tokenizers, for example `padding` and `return_tensors`.

        Returns:
            `BatchEncoding`: token ids and attention mask.

        Raises:
            ValueError: if a language is unknown, or if a text has no language.
        """
        kwargs |= {"src_lang": src_lang, "tgt_lang": tgt_lang}
        sources = None
        if text is not None or text_target is None:
            sources = super().__call__(text, text_pair, None, None, *args, **kwargs)
        if text_target is None:
            return sources
        targets = super().__call__(None, None, text_target, text_pair_target, *args, is_target=True, **kwargs)
        if sources is None:
            return targets
        sources["labels"] = targets["input_ids"]
        return sources

    def _encode_plus(
        self,
        text,
        text_pair=None,
        add_special_tokens=True,
        split_special_tokens=None,
        src_lang=None,
        tgt_lang=None,
        is_target=False,
        **kwargs,
    ) -> BatchEncoding:
        prefix = self._make_prefix(src_lang, tgt_lang, is_target, add_special_tokens)
        as_text = self.split_special_tokens if split_special_tokens is None else split_special_tokens
        kwargs |= {"text": text, "text_pair": text_pair, "add_special_tokens": add_special_tokens}
        kwargs |= {"split_special_tokens": as_text}
        # Transformers keeps the settings of a call in the backend, so each call gets a new backend.
        reader = copy.copy(self)
        reader._tokenizer = self._make_backend(prefix, self._tokenizer.model)
        try:
            encoded = super(XLMSWCMTokenizer, reader)._encode_plus(**kwargs)
        except TypeError:
            # The message of the tokenizers library does not name the cause.
            check_unicode((text, text_pair))
            raise
        if as_text and self._contains_special_token(encoded.encodings):
            reader._tokenizer = self._make_backend(prefix, self._get_text_model(), UNREACHABLE)
            # Padding looks up this id, and the new backend has another name for the token.
            vars(reader)["pad_token_id"] = self.pad_token_id
            encoded = super(XLMSWCMTokenizer, reader)._encode_plus(**kwargs)
        return encoded

    def _decode(self, token_ids, skip_special_tokens=False, restore_punctuation=True, **kwargs) -> str:
        text = super()._decode(token_ids, skip_special_tokens=skip_special_tokens, **kwargs)
        normalizer = self._tokenizer.normalizer
        if not skip_special_tokens or not restore_punctuation or normalizer is None:
            return text
        # The tag in the sequence names its language.
        tags = {self.get_lang_id(code) for code in self._languages if is_chinese(code)}
        ids = token_ids if isinstance(token_ids, list) else []
        return text if tags.isdisjoint(ids) else restore_marks(text, normalizer.normalize_str)

    def _make_prefix(self, src_lang, tgt_lang, is_target: bool, needs_tag: bool) -> list[str]:
        """Return the tokens before a source or target."""
        languages = {
            "src_lang": self._check_language(src_lang) or self._src_lang,
            "tgt_lang": self._check_language(tgt_lang) or self._tgt_lang,
        }
        name = "tgt_lang" if is_target else "src_lang"
        if self._languages and languages[name] is None and needs_tag:
            raise ValueError(
                f"{name} is not set, but a text needs a language tag. Pass {name}= or set tokenizer.{name}. "
                f"{self._list_languages()}"
            )
        tags = [] if languages[name] is None else [language_tag(languages[name])]
        return tags if is_target else [self.bos_token, *tags]

    def _make_template(self, prefix: list[str]) -> processors.TemplateProcessing:
        eos = self.eos_token
        return processors.TemplateProcessing(
            single=[*prefix, "$A", eos],
            pair=[*prefix, "$A", eos, eos, "$B", eos],
            special_tokens=[(token, self.convert_tokens_to_ids(token)) for token in [*prefix, eos]],
        )

    def _make_backend(self, prefix: list[str], model: models.Model, mark: str = "") -> Tokenizer:
        """Return a copy of the backend that shares the vocabulary. `mark` stands before special tokens in `model`."""
        backend = Tokenizer(model)
        for part in ("normalizer", "pre_tokenizer", "decoder"):
            setattr(backend, part, getattr(self._tokenizer, part))
        backend.post_processor = self._make_template(prefix)
        added = [token for _, token in sorted(self._tokenizer.get_added_tokens_decoder().items())]
        marked = [AddedToken(mark + token.content, special=True) if token.special else token for token in added]
        backend.add_tokens(marked if mark else added)
        return backend

    def _contains_special_token(self, encodings: Iterable[Encoding]) -> bool:
        """Return True if a special token stands where a text was."""
        special, unknown = self._get_special_ids() - {self.unk_token_id}, self.unk_token
        for encoding in encodings:
            if sum(map(special.__contains__, encoding.ids)) > sum(encoding.special_tokens_mask):
                return True
            # Unknown characters have the id of `<unk>`, but their own text.
            if self.unk_token_id in encoding.ids and any(
                unknown in token
                for token, token_id in zip(encoding.tokens, encoding.ids, strict=True)
                if token_id == self.unk_token_id
            ):
                return True
        return False

    def _get_special_ids(self) -> set[int]:
        added = self._tokenizer.get_added_tokens_decoder()
        return {*self.all_special_ids, *(token_id for token_id, token in added.items() if token.special)}

    def _get_text_model(self) -> models.Model:
        """Return the model without its special tokens, which a text could spell."""
        # Most texts do not spell a special token, and a copy of a large vocabulary takes a second.
        if self not in TEXT_MODEL_CACHE:
            fields = json.loads(self._tokenizer.to_str())["model"]
            hide_special_tokens(fields, self._get_special_ids())
            TEXT_MODEL_CACHE[self] = TEXT_MODELS[fields["type"]](fields)
        return TEXT_MODEL_CACHE[self]


__all__ = ["XLMSWCMTokenizer"]
