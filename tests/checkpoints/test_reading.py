"""Reading accepts only regular files inside the folder that fit in memory."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from support import commands
from support.encoders import edit_config, edit_tensors, read_tensors, write_bin, write_shards
from typer.testing import CliRunner, Result

from modeling_xlm_swcm.checkpoints import reading
from modeling_xlm_swcm.checkpoints.errors import describe_cause, hide_password
from modeling_xlm_swcm.checkpoints.reading import (
    ConversionError,
    check_safetensors,
    find_file,
    read_json,
    read_weights,
)
from modeling_xlm_swcm.cli import main
from modeling_xlm_swcm.conversion import from_encoder
from modeling_xlm_swcm.hub.push import collect_files


INDEX = "model.safetensors.index.json"
WORDS = "roberta.embeddings.word_embeddings.weight"


def run(*arguments) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


def assert_refused(result: Result, *words: str):
    """Check like `commands.assert_refused`, but allow progress bars before the error."""
    last = result.stderr.rstrip("\n").split("\n")[-1] + "\n"
    error = SimpleNamespace(exit_code=result.exit_code, stderr=last, stdout="", output=result.output)
    commands.assert_refused(error, *words)


def edit_index(folder: Path, edit: Callable[[dict], dict], name: str = INDEX):
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(edit(content)))


def place_all_in(shard: object) -> Callable[[dict], dict]:
    return lambda index: index | {"weight_map": dict.fromkeys(index["weight_map"], shard)}


@pytest.fixture
def corpus(tmp_path) -> Path:
    (tmp_path / "bo.txt").write_text("one two three\n" * 20)
    return tmp_path / "bo.txt"


@pytest.mark.parametrize("command", ["convert", "trim", "inspect", "push", "export"])
@pytest.mark.parametrize("form", ["absolute", "relative", "a number", "another suffix"])
def test_an_index_names_only_files_of_its_folder(own_encoder, folder, output, corpus, command, form):
    source = own_encoder if command in ("convert", "trim") else folder
    elsewhere = output.parent.parent / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(source / "model.safetensors", elsewhere)
    write_shards(source, "model", "safetensors")
    shards = {
        "absolute": str(elsewhere / "model.safetensors"),
        "relative": "../elsewhere/model.safetensors",
        "a number": 3,
        "another suffix": "config.json",
    }
    edit_index(source, place_all_in(shards[form]))
    arguments = {
        "convert": ["convert", source, output],
        "trim": ["vocab", "trim", source, output, "--min-count", 1, "--corpus", corpus],
        "inspect": ["inspect", source],
        "push": ["push", source, "someone/model", "--dry-run"],
        "export": ["export", source, output],
    }
    assert_refused(run(*arguments[command]), "weight_map", INDEX, str(shards[form]), "in the same folder")
    assert not output.exists()


def test_a_bin_index_names_only_files_of_its_folder(own_encoder, output):
    write_shards(own_encoder, "pytorch_model", "bin")
    edit_index(own_encoder, place_all_in("/tmp/x.bin"), "pytorch_model.bin.index.json")
    assert_refused(run("convert", own_encoder, output), "weight_map", "/tmp/x.bin")


def test_a_shard_that_is_a_link_out_of_the_folder_is_refused(own_encoder, output, tmp_path):
    write_shards(own_encoder, "model", "safetensors")
    shard = own_encoder / "model-00002-of-00003.safetensors"
    shard.rename(tmp_path / "other.safetensors")
    shard.symlink_to(tmp_path / "other.safetensors")
    assert_refused(run("convert", own_encoder, output), shard.name, "is a link to", "outside its folder")
    shard.unlink()
    (tmp_path / "other.safetensors").rename(own_encoder / "renamed.safetensors")
    shard.symlink_to("renamed.safetensors")
    assert run("convert", own_encoder, output).exit_code == 0


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "special_tokens_map.json", "chat_template.jinja"])
def test_a_file_that_transformers_reads_may_not_be_a_link_out_of_the_folder(own_encoder, output, tmp_path, name):
    path = own_encoder / name
    path.rename(tmp_path / name) if path.exists() else (tmp_path / name).write_text("{}")
    path.symlink_to(tmp_path / name)
    assert_refused(run("convert", own_encoder, output), name, "outside its folder")


@pytest.mark.parametrize("read", [read_weights, check_safetensors])
@pytest.mark.parametrize("content", [b"", b"\x01", b"\xff" * 100, b"version https://git-lfs", b"\x80\x02}q\x00."])
def test_damaged_safetensors_are_to_be_downloaded_or_saved_again(own_encoder, content, read):
    path = own_encoder / "model.safetensors"
    half = path.read_bytes()[:200]
    for damaged in (content, half):
        path.write_bytes(damaged)
        with pytest.raises(ConversionError) as error:
            read(str(own_encoder))
        message = str(error.value)
        assert str(path) in message and "damaged" in message
        assert "load" in message and "save" in message and "convert" not in message


def make_fifo(path: Path):
    os.mkfifo(path)


def make_huge(path: Path):
    path.touch()
    os.truncate(path, 10**13)


STRANGE_FILES = {
    "a FIFO": (make_fifo, "not a regular file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "outside its folder"),
    "a folder": (Path.mkdir, "not a regular file"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "Cannot read"),
    "a link to nothing": (lambda path: path.symlink_to("nothing"), "Cannot read"),
    "a huge file": (make_huge, ""),
}


@pytest.mark.parametrize("kind", STRANGE_FILES)
@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", INDEX]
)
@pytest.mark.timeout(60)
def test_a_file_of_a_strange_kind_is_refused_at_once(own_encoder, folder, output, name, kind):
    make, words = STRANGE_FILES[kind]
    for source in (own_encoder, folder):
        (source / "model.safetensors").unlink() if name == INDEX else (source / name).unlink()
        make(source / name)
    for command in (["convert", own_encoder, output], ["inspect", folder], ["push", folder, "a/b", "--dry-run"]):
        if command[0] != "inspect" or name not in ("tokenizer.json",):
            assert_refused(run(*command), name, words)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda index: index | {"weight_map": []}, ["no valid weight_map"]),
        (lambda index: index | {"weight_map": {}}, ["no valid weight_map"]),
        (
            lambda index: index | {"weight_map": index["weight_map"] | {"more": "model-00001-of-00003.safetensors"}},
            ["more"],
        ),
        (lambda index: index | {"weight_map": index["weight_map"] | {"more": "model-9.safetensors"}}, ["model-9"]),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_refused(own_encoder, output, edit, words):
    write_shards(own_encoder, "model", "safetensors")
    edit_index(own_encoder, edit)
    assert_refused(run("convert", own_encoder, output), INDEX, *words)


def test_a_tensor_in_two_shards_is_refused(own_encoder, output):
    tensors = read_tensors(own_encoder)
    write_shards(own_encoder, "model", "safetensors")
    shards = sorted(own_encoder.glob("model-*.safetensors"))
    first, second = list(tensors)[0::3], list(tensors)[1::3]
    save_file({name: tensors[name] + 1 for name in (*first[:1], *second)}, shards[1])
    assert_refused(run("convert", own_encoder, output), "Two shards", first[0])


def test_a_tensor_with_and_without_the_prefix_is_refused(own_encoder, output):
    bias = "roberta.embeddings.LayerNorm.bias"
    edit_tensors(own_encoder, lambda tensors: tensors | {bias.removeprefix("roberta."): tensors[bias] + 1})
    assert_refused(run("convert", own_encoder, output), "has both", bias)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.bool, torch.float8_e4m3fn])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_weights_that_are_not_plain_floats_are_refused(own_encoder, output, dtype, form):
    name = "roberta.encoder.layer.1.output.dense.weight"
    edit_tensors(own_encoder, lambda tensors: tensors | {name: tensors[name].to(dtype)})
    if form == "bin":
        write_bin(own_encoder)
    assert_refused(run("convert", own_encoder, output, "--dtype", "float32"), name, "has the data type")


def test_integer_weights_are_neither_pushed_nor_exported(folder, output):
    name = "model.decoder.layers.0.ffn.fc1.weight"
    edit_tensors(folder, lambda tensors: tensors | {name: (100 * tensors[name]).to(torch.int8)})
    for command in (["push", folder, "a/b", "--dry-run"], ["export", folder, output]):
        assert_refused(run(*command), name, "has the data type")


def test_a_single_number_is_no_weight(own_encoder, output):
    edit_tensors(own_encoder, lambda tensors: tensors | {"lm_head.decoder.weight": torch.tensor(1.0)})
    assert_refused(run("convert", own_encoder, output), "lm_head.decoder.weight", "single number")


def test_values_that_the_dtype_cannot_hold_are_refused(own_encoder, output):
    name = "encoder.layer.1.output.dense.weight"

    def enlarge(tensors):
        tensors[f"roberta.{name}"][0, 0] = 1e6
        return tensors

    edit_tensors(own_encoder, enlarge)
    assert_refused(
        run("convert", own_encoder, output, "--dtype", "float16"), name, "too large for float16", "bfloat16"
    )
    model, _ = from_encoder(own_encoder, dtype="bfloat16")
    assert model.model.encoder.encoder.layer[1].output.dense.weight.isfinite().all()


def write_header(path: Path, **shapes: list[int]):
    """Write a sparse safetensors file of zeros, which takes no space on the disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + end)


