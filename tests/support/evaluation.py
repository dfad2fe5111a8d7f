"""Small test sets, files in the layouts of benchmarks, and a model of another architecture."""

import json
from pathlib import Path

import torch
from support.encoders import roberta_tokenizer
from support.tags import TEXTS
from transformers import AutoConfig, AutoModelForSeq2SeqLM, MBart50Tokenizer, NllbTokenizer


SOURCES = ["她喜欢看书。", "我们去河边，好吗？", "今天没有风", "书在这里"]
TARGETS = ["ཁོ་མོ་དེབ་ཀློག་རྒྱུར་དགའ།", "ང་ཚོ་ཆུ་འགྲམ་དུ་འགྲོ།", "དེ་རིང་རླུང་མི་འདུག", "དེབ་འདིར་ཡོད།"]


def write_files(folder: Path, files: dict[str, list | str]):
    """Write files by their paths: lists as JSON arrays (.json) or lines (.jsonl), texts as they are."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".jsonl"):
            content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
        elif not isinstance(content, str):
            content = json.dumps(content, ensure_ascii=False)
        path.write_text(content, encoding="utf-8")


def write_table(path: Path, copies: int = 1) -> Path:
    """Write a table with the columns zh and bo."""
    lines = ["zh\tbo", *map("\t".join, zip(SOURCES * copies, TARGETS * copies, strict=True))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def save_peer(folder: Path, kind: str = "nllb") -> Path:
    """Save a tiny model with the tokenizer of NLLB or mBART, or a BART without language codes."""
    letters = sorted(set("".join([*SOURCES, *TARGETS, *TEXTS.values()])) - {" "})
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", *letters]
    if kind == "nllb":
        tokenizer = NllbTokenizer(vocab={piece: place for place, piece in enumerate(pieces)}, merges=[])
    elif kind == "mbart":
        tokenizer = MBart50Tokenizer(vocab=[(piece, -float(place)) for place, piece in enumerate(pieces)])
    else:
        tokenizer = roberta_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 64}
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    model_type = {"nllb": "m2m_100"}.get(kind, kind)
    config = AutoConfig.for_model(model_type, vocab_size=len(tokenizer), **sizes, **layers)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)
    return folder
