"""Compare one encoder in the shapes of BERT and XLM-R, and count lines that BERT's tokenizer gives back.

    python benchmarks/bert.py DATA --bert FOLDER --xlm_r FOLDER

DATA has `ntrex.tsv` (columns bo, ug, kk, mn, zh, en, one sentence per line). The folders hold the same encoder with
model type `bert` and `xlm-roberta`. The script converts both and compares the models bit by bit. It compares the
hidden states of the converted encoder with the hidden states of Transformers' BERT. It writes
outputs/benchmarks/bert.json.
"""

import argparse
import csv
from pathlib import Path

import torch
from safetensors import safe_open
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import WordPiece
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, BertModel

from modeling_xlm_swcm.checkpoints.word_pieces import make_backend
from modeling_xlm_swcm.conversion import convert
from modeling_xlm_swcm.training.files import write_json


FOLDER = Path("outputs/benchmarks/bert")
LANGUAGES = ("bo", "ug", "kk", "mn", "zh", "en")
LINES, DECODED_LINES = 20, 400


def read_lines(data: Path) -> list[dict[str, str]]:
    with (data / "ntrex.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def find_differences(first: Path, second: Path) -> list[str]:
    """Return the names of the tensors and files in which two models differ."""
    opened = [safe_open(folder / "model.safetensors", "pt") for folder in (first, second)]
    names = [set(file.keys()) for file in opened]
    assert names[0] == names[1]
    different = [
        name
        for name in sorted(names[0])
        if not torch.equal(*(file.get_tensor(name).view(torch.uint8) for file in opened))
    ]
    files = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
    return different + [name for name in files if (first / name).read_bytes() != (second / name).read_bytes()]


@torch.no_grad()
def compare_states(bert: Path, converted: Path, rows: list[dict[str, str]]) -> dict[str, float]:
    """Return the largest difference of the hidden states of all layers, for each language."""
    source, tokenizer = (
        BertModel.from_pretrained(bert, add_pooling_layer=False).eval(),
        AutoTokenizer.from_pretrained(bert),
    )
    encoder = AutoModelForSeq2SeqLM.from_pretrained(converted).eval().get_encoder()
    differences = {}
    for language in LANGUAGES:
        texts = [row[language] for row in rows[:LINES]]
        batch = tokenizer(texts, padding=True, truncation=True, max_length=512, return_tensors="pt")
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        is_token = inputs["attention_mask"].bool()
        expected, states = (model(**inputs, output_hidden_states=True).hidden_states for model in (source, encoder))
        differences[language] = max(
            (one[is_token] - other[is_token]).abs().max().item() for one, other in zip(expected, states, strict=True)
        )
    return differences


def measure_decoding(rows: list[dict[str, str]]) -> dict[str, dict[str, float]]:
    """Return the share of lines that decoding restores, for a cased BERT tokenizer that knows all words."""
    backend = Tokenizer(WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    normalizer, splitter = normalizers.BertNormalizer(lowercase=False), pre_tokenizers.BertPreTokenizer()
    shares = {}
    for name, decoder in {"BERT's": backend.decoder, "xlm-swcm's": make_backend(backend).decoder}.items():
        shares[name] = {}
        for language in LANGUAGES:
            texts = [" ".join(row[language].split()) for row in rows[:DECODED_LINES]]
            words = [[word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))] for text in texts]
            restored = sum(decoder.decode(split) == text for split, text in zip(words, texts, strict=True))
            shares[name][language] = restored / len(texts)
    return shares


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="Folder with ntrex.tsv.")
    parser.add_argument("--bert", type=Path, required=True, help="Folder of the encoder with model type bert.")
    parser.add_argument("--xlm_r", type=Path, required=True, help="Folder of the encoder with model type xlm-roberta.")
    args = parser.parse_args()
    rows = read_lines(args.data)
    for name, source in {"bert": args.bert, "xlm_r": args.xlm_r}.items():
        convert(source, FOLDER / name, languages=LANGUAGES, overwrite=True)
    results = {
        "differences": find_differences(FOLDER / "bert", FOLDER / "xlm_r"),
        "largest difference of hidden states": compare_states(args.bert, FOLDER / "bert", rows),
        "restored lines": measure_decoding(rows),
    }
    write_json(FOLDER.with_suffix(".json"), results)
    for name, result in results.items():
        print(f"{name}: {result}")


if __name__ == "__main__":
    main()
