"""A model on the page that runs in the exported runtime."""

from pathlib import Path

from modeling_xlm_swcm.export.xlm_swcm_runtime import ExportedModel
from modeling_xlm_swcm.sentences_xlm_swcm import Output

from .xlm_swcm_models import Options, PageModel, Token, Warn, mark_unknown


class RuntimeModel(PageModel):
    """
    A model that `xlm-swcm export` wrote. It returns no attention weights.

    Args:
        folder (`Path`): Folder of the model.

    Raises:
        ValueError: if the folder does not hold an exported model.
    """

    def __init__(self, folder: Path):
        self.model = ExportedModel(folder)
        super().__init__(list(self.model.config["languages"]), ["translation"], self.model.config["longest_input"])

    def is_split(self, options: Options) -> bool:
        """Return True if the languages differ or have no tags. Texts are then generated sentence by sentence."""
        return not self.languages or options.tgt_lang not in (None, options.src_lang)

    def generate(self, texts: list[str], options: Options, warn: Warn) -> list[list[Output]]:
        """Return the candidates for each text, best first."""
        languages = (options.src_lang, options.tgt_lang) if self.languages else ()
        answers = self.model(
            texts,
            *languages,
            split=self.is_split(options),
            return_scores=True,
            warn=warn,
            num_beams=options.num_beams,
            num_return_sequences=options.num_candidates,
        )
        return [[Output(*pair) for pair in (answer if isinstance(answer, list) else [answer])] for answer in answers]

    def tokenize(self, text: str) -> list[Token]:
        """Return the tokens of a text, without special tokens."""
        encoding = self.model.tokenizer.encode(text, add_special_tokens=False)
        return mark_unknown(encoding.tokens, encoding.ids, self.model.config["unk_token_id"])
