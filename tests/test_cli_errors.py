"""The command line: an error is one line that names the problem."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.commands import assert_refused, run, run_script
from support.encoders import (
    Tensors,
    edit_config,
    edit_tensors,
    make_encoder,
    read_tensors,
    write_bin,
    write_shards,
    xlm_roberta_tokenizer,
)
from support.folders import contents
from transformers import AutoTokenizer, XLMRobertaForMaskedLM
from typer.testing import CliRunner

from modeling_xlm_swcm.cli import main
from modeling_xlm_swcm.conversion import convert


def remove(*names: str) -> Callable[[Path], None]:
    def change(folder: Path):
        for name in names:
            (folder / name).unlink()

    return change


def write(name: str, content: str | bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def config(**fields) -> Callable[[Path], None]:
    return lambda folder: edit_config(folder, **fields)


def tensors(edit: Callable[[Tensors], Tensors]) -> Callable[[Path], None]:
    return lambda folder: edit_tensors(folder, edit)


def without_layer_three(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if ".layer.3." not in name}


def cut(*steps: Callable[[Path], None]) -> Callable[[Path], None]:
    """Return a change that cuts the weight file in half after other changes."""

    def change(folder: Path):
        for step in steps:
            step(folder)
        (file,) = (*folder.glob("*.safetensors"), *folder.glob("*.bin"))
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return change


def lose_a_shard(stem: str, extension: str) -> Callable[[Path], None]:
    def change(folder: Path):
        write_shards(folder, stem, extension)
        (folder / f"{stem}-00002-of-00003.{extension}").unlink()

    return change


def break_the_index(content: str) -> Callable[[Path], None]:
    def change(folder: Path):
        write_shards(folder, "model", "safetensors")
        (folder / "model.safetensors.index.json").write_text(content)

    return change


def lose_a_tensor_of_a_shard(folder: Path):
    write_shards(folder, "model", "safetensors")
    shutil.copy(folder / "model-00001-of-00003.safetensors", folder / "model-00002-of-00003.safetensors")


def save_as_bin(content) -> Callable[[Path], None]:
    def change(folder: Path):
        (folder / "model.safetensors").unlink()
        torch.save(content, folder / "pytorch_model.bin")

    return change


def write_as_bin(content: bytes):
    def change(folder: Path):
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(content)

    return change


def add_tokens(folder: Path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["one more"])
    tokenizer.save_pretrained(folder)


def move_pad(folder: Path):
    tokenizer = AutoTokenizer.from_pretrained(folder, pad_token="<mask>")
    tokenizer.save_pretrained(folder)


LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"


def replace_tokenizer(folder: Path):
    (folder / "tokenizer.json").unlink()
    (folder / "sentencepiece.bpe.model").write_text(LFS_POINTER)


# Change of a valid encoder folder, and words of the error message.
BAD_SOURCES = {
    "no config": (remove("config.json"), ["config.json"]),
    "a config that is not JSON": (write("config.json", '{"model_type": '), ["config.json", "not valid JSON"]),
    "a config that is a list": (write("config.json", "[1, 2]"), ["config.json"]),
    "a config without a type": (config(model_type=None), ["model type"]),
    "a config without a size": (config(num_hidden_layers=None), ["num_hidden_layers", "config"]),
    "a config with a wrong size": (
        config(num_attention_heads=5),
        ["is invalid: num_attention_heads must divide hidden_size 32 (got 5). Change one of them.\n"],
    ),
    "a config with an unknown activation": (config(hidden_act="step"), ["hidden_act", "step"]),
    "a config with several activations": (config(hidden_act=["gelu"]), ["hidden_act", "gelu"]),
    "a config with a size that is text": (
        config(hidden_size="32"),
        ["is invalid: Field 'hidden_size' expected int, got str (value: '32'). Correct the config.\n"],
    ),
    "no weights": (remove("model.safetensors"), ["no weights", "pytorch_model.bin"]),
    "no tokenizer": (remove("tokenizer.json", "tokenizer_config.json"), ["tokenizer"]),
    "a tokenizer's settings only": (remove("tokenizer.json"), ["tokenizer"]),
    "a damaged tokenizer": (write("tokenizer.json", '{"version": '), ["tokenizer"]),
    "a tokenizer that is a pointer": (replace_tokenizer, ["tokenizer"]),
    "a tokenizer larger than the embedding": (add_tokens, ["149 tokens", "148 rows"]),
    "a tokenizer with another pad": (move_pad, ["pad_token_id is 1", "147 in its tokenizer"]),
    "a config with another pad": (config(pad_token_id=5), ["pad_token_id is 5"]),
    "a missing layer": (tensors(without_layer_three), ["lack encoder.layer.3.attention.self.query.weight"]),
    "a missing embedding": (
        tensors(lambda t: {name: tensor for name, tensor in t.items() if "word_embeddings" not in name}),
        ["embeddings.word_embeddings.weight"],
    ),
    "a layer more than the config has": (config(num_hidden_layers=3), ["encoder.layer.3."]),
    "a tensor that nobody claims": (
        tensors(lambda t: t | {"roberta.adapter.down.weight": torch.ones(3, 4)}),
        ["adapter.down.weight"],
    ),
    "a matrix of a wrong shape": (
        tensors(lambda t: t | {"roberta.encoder.layer.2.output.dense.weight": torch.ones(37, 32)}),
        ["encoder.layer.2.output.dense.weight", "[37, 32]", "[32, 37]"],
    ),
    "positions that the config has not": (
        config(max_position_embeddings=50),
        ["embeddings.position_embeddings.weight", "[40, 32]", "[50, 32]"],
    ),
    "an output bias of another length": (
        tensors(lambda t: t | {"lm_head.bias": torch.ones(20)}),
        ["lm_head.bias", "[20]", "[148]"],
    ),
    "safetensors cut short": (cut(), ["model.safetensors", "cut short"]),
    "safetensors of no length": (write("model.safetensors", b""), ["model.safetensors"]),
    "safetensors that are a pointer": (write("model.safetensors", LFS_POINTER), ["model.safetensors"]),
    "a zipped .bin cut short": (cut(write_bin), ["pytorch_model.bin", "cut short"]),
    "an old .bin cut short": (cut(lambda f: write_bin(f, zipped=False)), ["pytorch_model.bin", "cut short"]),
    "a .bin of no pickle": (write_as_bin(b"."), ["pytorch_model.bin", "damaged"]),
    "a .bin of text": (write_as_bin(b"once upon a time"), ["pytorch_model.bin", "damaged"]),
    "a .bin that is a list": (save_as_bin([torch.ones(3)]), ["pytorch_model.bin"]),
    "a .bin of nested tensors": (save_as_bin({"model": {"w": torch.ones(3)}}), ["encoder"]),
    "a .bin with something else": (
        save_as_bin({"roberta.embeddings.word_embeddings.weight": "none"}),
        ["pytorch_model.bin"],
    ),
    "a shard of safetensors missing": (
        lose_a_shard("model", "safetensors"),
        ["model.safetensors.index.json", "model-00002-of-00003.safetensors"],
    ),
    "a shard of .bin missing": (
        lose_a_shard("pytorch_model", "bin"),
        ["pytorch_model.bin.index.json", "pytorch_model-00002-of-00003.bin"],
    ),
    "an index that is not JSON": (break_the_index('{"weight_map": '), ["model.safetensors.index.json"]),
    "an index without a map": (break_the_index("{}"), ["model.safetensors.index.json"]),
    "a shard without its tensors": (lose_a_tensor_of_a_shard, ["lack", "and 2"]),
    "an XL model": (config(model_type="xlm-roberta-xl"), ["xlm-roberta-xl", "pre-LayerNorm"]),
    "a pre-LayerNorm model": (
        config(model_type="roberta-prelayernorm"),
        ["prelayernorm", "pre-LayerNorm", "post-LayerNorm"],
    ),
    "another kind of model": (
        config(model_type="t5"),
        ["t5", "bert, electra, modernbert, xlm-roberta, roberta or"],
    ),
    "a model with code of its own": (
        config(model_type="nomic", auto_map={"AutoModel": "modeling.Model"}),
        ["nomic", "auto_map", "never runs such code"],
    ),
    "a EuroBERT": (config(model_type="eurobert"), ["RMSNorm and rotary positions"]),
    "a DeBERTa": (config(model_type="deberta-v2"), ["relative positions"]),
    "an ELECTRA with small embeddings": (
        config(model_type="electra", embedding_size=16),
        ["embedding_size is 16 and its hidden_size is 32", "no projection"],
    ),
    "a decoder": (config(is_decoder=True), ["configured as a decoder"]),
    "a decoder's cross-attention": (config(add_cross_attention=True), ["configured as a decoder"]),
    "quantised weights": (config(quantization_config={"quant_method": "gptq", "bits": 4}), ["quantised"]),
    "relative positions": (config(position_embedding_type="relative_key"), ["relative_key"]),
}


@pytest.mark.parametrize("case", BAD_SOURCES)
def test_a_bad_source_is_refused_in_one_sentence_that_names_what_is_wrong(own_encoder, output, case):
    change, words = BAD_SOURCES[case]
    change(own_encoder)
    assert_refused(run(own_encoder, output), *words)
    assert contents(own_encoder.parent).keys() == {"encoder"} | {f"encoder/{name}" for name in contents(own_encoder)}


def test_a_folder_that_does_not_exist_is_named(tmp_path, output):
    assert_refused(run(tmp_path / "nothing", output), str(tmp_path / "nothing"), "does not exist")


def test_a_file_is_no_source(own_encoder, output):
    file = own_encoder / "model.safetensors"
    assert_refused(run(file, output), str(file), "is a file", "folder")


@pytest.mark.parametrize("model_type", ["xlm_swcm", "xlm_swcm_modern"])
def test_a_converted_checkpoint_is_no_source(model_type, encoder_folder, tmp_path, output):
    convert(encoder_folder, tmp_path / "converted")
    edit_config(tmp_path / "converted", model_type=model_type)
    assert_refused(run(tmp_path / "converted", output), str(tmp_path / "converted"), "already an XLM-SWCM checkpoint")


class Payload:
    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("form", ["zipped", "not zipped", "a plain pickle"])
def test_code_in_a_bin_is_refused_and_never_run(own_encoder, tmp_path, output, form):
    file = own_encoder / "pytorch_model.bin"
    content = read_tensors(own_encoder) | {"extra": Payload(tmp_path / "made by the payload")}
    if form == "a plain pickle":
        file.write_bytes(pickle.dumps(content["extra"], protocol=2))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "zipped")
    (own_encoder / "model.safetensors").unlink()
    result = run(own_encoder, output)
    assert_refused(result, str(file), "never run")
    # PyTorch's message suggests to run the code with weights_only=False.
    assert "weights_only" not in result.stderr
    assert not (tmp_path / "made by the payload").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--languages", "bo b"], ['"b"']),
        (["--license", "Apache License 2.0"], ['"Apache License 2.0"', "apache-2.0"]),
        (["--languages", "bo,ug"], ['"bo,ug"']),
        (["--languages", "<bo>"], ['"<bo>"']),
        (["--languages", "Tibetan"], ['"Tibetan"']),
        (["--languages", "bo ug bo"], ['"bo"', "twice"]),
        (["--languages", "pad"], ["<pad>", "special token"]),
        (["--languages", "bo unk"], ["<unk>", "special token"]),
        (["--normal-layer-interval", "0"], ["--normal-layer-interval must be a whole number above 0", "got 0"]),
        (["--normal-layer-interval", "-3"], ["--normal-layer-interval", "got -3"]),
        (
            ["--weight-sharing", "tied", "--layer-map", "interleaved"],
            ["--weight-sharing tied", "Use --layer-map same."],
        ),
        (["--weight-sharing", "tied", "--decoder-init", "random"], ["--weight-sharing tied", "--decoder-init random"]),
        (["--revision", "main"], ["is a folder"]),
        (["--private"], ["--private", "--push-to-hub"]),
        (
            ["--normal-layers", "copy", "--normal-layer-interval", "9"],
            ["--normal-layers copy needs", "--normal-layer-interval 9 inserts no normal layer"],
        ),
        (
            ["--weight-sharing", "tied", "--normal-layers", "copy"],
            ["Use --normal-layers random or --normal-layers none."],
        ),
    ],
    ids=lambda value: " ".join(value),
)
def test_bad_options_are_refused_in_one_sentence_that_names_them(encoder_folder, output, options, words):
    assert_refused(run(encoder_folder, output, *options), *words)
    assert not output.parent.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["convert", "", "out"], "The word after convert on the command line is empty. Write a value,"),
        (["convert", "in", "out", "--license", ""], "The word after --license on the command line is empty."),
        (["inspect", "\udcff"], r"\udcff is not valid UTF-8. Rename the file"),
        (["convert", "no\nthing", "out"], r"The folder no\nthing does not exist."),
        (["inspect", "[red]x[/]"], "The folder [red]x[/] does not exist."),
        (["inspect", ":smile:"], "The folder :smile: does not exist."),
        (["serve", __file__], f"{__file__} is not a folder. Pass the folder that xlm-swcm export wrote."),
        (["serve", "no\nthing"], r"The folder no\nthing does not exist. Pass the folder that xlm-swcm export wrote."),
        (["inspect", "x" * 300], "File name too long: xxx"),
        (["convert", "in", "x" * 300], "File name too long. Choose another folder."),
        (["convert", "in", "out", "--push-to-hub", "x" * 400 + "/y"], "is not a repository id."),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_odd_words_are_refused_in_one_sentence(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, arguments)
    assert_refused(result, words)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("name", ["[red]model[/]", ":smile:", "mo\ndel", "a  b", "-x", "*", "བོད"])
def test_an_output_with_an_odd_name_is_written_and_named(encoder_folder, tmp_path, name):
    result = run(encoder_folder, tmp_path / name)
    assert result.exit_code == 0, result.stderr
    assert f"Written to {tmp_path / name}." in result.stdout
    assert (tmp_path / name / "model.safetensors").is_file()


def test_a_crash_of_a_library_is_said(encoder_folder, output, monkeypatch):
    class PanicException(BaseException):
        pass

    def crash(*arguments, **options):
        raise PanicException("index out of bounds")

    monkeypatch.setattr("modeling_xlm_swcm.cli.convert", crash)
    assert_refused(run(encoder_folder, output), "A library crashed: index out of bounds. Check that the files")


def test_the_interleaved_map_needs_an_even_number_of_layers(tmp_path, output):
    tokenizer = xlm_roberta_tokenizer()
    encoder = make_encoder(XLMRobertaForMaskedLM, tokenizer, num_hidden_layers=3)
    for part in (encoder, tokenizer):
        part.save_pretrained(tmp_path / "three")
    assert_refused(run(tmp_path / "three", output, "--layer-map", "interleaved"), "even number", "(got 3)")


def test_debug_shows_the_traceback_before_the_sentence(encoder_folder, output):
    result = run(encoder_folder, output, "--languages", "pad", "--debug")
    assert result.exit_code == 1
    assert result.stderr.startswith("Traceback (most recent call last)")
    assert result.stderr.splitlines()[-1].startswith(
        "error: Cannot add the language pad: <pad> is already a special token"
    )


def test_the_console_script_refuses_in_one_line_too(own_encoder, output):
    write_shards(own_encoder, "pytorch_model", "bin")
    (own_encoder / "pytorch_model-00003-of-00003.bin").unlink()
    result = run_script(own_encoder, output)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
