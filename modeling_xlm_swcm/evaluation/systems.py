"""Models of an evaluation: XLM-SWCM models, and other sequence-to-sequence models of Transformers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer

from modeling_xlm_swcm import XLMSWCMTokenizer
from modeling_xlm_swcm.checkpoints.inspection import CONFIG_CLASSES, EXPORTED_TYPE, read_model_config
from modeling_xlm_swcm.checkpoints.loading import check_files, load_model, load_tokenizer
from modeling_xlm_swcm.checkpoints.reading import load_pretrained, read_config
from modeling_xlm_swcm.corpora.bad_rows import DataError
from modeling_xlm_swcm.punctuation_xlm_swcm import is_chinese, restore_marks
from modeling_xlm_swcm.sentences_xlm_swcm import batches_by_length
from modeling_xlm_swcm.training.examples import batched, truncate
from modeling_xlm_swcm.training.faults import find_cut
from modeling_xlm_swcm.training.rows import AS_TEXT

from .languages import match_code


# Maximum length of a source in tokens, for models whose config has no limit.
DEFAULT_LIMIT = 512


@dataclass
class Outputs:
    """
    Generated texts.

    Attributes:
        texts (`list[str]`):
            Generated texts.
        has_unk (`list[bool]`):
            Whether the model generated `<unk>`.
        is_cut (`list[bool]`):
            Whether the text reached the maximum length.
        truncated_sources (`int`):
            Number of sources that were longer than the model can read.
    """

    texts: list[str]
    has_unk: list[bool]
    is_cut: list[bool]
    truncated_sources: int = 0


class System:
    """
    A model with its tokenizer. [`~System.load`] loads the weights.

    Args:
        source (`str`):
            Folder or Hub id.
        spellings (`dict[str, list[str]]`):
            Names of languages in the tokenizer.

    Raises:
        ConversionError: if config or tokenizer cannot be read, or the model is not a sequence-to-sequence model.
    """

    def __init__(self, source: str, spellings: dict[str, list[str]]):
        self.source, self.spellings = source, spellings
        self.tokenizer, self.limit = self.read()

    def read(self) -> tuple[Any, int]:
        """Return the tokenizer, and the maximum length of a source in tokens."""
        raise NotImplementedError

    @property
    def languages(self) -> list[str]:
        """Codes of the tokenizer's languages, or an empty list if the model needs no codes."""
        raise NotImplementedError

    def load(self) -> Any:
        """Load the model."""
        raise NotImplementedError

    def encode(self, texts: list[str], source: str, target: str) -> tuple[list[list[int]], int | None]:
        """Return the token ids of sources and the first token to generate."""
        raise NotImplementedError

    def decode(self, ids: np.ndarray, target: str) -> list[str]:
        """Return generated texts, each on one line."""
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return [re.sub(r"[\r\n]+", " ", text).strip() for text in texts]

    def find_language(self, code: str) -> str:
        """
        Return the tokenizer's code of a language.

        Raises:
            DataError: if the tokenizer does not have the language.
        """
        if not self.languages:
            return code
        name = match_code(code, self.languages, self.spellings.get(code, ()))
        if name is None:
            known = self.languages if len(self.languages) < 20 else [*self.languages[:20], "..."]
            raise DataError(
                f"{self.source} does not know the language {code} (known: {', '.join(known)}). Pass another language. "
                f'If {code} is among these under another name, add `codes=["{code}=NAME"]`.'
            )
        return name

    @torch.inference_mode()
    def generate(
        self,
        model: Any,
        texts: Sequence[str],
        source: str,
        target: str,
        num_beams: int,
        max_length: int,
        batch_tokens: int,
    ) -> Outputs:
        """
        Generate a text for each source, in batches of similar lengths.

        Args:
            model ([`~transformers.PreTrainedModel`]):
                The model that [`~System.load`] returned.
            texts (`Sequence[str]`):
                Sources.
            source (`str`):
                Language code of the sources.
            target (`str`):
                Language code of the outputs.
            num_beams (`int`):
                Number of beams.
            max_length (`int`):
                Maximum number of generated tokens. The limit of the model applies if it is smaller.
            batch_tokens (`int`):
                Maximum size of a batch in tokens, with padding and for all beams.

        Returns:
            [`Outputs`]: the texts in the order of the sources.
        """
        codes = self.find_language(source), self.find_language(target)
        encoded, first = [], None
        for batch in batched(texts):
            ids, first = self.encode(batch, *codes)
            encoded += ids
        rows = {index: truncate(ids, self.limit) for index, ids in enumerate(encoded)}
        ends = model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        options = {"num_beams": num_beams, "max_new_tokens": min(max_length, self.limit)}
        options |= {} if first is None else {"forced_bos_token_id": first}
        outputs = Outputs([""] * len(rows), [False] * len(rows), [False] * len(rows))
        outputs.truncated_sources = sum(len(ids) > self.limit for ids in encoded)
        title = escape(f"{self.source}, {target}")
        batches = list(batches_by_length(rows, batch_tokens, num_beams, model.config.vocab_size))
        for batch in track(batches, title, console=Console(stderr=True)):
            inputs = self.tokenizer.pad({"input_ids": [rows[index] for index in batch]}, return_tensors="pt")
            generated = model.generate(**inputs.to(model.device), **options).cpu().numpy()
            has_unk = (generated == self.tokenizer.unk_token_id).any(axis=1).tolist()
            found = zip(batch, self.decode(generated, target), has_unk, find_cut(generated, ends), strict=True)
            for index, text, unk, cut in found:
                outputs.texts[index], outputs.has_unk[index], outputs.is_cut[index] = text, unk, cut
        return outputs