def test_weights_that_no_memory_holds_are_refused_from_their_header(own_encoder, tmp_path, output):
    write_header(own_encoder / "model.safetensors", **{WORDS: [10**6, 10**5]})
    assert_refused(run("convert", own_encoder, output), "need 400.0 GB of memory")


def test_a_model_that_no_memory_holds_is_refused_before_it_is_built(encoder_folder, output, monkeypatch):
    size = sum(tensor.nbytes for tensor in read_tensors(encoder_folder).values())
    pages = {"SC_PHYS_PAGES": 2 * size, "SC_PAGE_SIZE": 1}
    monkeypatch.setattr(reading.os, "sysconf", pages.__getitem__)
    command = ["convert", encoder_folder, output, "--decoder", "paper"]
    assert_refused(run(*command), "GB of memory")
    pages["SC_PHYS_PAGES"] = 4 * size
    assert run(*command).exit_code == 0


@pytest.mark.parametrize("field", ["num_hidden_layers", "vocab_size", "hidden_size", "max_position_embeddings"])
@pytest.mark.timeout(60)
def test_sizes_of_a_config_that_no_model_has_are_refused(own_encoder, folder, output, field):
    for source in (own_encoder, folder):
        edit_config(source, **{field: 10**12})
    for command in (["convert", own_encoder, output], ["inspect", folder], ["push", folder, "a/b", "--dry-run"]):
        assert_refused(run(*command), field, "config.json", "at most")


