"""A small XLM-R of six languages, for the other recipes.

    python examples/recipes/encoder.py --data DATA --output_dir OUTPUT

DATA has plain text in `mono/`, such as `mono/bo.*.txt`, and `ntrex.tsv` (NTREX-128, with the columns split, bo, ug,
kk, mn, zh and en), of which the training lines are learnt and the development lines held out. Other options are those
of `train_encoder.py`. A recipe that was stopped goes on when it is called again.
"""

import sys
from pathlib import Path

from steps import EXAMPLES, FolderArguments, parse_folders, read_ntrex, run


LANGUAGES = ["bo", "ug", "kk", "mn", "zh", "en"]


def find_text(data: Path, language: str) -> list[Path]:
    if paths := sorted((data / "mono").glob(f"{language}.*.txt")):
        return paths
    sys.exit(f"error: {data / 'mono'} has no text of the language {language}, such as {language}.news.txt.")


def write_ntrex(args: FolderArguments, split: str) -> list[Path]:
    """Write the lines of a split to a file for each language, and say where."""
    rows, files = read_ntrex(args.data, split), []
    for code in LANGUAGES:
        files.append(args.output_dir / f"{code}.ntrex.{split}.txt")
        files[-1].write_text("".join(row[code].strip() + "\n" for row in rows), encoding="utf-8")
    return files


def main():
    args, rest = parse_folders(FolderArguments, __doc__, ["ntrex.tsv"])
    texts = [path for code in LANGUAGES for path in find_text(args.data, code)]
    run(
        "train_encoder.py",
        EXAMPLES / "presets" / "encoder_small.yaml",
        *("--corpus", *texts, *write_ntrex(args, "train"), "--validation", *write_ntrex(args, "dev")),
        *("--output_dir", args.output_dir / "encoder", "--resume_from_checkpoint", "last", *rest),
    )


if __name__ == "__main__":
    main()
