"""Measure how `xlm-swcm evaluate` scores perfect outputs. The outputs are human translations.

    python benchmarks/evaluation.py ntrex.tsv sentencepiece.bpe.model

The first file has columns bo, ug, kk, mn, zh and en, one sentence per line. The second file is the SentencePiece
model of XLM-R. The script normalises the Chinese sentences as XLM-R does, restores the punctuation, and scores both.
Then it counts faults of all sentences as if they were outputs. It prints tables in Markdown.
"""

import argparse
import csv
from pathlib import Path

from sacrebleu.metrics import CHRF
from sentencepiece import SentencePieceNormalizer

from modeling_xlm_swcm.punctuation_xlm_swcm import FULL_WIDTH, restore_marks
from modeling_xlm_swcm.training.faults import count_faults


LANGUAGES = ("bo", "ug", "kk", "mn", "zh", "en")


def read_columns(path: Path) -> dict[str, list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return {language: [row[language] for row in rows] for language in LANGUAGES}


def measure_punctuation(texts: list[str], model: Path):
    """Print chrF++ of normalised and restored sentences against the original ones."""
    normalizer = SentencePieceNormalizer(model_file=str(model))

    def normalize(text: str) -> str:
        return normalizer.normalize(text).replace("▁", " ").strip()

    normalized = [normalize(text) for text in texts]
    restored = [restore_marks(text, normalize) for text in normalized]
    print("| texts | chrF++ | equal sentences |\n|---|---|---|")
    for name, outputs in {"normalised": normalized, "restored": restored}.items():
        equal = sum(output == text for output, text in zip(outputs, texts, strict=True))
        score = CHRF(word_order=2).corpus_score(outputs, [texts]).score
        print(f"| {name} | {score:.1f} | {equal / len(texts):.1%} |")
    marks = {*FULL_WIDTH, *FULL_WIDTH.values()}
    aligned = [pair for pair in zip(restored, texts, strict=True) if len(pair[0]) == len(pair[1])]
    pairs = [(new, old) for output, text in aligned for new, old in zip(output, text, strict=True) if old in marks]
    right = sum(new == old for new, old in pairs)
    print(f"\n{right} of {len(pairs)} marks are equal to the marks in the original sentences.\n")
    if [normalize(text) for text in restored] != normalized:
        raise SystemExit(
            "error: The normalisation of a restored sentence differs from the normalised sentence. Report this bug."
        )


def measure_faults(columns: dict[str, list[str]]):
    """Print the faults of sentences in the language of the references and in another language."""
    print("| outputs | references | repeated | wrong_script | copied |\n|---|---|---|---|---|")
    pairs = [(language, language) for language in LANGUAGES] + [("zh", "bo"), ("kk", "ug"), ("en", "mn")]
    for outputs, references in pairs:
        source = "en" if references == "zh" else "zh"
        counts = count_faults(columns[outputs], columns[references], columns[source])
        print(f"| {outputs} | {references} | {counts['repeated']} | {counts['wrong_script']} | {counts['copied']} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="Table of parallel sentences.")
    parser.add_argument("model", type=Path, help="SentencePiece model of XLM-R.")
    args = parser.parse_args()
    columns = read_columns(args.data)
    measure_punctuation(columns["zh"], args.model)
    measure_faults(columns)


if __name__ == "__main__":
    main()
