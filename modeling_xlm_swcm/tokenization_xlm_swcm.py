"""Tokenizer of XLM-SWCM: the tokenizer of the encoder, with one tag for each language."""

# This import checks the version of Transformers, so it comes first.
from .compat_xlm_swcm import check_transformers  # noqa: F401


# isort: split
from tokenizers import AddedToken, processors
from transformers import TokenizersBackend


def language_tag(code: str) -> str:
    """Return the tag of a language, for example `<kk-Arab>` for `kk-Arab`."""
    return f"<{code}>"


class XLMSWCMTokenizer(TokenizersBackend):
    r"""
    Tokenizer that loads the `tokenizer.json` of an encoder and adds one tag for each language.

    It supports the Unigram model of XLM-R and CamemBERT, and the byte-level BPE of RoBERTa. A source is
    `<s> <src> ... </s>`. A target (`text_target=`) is `<tgt> ... </s>`. The model shifts the target right behind its
    start token `<s>`, so the tag has the same position in training as `forced_bos_token_id` in generation. Without
    `languages`, a source is `<s> ... </s>` and a target is `... </s>`.

    Args:
        languages (`list[str]`, *optional*):
            BCP-47 codes, for example `bo` or `kk-Arab`. Each code gets a tag.
        src_lang (`str`, *optional*):
            Language of the sources. You can also set `tokenizer.src_lang` later.
        tgt_lang (`str`, *optional*):
            Language of the targets. You can also set `tokenizer.tgt_lang` later.

    Raises:
        ValueError: if a language is not in `languages`, or if you tokenize a text before you set its language.
    """

    vocab_files_names = {"tokenizer_file": "tokenizer.json"}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(self, *args, languages=(), src_lang=None, tgt_lang=None, **kwargs):
        self._languages = list(languages)
        self._src_lang = self._tgt_lang = None
        tags = [AddedToken(language_tag(code), special=True, normalized=False) for code in self._languages]
        known = [token for token in kwargs.pop("extra_special_tokens", None) or [] if str(token) not in map(str, tags)]
        kwargs |= {"languages": self._languages, "src_lang": src_lang, "tgt_lang": tgt_lang}
        super().__init__(*args, extra_special_tokens=known + tags, **kwargs)
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
        # `tokenizer.json` is complete, so Transformers must not rebuild the tokenizer from a vocabulary.
        return kwargs

    @property
    def languages(self) -> list[str]:
        """`list[str]`: Codes of the languages that have a tag."""
        return list(self._languages)

    @property
    def src_lang(self) -> str | None:
        """`str` or `None`: Language of the sources."""
        return self._src_lang

    @src_lang.setter
    def src_lang(self, code: str | None):
        self._src_lang = self._check_language(code)
        self._switch_to_input_mode()

    @property
    def tgt_lang(self) -> str | None:
        """`str` or `None`: Language of the targets."""
        return self._tgt_lang

    @tgt_lang.setter
    def tgt_lang(self, code: str | None):
        self._tgt_lang = self._check_language(code)

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
            raise ValueError(f"The language is None. Choose one of: {self._known_languages()}.")
        return self.convert_tokens_to_ids(language_tag(self._check_language(code)))

    def _check_language(self, code: str | None) -> str | None:
        if code is not None and code not in self._languages:
            raise ValueError(f'Unknown language "{code}". Choose one of: {self._known_languages()}.')
        return code

    def _known_languages(self) -> str:
        return ", ".join(self._languages) or "none (use --languages to add languages when you convert)"

    def _switch_to_input_mode(self):
        self._set_template([self.bos_token], self._src_lang)
        self._unset_language = "src_lang" if self._languages and self._src_lang is None else None

    def _switch_to_target_mode(self):
        self._set_template([], self._tgt_lang)
        self._unset_language = "tgt_lang" if self._languages and self._tgt_lang is None else None

    def _set_template(self, prefix: list[str], code: str | None):
        prefix = prefix + ([] if code is None else [language_tag(code)])
        eos = self.eos_token
        self._tokenizer.post_processor = processors.TemplateProcessing(
            single=[*prefix, "$A", eos],
            pair=[*prefix, "$A", eos, eos, "$B", eos],
            special_tokens=[(token, self.convert_tokens_to_ids(token)) for token in [*prefix, eos]],
        )

    def _encode_plus(self, text, text_pair=None, add_special_tokens=True, **kwargs):
        try:
            if add_special_tokens and self._unset_language:
                raise ValueError(
                    f"{self._unset_language} is not set, so the text has no language tag. Set "
                    f"tokenizer.{self._unset_language} to one of: {self._known_languages()}."
                )
            return super()._encode_plus(text, text_pair=text_pair, add_special_tokens=add_special_tokens, **kwargs)
        except Exception:
            # After an error in a target, the next source must not use the template of targets.
            self._switch_to_input_mode()
            raise


__all__ = ["XLMSWCMTokenizer"]
