"""Tokenizer of XLM-SWCM: the encoder's own tokenizer plus one tag per language."""

# first, since it checks the version of Transformers
from .compat_xlm_swcm import check_transformers  # noqa: F401


# isort: split
from tokenizers import AddedToken, processors
from transformers import TokenizersBackend


def language_tag(code: str) -> str:
    """The token that marks a language: `bo` -> `<bo>`, `kk-Arab` -> `<kk-Arab>`."""
    return f"<{code}>"


class XLMSWCMTokenizer(TokenizersBackend):
    r"""
    Reads an encoder's `tokenizer.json` as it is (Unigram of XLM-R and CamemBERT, byte-level BPE of RoBERTa) and adds
    a tag per language. A source is `<s> <src> ... </s>`. A target (`text_target=`) is `<tgt> ... </s>`: the model
    shifts it right behind its start token `<s>`, so that at generation `forced_bos_token_id` stands where training
    saw the tag.

    Without any `languages` it is the encoder's tokenizer: `<s> ... </s>` and, for targets, `... </s>`.

    Args:
        languages (`list[str]`, *optional*): BCP-47 codes, such as `bo` or `kk-Arab`, each of which gets a tag.
        src_lang (`str`, *optional*): language of the texts; may be set later, `tokenizer.src_lang = "zh"`.
        tgt_lang (`str`, *optional*): language of `text_target`; may be set later.

    Raises:
        `ValueError`: a language that is not in `languages`, or text to encode before its language is set.
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
                f"{language_tag(clash[0])} is a special token of this tokenizer and cannot mark the language "
                f'"{clash[0]}"; use a longer code, such as "{clash[0]}-Latn".'
            )
        self.src_lang = src_lang
        self.tgt_lang = tgt_lang

    @classmethod
    def convert_to_native_format(cls, trust_remote_code=False, **kwargs):
        # `tokenizer.json` is complete: nothing is rebuilt from a vocabulary
        return kwargs

    @property
    def languages(self) -> list[str]:
        return list(self._languages)

    @property
    def src_lang(self) -> str | None:
        return self._src_lang

    @src_lang.setter
    def src_lang(self, code: str | None):
        self._src_lang = self._check_language(code)
        self._switch_to_input_mode()

    @property
    def tgt_lang(self) -> str | None:
        return self._tgt_lang

    @tgt_lang.setter
    def tgt_lang(self, code: str | None):
        self._tgt_lang = self._check_language(code)

    def get_lang_id(self, code: str) -> int:
        """The id of a language's tag, for `generate(forced_bos_token_id=...)`."""
        if code is None:
            raise ValueError(f"No language given; the known ones are: {self._known_languages()}.")
        return self.convert_tokens_to_ids(language_tag(self._check_language(code)))

    def _check_language(self, code: str | None) -> str | None:
        if code is not None and code not in self._languages:
            raise ValueError(f'Unknown language "{code}"; the known ones are: {self._known_languages()}.')
        return code

    def _known_languages(self) -> str:
        return ", ".join(self._languages) or "none (convert with --languages to add some)"

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
                    f"{self._unset_language} is not set: the text needs the tag of its language. Set "
                    f"tokenizer.{self._unset_language} to one of: {self._known_languages()}."
                )
            return super()._encode_plus(text, text_pair=text_pair, add_special_tokens=add_special_tokens, **kwargs)
        except Exception:
            # a target that was refused must not leave its template to the next source
            self._switch_to_input_mode()
            raise


__all__ = ["XLMSWCMTokenizer"]
