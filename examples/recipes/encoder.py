"""Train a small XLM-R of six languages for the other recipes.

    python examples/recipes/encoder.py --data DATA --output_dir OUTPUT

DATA has plain text in `mono/` (example: `mono/bo.news.txt`), and `ntrex.tsv` (NTREX-128, with the columns split, bo,
ug, kk, mn, zh and en). The encoder trains on the plain text and the training lines of NTREX-128. It is evaluated on
the development lines. With `--tokenizer` the vocabulary is XLM-R's, extended with Tibetan tokens and trimmed. All
options of `train_encoder.py` work too. Run the recipe again to continue after a stop.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from steps import EXAMPLES, FolderArguments, parse_folders, read_ntrex, run_script
from transformers import AutoTokenizer, XLMRobertaConfig, XLMRobertaForMaskedLM

from modeling_xlm_swcm.checkpoints.errors import ConversionError
from modeling_xlm_swcm.checkpoints.reading import load_pretrained
from modeling_xlm_swcm.vocabulary import extend, trim


LANGUAGES = ["bo", "ug", "kk", "mn", "zh", "en"]
# Tibetan tokens to add, and tokens to keep
NEW_TOKENS, VOCABULARY = 4_000, 12_000


@dataclass(kw_only=True)
class EncoderRecipeArguments(FolderArguments):
    tokenizer: str | None = field(
        default=None,
        metadata={"help": "Tokenizer of XLM-R: a folder or Hub id. Default: learn a vocabulary from the text."},
    )


def find_text(data: Path, language: str) -> list[Path]:
    if paths := sorted((data / "mono").glob(f"{language}.*.txt")):
        return paths
    sys.exit(f"error: {data / 'mono'} has no text in {language}. Add a file named like {language}.news.txt.")


def write_ntrex(args: FolderArguments, split: str) -> list[Path]:
    """Write the lines of a split to a file for each language, and return the files."""
    rows, files = read_ntrex(args.data, split), []
    for code in LANGUAGES:
        files.append(args.output_dir / f"{code}.ntrex.{split}.txt")
        files[-1].write_text("".join(row[code].strip() + "\n" for row in rows), encoding="utf-8")
    return files


def make_vocabulary(args: EncoderRecipeArguments, texts: list[Path]) -> Path:
    """Extend and trim the given tokenizer, and return its folder."""
    whole, extended, trimmed = (args.output_dir / "vocabulary" / name for name in ("whole", "extended", "trimmed"))
    if not trimmed.exists():
        tokenizer = load_pretrained(AutoTokenizer, args.tokenizer)
        sizes = dict(
            vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
        )
        XLMRobertaForMaskedLM(XLMRobertaConfig(**sizes)).save_pretrained(whole)
        tokenizer.save_pretrained(whole)
        corpus = list(map(str, texts))
        tibetan = [path for path in corpus if Path(path).name.startswith("bo.")]
        extend(whole, extended, corpus=tibetan, size=NEW_TOKENS, overwrite=True)
        trim(extended, trimmed, corpus=corpus, size=VOCABULARY)
    return trimmed


def main():
    args, rest = parse_folders(EncoderRecipeArguments, __doc__, ["ntrex.tsv"])
    texts = [path for code in LANGUAGES for path in find_text(args.data, code)]
    texts += write_ntrex(args, "train")
    if args.tokenizer is not None:
        try:
            rest += ["--tokenizer_name", str(make_vocabulary(args, texts))]
        except ConversionError as error:
            sys.exit(f"error: {error}")
    run_script(
        "train_encoder.py",
        EXAMPLES / "presets" / "encoder_small.yaml",
        *("--corpus", *texts, "--validation", *write_ntrex(args, "dev")),
        *("--output_dir", args.output_dir / "encoder", "--resume_from_checkpoint", "last", *rest),
    )


if __name__ == "__main__":
    main()
