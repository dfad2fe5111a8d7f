"""A small encoder for three languages, and texts in these languages and in two scripts that it does not know."""

import functools
import json
import re
from pathlib import Path

import torch
from hypothesis import strategies as st
from support.encoders import (
    Tensors,
    make_encoder,
    read_tensors,
    save_encoder,
    unigram_pieces,
    wake,
    xlm_roberta_tokenizer,
)
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    XLMRobertaForMaskedLM,
    XLMRobertaTokenizer,
)
from typer.testing import CliRunner, Result

from modeling_xlm_swcm.cli import main
from modeling_xlm_swcm.conversion import convert


EMBEDDINGS = "roberta.embeddings.word_embeddings.weight"
TAGS = ["en", "zh", "kk-Cyrl"]


TEXTS = {
    "en": [
        "The herdsmen drive their herds across the river before the snow melts on the pass.",
        "In the morning the children carry water, and in the evening they carry the milk.",
        "Nobody in the village remembers a winter as long as this winter, not even the old miller.",
        "She reads the letters of her brother aloud, and the neighbours listen at the window.",
        "Three horses, two goats and one dog wait at the gate; the dog alone is patient.",
        "When the ferry is late, the ferryman tells stories of the years when there was no ferry.",
        "The bread is warm, the tea is strong, and the road to the market is seven miles long.",
        "They measured the field twice (42 by 17 paces) and wrote both numbers on the door.",
    ],
    "kk": [
        "Малшылар қар ерігенше малын өзеннен өткізіп, жайлауға қарай айдайды.",
        "Балалар таңертең су тасиды, ал кешке сүт тасиды.",
        "Ауылда мұндай ұзақ қысты ешкім есіне түсіре алмайды, тіпті қарт диірменші де.",
        "Ол ағасының хаттарын дауыстап оқиды, көршілер терезе алдында тыңдайды.",
        "Қақпаның алдында үш ат, екі ешкі және бір ит күтіп тұр; тек ит қана шыдамды.",
        "Қайық кешіксе, қайықшы қайық болмаған жылдар туралы әңгіме айтады.",
        "Нан ыстық, шай қою, ал базарға баратын жол жеті шақырым.",
    ],
    "zh": [
        "牧人在雪化以前赶着牛羊过河，到山上的草场去。",
        "孩子们早上挑水，晚上挑牛奶，从来不说累。",
        "村里没有人记得这么长的冬天，连磨坊的老人也不记得。",
        "她大声读哥哥的信，邻居们在窗外听。",
        "门口有三匹马、两只羊和一条狗在等；只有狗不着急。",
        "面包是热的，茶是浓的，去市场的路很长。",
    ],
    "bo": [
        "འབྲོག་པ་ཚོས་གངས་མ་བཞུས་གོང་ལ་ཕྱུགས་རྣམས་གཙང་པོ་བརྒལ་ནས་སྤང་ལ་དེད་ཀྱི་ཡོད།",
        "ཕྲུ་གུ་ཚོས་ཞོགས་པར་ཆུ་འཁྱེར་གྱི་ཡོད། དགོང་མོར་འོ་མ་འཁྱེར་གྱི་ཡོད།",
        "གྲོང་གསེབ་ནང་དགུན་ཁ་འདི་འདྲ་རིང་པོ་སུས་ཀྱང་དྲན་གྱི་མི་འདུག",
        "མོས་ཇོ་ཇོའི་ཡི་གེ་སྐད་ཆེན་པོས་ཀློག་གི་ཡོད། ཁྱིམ་མཚེས་ཚོས་སྒེའུ་ཁུང་ནས་ཉན་གྱི་ཡོད།",
        "སྒོ་ཁར་རྟ་གསུམ་དང་ར་གཉིས། ཁྱི་གཅིག་བཅས་སྒུག་ནས་འདུག",
        "བག་ལེབ་དྲོད་པོ་འདུག ཇ་གར་པོ་འདུག ཁྲོམ་ལ་འགྲོ་བའི་ལམ་རིང་པོ་འདུག",
    ],
    "mvf": [
        "ᠮᠠᠯᠴᠢᠨ ᠠᠷᠠᠳ ᠴᠠᠰᠤ ᠬᠠᠶᠢᠯᠬᠤ ᠶᠢᠨ ᠡᠮᠦᠨ᠎ᠡ ᠮᠠᠯ ᠢᠶᠠᠨ ᠲᠠᠭᠤᠵᠤ ᠶᠠᠪᠤᠨ᠎ᠠ",
        "ᠬᠡᠦᠬᠡᠳ ᠥᠷᠯᠥᠭᠡ ᠤᠰᠤ ᠵᠥᠭᠡᠵᠦ ᠣᠷᠣᠢ ᠰᠦ ᠵᠥᠭᠡᠨ᠎ᠡ",
        "ᠮᠠᠯᠴᠢᠨ ᠬᠡᠦᠬᠡᠳ ᠤᠰᠤ ᠠᠷᠠᠳ ᠮᠠᠯ ᠲᠠᠭᠤᠵᠤ ᠣᠷᠣᠢ ᠶᠠᠪᠤᠨ᠎ᠠ",
    ],
}
KNOWN = ("en", "kk", "zh")
# languages with scripts that the reader does not know
NEW = ("bo", "mvf")
# The encoder knows two Tibetan letters and the tsheg, and no letter of the Mongolian script.
TIBETAN = [("་", -4.0), ("ང", -9.0), ("ད", -8.0)]