class OwnSystem(System):
    """An XLM-SWCM model."""

    def read(self) -> tuple[XLMSWCMTokenizer, int]:
        """Return the tokenizer, and the maximum length of a source in tokens. Check the files of the weights."""
        config = read_model_config(self.source)
        tokenizer = load_tokenizer(self.source, config.vocab_size)
        check_files(self.source)
        return tokenizer, config.longest_input

    @property
    def languages(self) -> list[str]:
        """Languages with a tag."""
        return self.tokenizer.languages

    def load(self) -> Any:
        """Load the model and check that its weights are complete."""
        return load_model(self.source, dtype="auto").eval()

    def encode(self, texts: list[str], source: str, target: str) -> tuple[list[list[int]], int | None]:
        """Return the token ids of sources with their tag, and the tag of the target."""
        if not self.languages:
            return self.tokenizer(texts, **AS_TEXT)["input_ids"], None
        ids = self.tokenizer(texts, src_lang=source, **AS_TEXT)["input_ids"]
        return ids, self.tokenizer.get_lang_id(target)


class PeerSystem(System):
    """Another encoder-decoder model of Transformers, for example NLLB, M2M100, mBART or Marian."""

    def read(self) -> tuple[Any, int]:
        """Return the tokenizer, and the maximum length of a source in tokens."""
        config = load_pretrained(AutoConfig, self.source)
        if not config.is_encoder_decoder:
            raise DataError(
                f"{self.source} has the model type {config.model_type}, which is not an encoder-decoder. Pass a "
                "sequence-to-sequence model."
            )
        tokenizer = load_pretrained(AutoTokenizer, self.source)
        return tokenizer, min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", DEFAULT_LIMIT))

    @property
    def languages(self) -> list[str]:
        """Language codes of the tokenizer, for example `bod_Tibt`, `bo` or `zh_CN`."""
        if not hasattr(self.tokenizer, "src_lang"):
            return []
        codes = getattr(self.tokenizer, "lang_code_to_id", None) or self.tokenizer.all_special_tokens
        return [code for code in codes if re.fullmatch(r"[a-z]{2,3}(_[A-Za-z]+)*", code)]

    def load(self) -> Any:
        """Load the model."""
        return load_pretrained(AutoModelForSeq2SeqLM, self.source, dtype="auto").eval()

    def encode(self, texts: list[str], source: str, target: str) -> tuple[list[list[int]], int | None]:
        """Return the token ids of sources, and the language token of the target."""
        options = {"truncation": True, "max_length": self.limit + 1, "verbose": False}
        if not self.languages:
            return self.tokenizer(texts, **options)["input_ids"], None
        # The tokenizers of these models keep the languages as a state.
        inputs = self.tokenizer._build_translation_inputs(texts, None, source, target, **options)
        return inputs["input_ids"], inputs["forced_bos_token_id"]

    def decode(self, ids: np.ndarray, target: str) -> list[str]:
        """Return generated texts, with Chinese punctuation as XLM-SWCM models write it."""
        texts = super().decode(ids, target)
        return [restore_marks(text, self.normalize) for text in texts] if is_chinese(target) else texts

    def normalize(self, text: str) -> str:
        """Return a text as the tokenizer reads it."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()


def open_system(source: str, spellings: dict[str, list[str]]) -> System:
    """
    Read config and tokenizer of a model.

    Args:
        source (`str`):
            Folder or Hub id.
        spellings (`dict[str, list[str]]`):
            Names of languages in the tokenizer.

    Returns:
        [`System`]: the model, without its weights.

    Raises:
        ConversionError: if the model cannot be read, or is not a sequence-to-sequence model.
    """
    is_own = read_config(source).get("model_type") in (*CONFIG_CLASSES, EXPORTED_TYPE)
    kind = OwnSystem if is_own else PeerSystem
    return kind(source, spellings)
