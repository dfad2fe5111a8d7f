"""Compare the sentences that a translation splits documents into with the lines of `ntrex.tsv`.

    python benchmarks/sentences.py DATA/ntrex.tsv [--split dev test] [--library sentencex] [--show 20]

The lines of a document are joined with a space, or with nothing in Chinese. Headings stand on separate lines. A
line is a heading if the English line has no mark at its end. --library needs `pip install sentencex`.
"""

import argparse
import csv
import itertools
import random
import re
from collections.abc import Callable, Iterator

from modeling_xlm_swcm.sentences_xlm_swcm import split_texts


LANGUAGES = ("en", "zh", "kk", "mn", "ug", "bo")
HEADING = re.compile(r"""[^.!?:"')]["')]*$""")


def read_documents(path: str, splits: list[str]) -> list[list[dict[str, str]]]:
    """Return the rows of each document of the splits."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if row["split"] in splits]
    return [list(group) for _, group in itertools.groupby(rows, key=lambda row: row["doc"])]


def make_document(rows: list[dict[str, str]], language: str) -> tuple[str, set[int]]:
    """Return a document and the places where its lines start, without the first line."""
    text, places = "", set()
    for row, following in itertools.pairwise(rows):
        has_heading = any(HEADING.search(one["en"].strip()) for one in (row, following))
        text += " ".join(row[language].split()) + ("\n" if has_heading else "" if language == "zh" else " ")
        places.add(len(text))
    return text + " ".join(rows[-1][language].split()), places


def split_with_rules(text: str, language: str) -> Iterator[int]:
    """Yield the places where sentences start, without the first sentence."""
    parts = split_texts([text], lambda sentences: [0] * len(sentences), 1, print)[0]
    lengths = [len(sentence) + len(gap) for sentence, gap in zip(parts[1::2], parts[2::2], strict=True)]
    yield from itertools.accumulate(lengths[:-1], initial=len(parts[0]))


def split_with_library(text: str, language: str) -> Iterator[int]:
    """Yield the places where the sentences of sentencex start."""
    import sentencex

    place = 0
    for line in text.splitlines():
        for sentence in sentencex.segment(language, line):
            if sentence.strip():
                place = text.index(sentence.strip(), place)
                yield place
                place += len(sentence.strip())


def compare(documents: list, language: str, split: Callable) -> tuple[list[int], list[str], list[str]]:
    """Return the numbers of right, extra and missing places, and the text around the extra and missing places."""
    right, extra, missing = 0, [], []
    for rows in documents:
        text, lines = make_document(rows, language)
        found = set(split(text, language)) - {0}
        right += len(found & lines)
        for places, examples in ((found - lines, extra), (lines - found, missing)):
            examples += [f"{text[max(0, place - 50) : place]}|{text[place : place + 30]}" for place in sorted(places)]
    return [right, len(extra), len(missing)], extra, missing


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="The file ntrex.tsv.")
    parser.add_argument("--split", nargs="+", default=["dev", "test"], help="Splits to use. Default: dev test.")
    parser.add_argument("--library", choices=["sentencex"], help="Library to compare with. Default: none.")
    parser.add_argument("--show", type=int, default=0, help="Number of differences to print. Default: 0.")
    args = parser.parse_args()
    documents = read_documents(args.data, args.split)
    print(f"{len(documents)} documents, {sum(map(len, documents))} lines")
    print("| language | splitter | precision | recall | F1 | right | extra | missing |")
    print("|---|---|---|---|---|---|---|---|")
    splitters = {"rules": split_with_rules} | ({args.library: split_with_library} if args.library else {})
    for language, (name, split) in itertools.product(LANGUAGES, splitters.items()):
        counts, extra, missing = compare(documents, language, split)
        right = counts[0]
        scores = [right / (right + counts[1]), right / (right + counts[2]), 2 * right / (2 * right + sum(counts[1:]))]
        print(f"| {language} | {name} |", *(f"{score:.3f} |" for score in scores), *(f"{count} |" for count in counts))
        for kind, examples in {"extra": extra, "missing": missing}.items():
            shown = random.Random(0).sample(examples, min(args.show, len(examples)))
            print("".join(f"  {kind}: {example!r}\n" for example in shown), end="")


if __name__ == "__main__":
    main()
