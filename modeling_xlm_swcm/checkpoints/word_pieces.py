"""What WordPiece tokenizers lose, and how much of it decoding can restore."""

import re

from tokenizers import Regex, Tokenizer, decoders
from tokenizers.models import WordPiece


# Characters without spaces around them: Chinese characters, full-width punctuation and the Tibetan tsheg.
UNSPACED = r"[\p{Han}\x{3001}-\x{303F}\x{FF01}-\x{FF65}\x{0F0B}]"

# BERT's pre-tokenizer splits before and after punctuation and Chinese characters, and loses the spaces between words.
# Decoding puts a space between all words. These patterns match the spaces that most texts do not have.
EXTRA_SPACES = (
    rf"(?<={UNSPACED}) +| +(?={UNSPACED})",
    # before closing punctuation, after opening punctuation
    r" +(?=[\p{Pe}\p{Pf}.,!?;:%…،؛؟।॥།༎᠂᠃።፣፤])",
    r"(?<=[\p{Ps}\p{Pi}¿¡]) +",
    # around an apostrophe or hyphen inside a word
    r"(?<=[\p{L}\p{M}\p{N}]) +(?=['’-] [\p{L}\p{N}])",
    r"(?<=[\p{L}\p{M}\p{N}]['’-]) +(?=[\p{L}\p{N}])",
    # after an opening quote, which has an odd number of quotes after it, and before a closing quote
    r"""(?<=") +(?=[^"]*"(?:[^"]*"[^"]*")*[^"]*$)""",
    r""" +(?="(?:[^"]*"[^"]*")*[^"]*$)""",
    # inside a number
    r"(?<=\p{N}[.,:/]) +(?=\p{N})",
)


# Characters that some scripts need, but BERT's normalizer removes as control characters.
INVISIBLE = {
    "\u180e": "Mongolian vowel separator",
    "\u200c": "zero-width non-joiner",
    "\u200d": "zero-width joiner",
}


def is_word_piece(tokenizer: Tokenizer) -> bool:
    """Return True if the model of a tokenizer is WordPiece."""
    return isinstance(tokenizer.model, WordPiece)


def make_backend(tokenizer: Tokenizer) -> Tokenizer:
    """Return a tokenizer. For WordPiece, return a copy that decodes without `EXTRA_SPACES`."""
    if not is_word_piece(tokenizer):
        return tokenizer
    backend, prefix = Tokenizer.from_str(tokenizer.to_str()), tokenizer.model.continuing_subword_prefix
    backend.decoder = decoders.Sequence(
        [
            decoders.WordPiece(prefix, cleanup=False),
            decoders.Fuse(),
            # A text can start inside a word.
            decoders.Replace(Regex(f"^{re.escape(prefix)}"), ""),
            *(decoders.Replace(Regex(pattern), "") for pattern in EXTRA_SPACES),
        ]
    )
    return backend


def find_losses(tokenizer: Tokenizer) -> list[str]:
    """Return a sentence for each kind of information that a tokenizer loses. A model cannot generate it."""

    def normalize(text: str) -> str:
        return text if tokenizer.normalizer is None else tokenizer.normalizer.normalize_str(text)

    invisible = [name for character, name in INVISIBLE.items() if normalize(f"a{character}a") == "aa"]
    losses = {
        "The tokenizer is uncased. The model generates no capital letters.": normalize("A").startswith("a"),
        "The tokenizer removes accents. The model generates no accents and no combining vowel signs.": normalize(
            "aé"
        ).endswith("e"),
        f"The tokenizer removes the {' and the '.join(invisible)}. The model does not generate them.": invisible,
        "The tokenizer is WordPiece. It loses spaces beside punctuation and Chinese characters. Generated text has "
        "the usual spaces, which can differ from the spaces of the training text.": is_word_piece(tokenizer),
    }
    return [loss for loss, is_present in losses.items() if is_present]
