"""Damaged tokenizer files are refused with file and field, and tokenizers with other names for their ends work."""

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.commands import assert_refused
from support.encoders import (
    edit_config,
    edit_tensors,
    make_encoder,
    save_encoder,
    sentencepiece_model,
    unigram_pieces,
)
from support.folders import contents
from support.vocabularies import TEXTS, load_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, XLMRobertaForMaskedLM
from typer.testing import CliRunner, Result

from modeling_xlm_swcm.checkpoints.tokenizer_files import find_charsmap_problem, is_charsmap
from modeling_xlm_swcm.cli import main
from modeling_xlm_swcm.conversion import convert
from modeling_xlm_swcm.vocabulary import extend, trim


@pytest.fixture
def text(tmp_path) -> str:
    (tmp_path / "bo.txt").write_text("\n".join(TEXTS["bo"]))
    return str(tmp_path / "bo.txt")


@pytest.fixture(params=["convert", "trim", "extend"])
def command(request, text) -> Callable[[Path, Path], Result]:
    options = {"convert": [], "trim": ["--corpus", text], "extend": ["--size", "100", "--corpus", text]}

    def run(source: Path, output: Path) -> Result:
        words = ["convert"] if request.param == "convert" else ["vocab", request.param]
        return CliRunner().invoke(main, [*words, str(source), str(output), *options[request.param]])

    return run


def write(content: str | bytes) -> Callable[[Path], None]:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / "tokenizer.json").write_bytes(data)


def edit(change: Callable[[dict], object], name: str = "tokenizer.json") -> Callable[[Path], None]:
    def edit_file(folder: Path):
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return edit_file


def piece(entry: object) -> Callable[[Path], None]:
    """Replace an entry of the vocab."""
    return edit(lambda content: content["model"]["vocab"].__setitem__(20, entry))


def model(**fields) -> Callable[[Path], None]:
    return edit(lambda content: content["model"].update(fields))


def added(**fields) -> Callable[[Path], None]:
    """Add a token with these fields."""
    return edit(lambda content: content["added_tokens"].append(content["added_tokens"][0] | fields))


def charsmap(data: str) -> Callable[[Path], None]:
    normalizer = {"type": "Precompiled", "precompiled_charsmap": data}
    return edit(lambda content: content.update(normalizer={"type": "Sequence", "normalizers": [normalizer]}))


def settings(**fields) -> Callable[[Path], None]:
    return edit(lambda content: content.update(fields), "tokenizer_config.json")