def test_layers_that_the_weights_do_not_have_are_not_built(folder):
    edit_config(folder, num_hidden_layers=9_000, decoder_layers=9_000, decoder_blocks=9_000 * ["prefix"])
    assert_refused(run("push", folder, "a/b", "--dry-run"), "18000 layers", "but the weights contain only")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, "a": 2}', 'the field "a" twice'),
        ("[" * 100_000, "not valid JSON"),
        ('{"a": "\\ud800"}', "not valid JSON"),
        ("\xff", "not valid JSON"),
        ("3", "not a JSON object"),
    ],
)
def test_json_that_is_not_clear_is_refused(tmp_path, text, words):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConversionError, match=words):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize("field", ["tokenizer_file", "vocab_file", "gguf_file", "vocab", "fast_tokenizer_files"])
def test_a_tokenizer_names_no_file_of_another_folder(own_encoder, folder, output, field):
    for source in (own_encoder, folder):
        content = json.loads((source / "tokenizer_config.json").read_text())
        name = "../other/tokenizer.5.0.json"
        content[field] = [name] if field.endswith("files") else name
        (source / "tokenizer_config.json").write_text(json.dumps(content))
    for command in (["convert", own_encoder, output], ["push", folder, "a/b", "--dry-run"]):
        assert_refused(run(*command), field, "../other/tokenizer.5.0.json", "not in the folder")


def test_an_adapter_does_not_bring_the_weights_of_its_base(folder, output, converted):
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(converted)}))
    for command in (["push", folder, "a/b", "--dry-run"], ["export", folder, output]):
        assert_refused(run(*command), "adapter_config.json", "merge_and_unload")


def test_code_of_a_tokenizer_is_not_run_and_nobody_is_told_to_run_it(own_encoder, output, tmp_path):
    code = f"open({str(tmp_path / 'made')!r}, 'w')\n"
    (own_encoder / "code.py").write_text(code)
    fields = {"tokenizer_class": "Tok", "auto_map": {"AutoTokenizer": ["code.Tok", None]}}
    (own_encoder / "tokenizer_config.json").write_text(json.dumps(fields))
    edit_config(own_encoder, model_type="xlm-roberta")
    outcome = run("convert", own_encoder, output)
    assert not (tmp_path / "made").exists()
    assert "trust_remote_code" not in outcome.output and "Traceback" not in outcome.output


def test_advice_of_libraries_that_is_wrong_here_is_left_out():
    for advice in ("set weights_only=False", "pass trust_remote_code=True", "look at the above report!"):
        assert describe_cause(ValueError(f"Failed, {advice}"), ": {}") == ""
    assert describe_cause(ValueError("header too large."), ": {}") == ": header too large"


def test_a_size_that_does_not_fit_names_a_tensor(folder):
    edit_config(folder, intermediate_size=36)
    outcome = run("push", folder, "a/b", "--dry-run")
    assert_refused(outcome, "mismatched", "fc1.bias")
    assert "above report" not in outcome.stderr


def test_a_password_in_an_address_is_not_shown():
    assert hide_password("at https://me:secret@host/x, a@b") == "at https://host/x, a@b"


def test_links_of_a_snapshot_into_the_blobs_are_followed(encoder_folder, tmp_path):
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "01", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    shutil.copytree(encoder_folder, blobs)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(Path("../../blobs", path.name))
    assert read_weights(str(snapshot)).keys() == read_tensors(encoder_folder).keys()
    (snapshot / "extra.json").symlink_to("../../../bo.txt")
    (tmp_path / "bo.txt").write_text("x")
    with pytest.raises(ConversionError, match="outside its folder"):
        find_file(str(snapshot), "extra.json")


def test_the_checks_send_nothing_for_a_whole_folder(folder):
    assert "model.safetensors" in collect_files(folder, "someone/model")
