"""Small encoders with random weights, saved in all formats that users have."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertTokenizer,
    CamembertTokenizer,
    GemmaTokenizer,
    ModernBertConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RobertaTokenizer,
    XLMRobertaForMaskedLM,
    XLMRobertaTokenizer,
)

from modeling_xlm_swcm.vocabulary.pieces import read_learnt_pieces


SENTENCES = [
    "The river rises early in spring, and the ferry stays at the bank.",
    "A quiet morning: two herons, one boat, no wind at all.",
    "ང་ཚོས་དཔེ་ཆ་ཀློག་གི་ཡོད།",
    "ཞོགས་པ་བདེ་ལེགས། ཁྱེད་རང་ག་པར་ཕེབས་ག",
    "بىز ئەتىگەندە دەريا بويىغا باردۇق.",
    "بۈگۈن ھاۋا ئوچۇق، شامال يوق.",
    "Таңертең өзен жағасына бардық, жел жоқ еді.",
    "ᠪᠢ ᠨᠣᠮ ᠤᠩᠰᠢᠵᠤ ᠪᠠᠶᠢᠨ᠎ᠠ",
    "我们早上去了河边，没有风。",
]
# Range of fresh weights. The weights of the test encoders are far larger, so tests can tell them apart.
INITIALIZER_RANGE = 0.05

Tensors = dict[str, torch.Tensor]


def unigram_pieces(sentences: list[str] = SENTENCES, size: int = 150) -> list[tuple[str, float]]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=size, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(sentences, trainer)
    return read_learnt_pieces(tokenizer, ["<unk>"])


def special(*tokens: str) -> list[tuple[str, float]]:
    return [(token, 0.0) for token in tokens]


def xlm_roberta_tokenizer(*more: str, pieces: list[tuple[str, float]] | None = None) -> XLMRobertaTokenizer:
    """Return a tokenizer with XLM-R's ids: special tokens, pieces, `more` pieces, and `<mask>` last."""
    vocab = special("<s>", "<pad>", "</s>", "<unk>") + (pieces or unigram_pieces()) + special(*more, "<mask>")
    return XLMRobertaTokenizer(vocab=vocab, mask_token=AddedToken("<mask>", lstrip=True, special=True))


def camembert_tokenizer() -> CamembertTokenizer:
    """Return a tokenizer with CamemBERT's ids: `<s>` is 5 and `</s>` is 6."""
    vocab = special("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>")
    return CamembertTokenizer(vocab=vocab + unigram_pieces() + special("<mask>"))


def roberta_tokenizer() -> RobertaTokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocab = model["vocab"] | {"<mask>": len(model["vocab"])}
    return RobertaTokenizer(vocab=vocab, merges=[tuple(merge) for merge in model["merges"]])


def gemma_tokenizer(sentences: list[str] = SENTENCES[:1], size: int = 320) -> GemmaTokenizer:
    """Return a BPE tokenizer with mmBERT's special tokens. Characters that the sentences lack become bytes."""
    special_tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special_tokens + byte_tokens, show_progress=False)
    tokenizer.train_from_iterator(sentences, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    ends = {"cls_token": "<bos>", "sep_token": "<eos>"}
    tokenizer = GemmaTokenizer(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]], **ends)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    return tokenizer


def word_piece_tokenizer(sentences: list[str] = SENTENCES, **options) -> BertTokenizer:
    """Return a tokenizer with BERT's ids: `[PAD]` is 0, `[UNK]` 1, `[CLS]` 2, `[SEP]` 3 and `[MASK]` 4."""
    special_tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=special_tokens, show_progress=False)
    tokenizer.train_from_iterator(sentences, trainer)
    return BertTokenizer(vocab=json.loads(tokenizer.to_str())["model"]["vocab"], **{"do_lower_case": False} | options)


def sentencepiece_model() -> bytes:
    """Return a SentencePiece model with XLM-R's ids: `<unk>` 0, `<s>` 1, `</s>` 2, then the pieces."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_writer=written, vocab_size=130, minloglevel=2, num_threads=1
    )
    return written.getvalue()


def make_encoder(model_class: type, tokenizer: PreTrainedTokenizerBase, **options) -> PreTrainedModel:
    """Return an encoder with random biases and LayerNorms too, so that no two tensors are equal."""
    sizes = dict(hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=37)
    fields = dict(vocab_size=len(tokenizer), max_position_embeddings=40, initializer_range=INITIALIZER_RANGE)
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    norms = "LayerNorm.weight"
    if model_class.config_class is ModernBertConfig:
        norms = "norm.weight"
        # Local layers read four tokens on each side.
        fields |= dict(local_attention=8, cls_token_id=ids["bos_token_id"], sep_token_id=ids["eos_token_id"])
    config = model_class.config_class(**(sizes | fields | ids | {"type_vocab_size": 1} | options))
    model = model_class(config).eval()
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        parameter.data.normal_(1.0 if norms in name else 0.0, 0.3, generator=generator)
    return model


def make_masked_lm(**options) -> PreTrainedModel:
    return make_encoder(XLMRobertaForMaskedLM, xlm_roberta_tokenizer(), **options)


def save_encoder(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def read_tensors(folder: Path) -> Tensors:
    return load_file(folder / "model.safetensors")


def edit_tensors(folder: Path, edit: Callable[[Tensors], Tensors]):
    tensors = {name: tensor.contiguous() for name, tensor in edit(read_tensors(folder)).items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def wake(folder: Path):
    """Give random weights to all sublayers of a converted model, so that it reads its source as after training."""
    generator = torch.Generator().manual_seed(5)
    edit_tensors(
        folder,
        lambda tensors: {
            name: tensor if tensor.any() else torch.randn(tensor.shape, generator=generator) / 10
            for name, tensor in tensors.items()
        },
    )


def edit_config(folder: Path, **fields):
    """Set fields of `config.json`. None removes a field."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


def write_bin(folder: Path, zipped: bool = True):
    """Write `pytorch_model.bin` as Transformers 4, or in the format of PyTorch before 1.6."""
    tensors = read_tensors(folder)
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)


def write_shards(folder: Path, stem: str, extension: str):
    """Write three shards and their index, in safetensors or `.bin` format."""
    tensors = read_tensors(folder)
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number in (1, 2, 3):
        shard = {name: tensors[name] for name in list(tensors)[number - 1 :: 3]}
        file = f"{stem}-0000{number}-of-00003.{extension}"
        save_file(shard, folder / file) if extension == "safetensors" else torch.save(shard, folder / file)
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())}, "weight_map": weight_map}
    (folder / f"{stem}.{extension}.index.json").write_text(json.dumps(index))