DAMAGED = "tokenizer.json is damaged: "
CHARSMAP = [DAMAGED + "the precompiled_charsmap of its normalizer cannot be read."]
CASES = {
    "no JSON": (write("{"), ["tokenizer.json is not valid JSON."]),
    "nothing": (write(""), ["tokenizer.json is not valid JSON."]),
    "bytes": (write(bytes(range(255, 0, -1))), ["tokenizer.json is not valid JSON."]),
    "a list": (write("[]"), ["tokenizer.json is not a JSON object."]),
    "an empty object": (write("{}"), ["tokenizer.json has no model with a vocab."]),
    "no model": (edit(lambda content: content.update(model=None)), ["has no model with a vocab."]),
    "words": (model(type="WordLevel", vocab={"<unk>": 0}), ["holds a WordLevel model.", "Unigram or BPE"]),
    "a vocab of another model": (model(vocab={"a": 0}), [DAMAGED + "its vocab is not a list."]),
    "an empty vocab": (model(vocab=[]), [DAMAGED + "its unk_id is 3, not an id of its vocab."]),
    "no unk": (model(unk_id=None), [DAMAGED + "its unk_id is null, not an id of its vocab."]),
    "an unk that is out of range": (model(unk_id=148), ["its unk_id is 148, not an id of its vocab."]),
    "a negative unk": (model(unk_id=-1), ["its unk_id is -1, not an id of its vocab."]),
    "a piece that is a number": (piece([1, 2]), ["entry 20 of its vocab is not a piece with a score."]),
    "a piece without a score": (piece(["a"]), ["entry 20 of its vocab is not a piece with a score."]),
    "a score that is text": (piece(["new", "b"]), ['the score of "new" in its vocab is "b", not a finite number.']),
    "no score": (piece(["new", None]), ['the score of "new" in its vocab is null, not a finite number.']),
    "a score of NaN": (piece(["new", float("nan")]), ['"new" in its vocab is NaN, not a finite number.']),
    "an infinite score": (piece(["new", -float("inf")]), ['"new" in its vocab is -Infinity, not a finite']),
    "a special token twice": (piece(["<s>", -3.0]), [DAMAGED + 'its vocab has "<s>" twice.']),
    "added tokens that are no list": (edit(lambda content: content.update(added_tokens=None)), ["is not a list."]),
    "an added token that is a number": (
        edit(lambda content: content.update(added_tokens=[1])),
        ["an entry of its added_tokens has no content."],
    ),
    "an added token with a negative id": (added(content="<x>", id=-5), ['the id of "<x>" in its added_tokens is -5.']),
    "an added token with two ids": (
        added(id=40),
        ['"<s>" has the id 40 in its added_tokens and the id 0 in its vocab.'],
    ),
    "an added token in place of a piece": (
        added(content="<x>", id=40),
        ['"<x>" in its added_tokens has the id 40 of another piece.'],
    ),
    "an added token far away": (added(content="<x>", id=10**6), ["149 tokens", "148 rows"]),
    "an empty charsmap": (charsmap(""), CHARSMAP),
    "a charsmap that is no Base64": (charsmap("%%%"), CHARSMAP),
    "a charsmap that is cut": (charsmap(base64.b64encode(b"\x10\0\0\0abcd").decode()), CHARSMAP),
    "a charsmap of random bytes": (charsmap(base64.b64encode(b"\xff\xff\xff\x7f" + b"\xff" * 40).decode()), CHARSMAP),
    "an unknown normalizer": (
        edit(lambda content: content.update(normalizer={"type": "Nothing"})),
        ["Cannot load the tokenizer of", "NormalizerUntagged"],
    ),
    "a class that is a number": (
        settings(tokenizer_class=5),
        ["tokenizer_class in tokenizer_config.json of", "wrong type: 5"],
    ),
    "a class of another model": (
        settings(tokenizer_class="BertTokenizer"),
        ["makes a WordPiece tokenizer, but tokenizer.json holds a Unigram model. Correct tokenizer_class."],
    ),
    "a length that is text": (
        settings(model_max_length="long"),
        ["model_max_length in", 'has the wrong type: "long"'],
    ),
    "a special token that is a number": (
        settings(bos_token=5),
        ["bos_token in tokenizer_config.json of", "wrong type: 5"],
    ),
    "no ends": (
        settings(tokenizer_class="PreTrainedTokenizerFast", bos_token=None, cls_token=None),
        ["has neither bos_token nor cls_token. Set bos_token in its tokenizer_config.json."],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_tokenizer_is_refused(own_encoder, output, command, case):
    change, words = CASES[case]
    change(own_encoder)
    before = contents(own_encoder)
    assert_refused(command(own_encoder, output), *words)
    assert contents(own_encoder) == before and not output.exists()


def test_an_id_of_the_post_processor_without_a_token_is_refused(own_encoder, output, text):
    processor = {"type": "BertProcessing", "sep": ["</s>", 999], "cls": ["<s>", 0]}
    edit(lambda content: content.update(post_processor=processor))(own_encoder)
    settings(tokenizer_class="PreTrainedTokenizerFast")(own_encoder)
    result = CliRunner().invoke(main, ["vocab", "trim", str(own_encoder), str(output), "--corpus", text])
    assert_refused(
        result, "The post_processor in tokenizer.json of", "has the id 999, but the last token has the id 147"
    )


def test_the_charsmap_of_sentencepiece_is_whole():
    pb2 = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
    data = pb2.ModelProto.FromString(sentencepiece_model()).normalizer_spec.precompiled_charsmap
    normalizer = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}
    assert len(data) > 1000 and find_charsmap_problem(normalizer) is None
    # The tokenizers library would panic in a lookup, and print a backtrace.
    end = 4 + int.from_bytes(data[:4], "little")
    root_of_another_place = data[:4] + b"\0\xfc\xff\x7f" + data[8:]
    few_replacements = data[: end + 9]
    moved_replacements = data[:end] + b"ab" + data[end:]
    for damaged in (root_of_another_place, few_replacements, moved_replacements):
        assert not is_charsmap(damaged)
    cut = normalizer | {"precompiled_charsmap": base64.b64encode(data[: len(data) // 2]).decode()}
    assert find_charsmap_problem(cut) is not None


@pytest.mark.parametrize("part", ["charsmap", "file"])
def test_a_damaged_sentencepiece_file_is_refused(own_encoder, output, command, part):
    pb2 = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
    proto = pb2.ModelProto.FromString(sentencepiece_model())
    proto.normalizer_spec.precompiled_charsmap = b"\4\0\0\0\xff\xff\xff\xff"
    content = proto.SerializeToString() if part == "charsmap" else b"\xff" * 99
    (own_encoder / "tokenizer.json").unlink()
    (own_encoder / "sentencepiece.bpe.model").write_bytes(content)
    what = "damaged: its precompiled_charsmap cannot be read." if part == "charsmap" else "damaged."
    assert_refused(command(own_encoder, output), f"sentencepiece.bpe.model is {what} Download it again.")


def save_bert_like(folder: Path, **settings) -> Path:
    """Save an encoder. Its tokenizer has `[CLS]` and `[SEP]` after the pieces, and a Sequence of post-processors."""
    pieces = [("<pad>", 0.0), ("<unk>", 0.0), *unigram_pieces(), ("[CLS]", 0.0), ("[SEP]", 0.0)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=1))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    cls, sep = (("[CLS]", len(pieces) - 2), ("[SEP]", len(pieces) - 1))
    template = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[cls, sep])
    backend.post_processor = processors.Sequence([template])
    named = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **named, **settings)
    ids = {"pad_token_id": 0, "bos_token_id": cls[1], "eos_token_id": sep[1]}
    return save_encoder(folder, make_encoder(XLMRobertaForMaskedLM, tokenizer, **ids), tokenizer)


def test_cls_and_sep_stand_in_for_bos_and_eos(tmp_path, text):
    source = save_bert_like(tmp_path / "encoder")
    assert load_tokenizer(source).bos_token is None
    convert(source, tmp_path / "model", languages=["bo"])
    tokenizer = load_tokenizer(tmp_path / "model", src_lang="bo")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    ends = load_tokenizer(source).convert_tokens_to_ids(["[CLS]", "[SEP]"])
    assert [config["bos_token_id"], config["eos_token_id"]] == ends
    ids = tokenizer("ང་ཚོས")["input_ids"]
    assert [ids[0], ids[1], ids[-1]] == [ends[0], tokenizer.get_lang_id("bo"), ends[1]]


@pytest.mark.parametrize("change", [trim, lambda *folders, corpus: extend(*folders, corpus=corpus, size=100)])
def test_cls_and_sep_get_their_new_ids_in_every_post_processor(tmp_path, text, change):
    source = save_bert_like(tmp_path / "encoder")
    change(source, tmp_path / "model", corpus=[text])
    before, after = load_tokenizer(source), load_tokenizer(tmp_path / "model")
    assert (after.bos_token, after.eos_token) == ("[CLS]", "[SEP]")
    sentence = "ང་ཚོས"
    assert after.convert_ids_to_tokens(after(sentence)["input_ids"])[:: len(after(sentence)["input_ids"]) - 1] == [
        "[CLS]",
        "[SEP]",
    ]
    assert (len(before) > len(after)) == (change is trim)


def test_a_class_that_takes_no_null_gets_cls_and_sep(own_encoder, output, command):
    settings(bos_token=None, eos_token=None)(own_encoder)
    result = command(own_encoder, output)
    assert result.exit_code == 0, result.stderr
    tokenizer = load_tokenizer(output)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")


@pytest.mark.parametrize("action", ["trim", "extend"])
@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "torchao"])
def test_a_quantised_model_is_refused(converted, folder, output, text, action, method):
    edit_config(folder, quantization_config={"quant_method": method, "load_in_8bit": True})
    size = ["--size", "100"] if action == "extend" else []
    result = CliRunner().invoke(main, ["vocab", action, str(folder), str(output), "--corpus", text, *size])
    assert_refused(result, f"The vocabulary of {folder} cannot be changed: its weights are quantised.", "Use the")
    assert not os.path.lexists(output)


@pytest.mark.parametrize("name", ["model.decoder.layers.0.ffn.fc1.weight", "lm_head.bias"])
def test_weights_of_integers_are_refused_without_a_config_too(folder, output, text, name):
    edit_tensors(folder, lambda tensors: tensors | {name: (tensors[name] * 10).to(torch.int8)})
    result = CliRunner().invoke(main, ["vocab", "trim", str(folder), str(output), "--corpus", text])
    assert_refused(result, f"{name} of {folder} has the data type I8.")
