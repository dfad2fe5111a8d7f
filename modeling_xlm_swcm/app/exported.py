"""A model on the page that runs in the exported runtime."""

from pathlib import Path

from modeling_xlm_swcm.export.xlm_swcm_runtime import ExportedModel
from modeling_xlm_swcm.sentences_xlm_swcm import Output

from .xlm_swcm_models import Options, PageModel, Token, WarnOfTexts, mark_unknown


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

    def generate(self, texts: list[str], options: Options, warn: WarnOfTexts) -> list[list[Output]]:
        """Return the candidates for each text, best first."""
        languages = (options.src_lang, options.tgt_lang) if self.languages else ()
        answers = self.model.generate_texts(
            texts,
            *languages,
            split=self.is_split(options),
            return_scores=True,
            num_beams=options.num_beams,
            num_return_sequences=options.num_candidates,
        )
        long = [[index] for index, answer in enumerate(answers) for _ in answer.long_sentences]
        cut = [index for index, answer in enumerate(answers) if answer.cut_lengths]
        # The warning about incomplete outputs is the last one.
        for message, places in zip(self.model.list_warnings(answers), [*long, cut], strict=False):
            warn(message, places)
        return [answer.outputs for answer in answers]

    def tokenize(self, text: str) -> list[Token]:
        """Return the tokens of a text, without special tokens."""
        encoding = self.model.tokenizer.encode(text, add_special_tokens=False)
        return mark_unknown(encoding.tokens, encoding.ids, self.model.config["unk_token_id"])
