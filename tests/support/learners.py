"""A model that generates a next text, for the tests of its export."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from support.encoders import SENTENCES

from modeling_xlm_swcm import XLMSWCMForConditionalGeneration, XLMSWCMTokenizer


TEXTS = [sentence[:14] for sentence in SENTENCES]
UNSEEN = ["The ferry stays", "no wind", "two herons, one boat", "བདེ་ལེགས།"]


@dataclass
class Learner:
    """A model that generates the next text of TEXTS for `<bo>`, and the text after the next for `<kk>`."""

    folder: Path
    model: XLMSWCMForConditionalGeneration
    tokenizer: XLMSWCMTokenizer

    def write(self, texts: list[str], language: str | None, **options) -> np.ndarray:
        inputs = self.tokenizer(texts, padding=True, return_tensors="pt", split_special_tokens=True)
        tag = None if language is None else self.tokenizer.get_lang_id(language)
        ids = self.model.generate(**inputs, forced_bos_token_id=tag, do_sample=False, **options).numpy()
        # Transformers pads beams with end tokens if the padding token has the id 0.
        is_end = ids == self.tokenizer.eos_token_id
        ids[is_end.cumsum(1) - is_end > 0] = self.tokenizer.pad_token_id
        return ids