def reader_pieces() -> list[tuple[str, float]]:
    return unigram_pieces([sentence for language in KNOWN for sentence in TEXTS[language]], 420) + TIBETAN


def reader_tokenizer(*more: str) -> XLMRobertaTokenizer:
    return xlm_roberta_tokenizer(*more, pieces=reader_pieces())


def save_reader(folder: Path, **options) -> Path:
    tokenizer = reader_tokenizer()
    # New rows get so little noise that tests can compare them with the expected mean.
    options = {"initializer_range": 1e-7, "max_position_embeddings": 100} | options
    model = make_encoder(XLMRobertaForMaskedLM, tokenizer, **options)
    return save_encoder(folder, model, tokenizer)


def save_writer(reader: Path, folder: Path) -> Path:
    """Convert the reader to a model with tags that generates Chinese by default."""
    convert(reader, folder, languages=TAGS)
    wake(folder)
    fields = json.loads((folder / "generation_config.json").read_text())
    fields["forced_bos_token_id"] = load_tokenizer(folder).get_lang_id("zh")
    (folder / "generation_config.json").write_text(json.dumps(fields))
    return folder


def write_texts(folder: Path) -> dict[str, str]:
    """Write a text file for each language and return the paths by language."""
    folder.mkdir(parents=True, exist_ok=True)
    for language, sentences in TEXTS.items():
        (folder / f"{language}.txt").write_text("\n".join(sentences) + "\n", encoding="utf-8")
    return {language: str(folder / f"{language}.txt") for language in TEXTS}


def run_vocab(*arguments) -> Result:
    return CliRunner().invoke(main, ["vocab", *map(str, arguments)])


def vocabulary_tensors(folder: Path) -> Tensors:
    """Return the tensors with a row per token. No other tensor has this number of rows."""
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    return {name: tensor for name, tensor in read_tensors(folder).items() if tensor.shape[0] == rows}


def other_tensors(folder: Path) -> Tensors:
    vocabulary = vocabulary_tensors(folder)
    return {name: tensor for name, tensor in read_tensors(folder).items() if name not in vocabulary}


def load_tokenizer(folder: Path, **options) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder, **options)


@functools.cache
def load_cached(folder: Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer once for all examples of a test."""
    return load_tokenizer(folder)


def load_encoder(folder: Path, model_class=AutoModelForMaskedLM) -> PreTrainedModel:
    """Load an encoder and check that no tensor is missing or left over."""
    model, info = model_class.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def segment(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    """Return the tokens of a text, without special tokens."""
    return tokenizer.convert_ids_to_tokens(ids(tokenizer, text))


def ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


def rows_by_token(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Return the row of every token in every vocabulary tensor."""
    vocab = load_tokenizer(folder).get_vocab()
    return {
        name: {token: tensor[token_id] for token, token_id in vocab.items()}
        for name, tensor in vocabulary_tensors(folder).items()
    }


def letters(language: str) -> str:
    return "".join(sorted(set(re.sub(r"\s", "", "".join(TEXTS[language])))))


def sentences_in(*languages: str) -> st.SearchStrategy[str]:
    """Return a strategy for sentences and random strings in the characters of these languages."""
    characters = st.text(st.sampled_from("".join(map(letters, languages)) + "   "), max_size=60)
    words = [word for language in languages for sentence in TEXTS[language] for word in sentence.split()]
    return st.one_of(characters, st.lists(st.sampled_from(words), max_size=12).map(" ".join))
