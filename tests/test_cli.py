"""The command line: what is written appears whole or not at all, and what is wrong is said in one sentence."""

import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from encoders import (
    Tensors,
    edit_config,
    edit_tensors,
    make_encoder,
    read_tensors,
    write_bin,
    write_shards,
    xlm_roberta_tokenizer,
)
from loopback_hub import loopback_hub
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, XLMRobertaForMaskedLM
from typer.testing import CliRunner, Result

from modeling_xlm_swcm import XLMSWCMForConditionalGeneration
from modeling_xlm_swcm.conversion import convert
from modeling_xlm_swcm.conversion.cli import main


QUERY = "encoder.layer.1.attention.self.query.weight"


def run(*arguments) -> Result:
    return CliRunner().invoke(main, ["convert", *map(str, arguments)])


def run_process(*command, **environment) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | environment
    return subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=120)


def run_script(*arguments, **environment) -> subprocess.CompletedProcess:
    return run_process(Path(sys.executable).with_name("xlm-swcm"), "convert", *arguments, **environment)


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def assert_refused(result: Result, *words: str):
    """Exit code 1 and one line on stderr that has all `words`."""
    assert result.exit_code == 1, result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1 and result.stderr.endswith("\n"), result.stderr
    assert "Traceback" not in result.output
    for word in words:
        assert word in result.stderr
    assert result.stdout == ""


def assert_converted(result: Result, output: Path):
    assert result.exit_code == 0, result.stderr
    _, info = AutoModelForSeq2SeqLM.from_pretrained(output, output_loading_info=True)
    assert not any(info.values()), info
    assert [path.name for path in output.parent.iterdir() if path.name.startswith(f".{output.name}")] == []


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "outputs" / "model"


@pytest.fixture
def old_output(output) -> Path:
    (output / "notes").mkdir(parents=True)
    (output / "config.json").write_text("an older model")
    (output / "notes" / "kept.txt").write_text("not to be lost")
    return output


# what a command does


def test_a_conversion_prints_its_counts_and_where_it_wrote(encoder_folder, output):
    result = run(encoder_folder, output, "--languages", "bo")
    assert_converted(result, output)
    counts = json.loads((output / "conversion_report.json").read_text())["counts"]
    # without the line breaks, which depend on the terminal
    printed = "".join(result.stdout.split())
    assert f"{counts['copied']}tensorscopied" in printed
    assert f"{counts['new']}new;{counts['dropped']}ofthesourcedropped" in printed
    assert f"Writtento{output}." in printed


def test_all_options_reach_the_conversion(encoder_folder, output):
    options = {
        "normal_layer_interval": 1,
        "layer_map": "interleaved",
        "decoder_init": "random",
        "normal_layers": "copy",
        "dtype": "bfloat16",
        "seed": 5,
    }
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    assert_converted(run(encoder_folder, output, *arguments, "--languages", "ug"), output)
    reported = json.loads((output / "conversion_report.json").read_text())["options"]
    assert reported == reported | options | {"languages": ["ug"], "weight_sharing": "init"}


def test_weight_sharing_reaches_the_config(encoder_folder, output):
    assert_converted(run(encoder_folder, output, "--weight-sharing", "tied"), output)
    assert json.loads((output / "config.json").read_text())["weight_sharing"] == "tied"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--languages", "bo ug kk-Arab"],
        ["--languages", "bo", "ug", "kk-Arab"],
        ["--languages=bo", "ug", "kk-Arab", "--seed", "1"],
        ["--seed", "1", "--languages", "bo", "ug", "kk-Arab", "--overwrite"],
    ],
    ids=" ".join,
)
def test_languages_are_several_words_or_one(encoder_folder, output, arguments):
    assert_converted(run(encoder_folder, output, *arguments), output)
    assert AutoTokenizer.from_pretrained(output).languages == ["bo", "ug", "kk-Arab"]


def test_a_dry_run_says_so_and_writes_nothing(encoder_folder, output):
    result = run(encoder_folder, output, "--dry-run")
    assert result.exit_code == 0
    assert "Nothing was written" in result.stdout
    assert not output.parent.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["source"],
        ["source", "output", "more"],
        ["source", "output", "--layer-map", "diagonal"],
        ["source", "output", "--decoder-init", "copied"],
        ["source", "output", "--normal-layers", "few"],
        ["source", "output", "--weight-sharing", "none"],
        ["source", "output", "--dtype", "int8"],
        ["source", "output", "--seed", "one"],
        ["source", "output", "--normal-layer-interval", "1.5"],
        ["source", "output", "--langauges", "bo"],
        ["source", "output", "--languages"],
        ["--languages", "bo", "source", "output"],
    ],
    ids=" ".join,
)
def test_a_usage_error_exits_with_two(arguments):
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Error" in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


# from the Hub


@pytest.fixture(scope="module")
def hub(encoder_folder, tmp_path_factory):
    """A repository with weights and tokenizer on the branch "trial" only."""
    folder = tmp_path_factory.mktemp("hub")
    for name in ("trial", "empty"):
        shutil.copytree(encoder_folder, folder / name)
    write_shards(folder / "trial", "pytorch_model", "bin")
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (folder / "empty" / name).unlink()
    repositories = {"someone/encoder": {"main": folder / "empty", "trial": folder / "trial"}}
    with loopback_hub(repositories) as endpoint:
        yield {
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(folder / "cache"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
        }


def test_a_branch_on_the_hub_is_converted_and_a_second_time_from_the_cache(hub, encoder_folder, output):
    for options in ({}, {"HF_HUB_OFFLINE": "1"}):
        arguments = ["--revision", "trial", "--overwrite", "--languages", "bo"]
        result = run_script("someone/encoder", output, *arguments, **hub | options)
        assert result.returncode == 0, result.stderr
    report = json.loads((output / "conversion_report.json").read_text())
    assert (report["source"], report["revision"]) == ("someone/encoder", "trial")
    source, written = read_tensors(encoder_folder), read_tensors(output)
    assert report["language_ids"] == {"bo": len(source["lm_head.bias"])}
    assert torch.equal(written["model.decoder.layers.1.self_attn.q_proj.weight"], source[f"roberta.{QUERY}"])


SEVERAL_COMMANDS = """
import json, sys
from typer.testing import CliRunner
from modeling_xlm_swcm.conversion.cli import main

results = [CliRunner().invoke(main, ["convert", *arguments]) for arguments in json.loads(sys.argv[1])]
print(json.dumps([(result.exit_code, result.stderr) for result in results]))
"""


def test_what_the_hub_does_not_have_is_said_in_one_sentence(hub, output):
    expected = {
        ("someone/nothing",): ["someone/nothing"],
        ("someone/encoder", "--revision", "nowhere"): ["someone/encoder", "nowhere"],
        ("someone/encoder",): ["someone/encoder", "no weights", "model.safetensors"],
    }
    commands = [[source, str(output), *options] for source, *options in expected]
    answers = json.loads(run_process(sys.executable, "-c", SEVERAL_COMMANDS, json.dumps(commands), **hub).stdout)
    for (exit_code, stderr), words in zip(answers, expected.values(), strict=True):
        assert exit_code == 1
        assert stderr.startswith("error: ") and stderr.count("\n") == 1
        assert all(word in stderr for word in words), stderr


def test_a_hub_that_cannot_be_reached_is_not_taken_for_an_empty_one(output, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = run("someone/not-in-the-cache", output)
    assert_refused(result, "someone/not-in-the-cache")
    assert "has no config.json" not in result.stderr


# whole or not at all


def fail_while_saving(monkeypatch, error: BaseException):
    def save_and_fail(model, folder, save_pretrained=XLMSWCMForConditionalGeneration.save_pretrained):
        save_pretrained(model, folder)
        raise error

    monkeypatch.setattr(XLMSWCMForConditionalGeneration, "save_pretrained", save_and_fail)


def test_a_failure_while_saving_leaves_nothing(encoder_folder, output, monkeypatch):
    fail_while_saving(monkeypatch, OSError("the disk is gone"))
    result = run(encoder_folder, output)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "error: the disk is gone"
    assert contents(output.parent) == {}


STOPPED_WHILE_SAVING = """
import os, resource, signal
from modeling_xlm_swcm import XLMSWCMForConditionalGeneration
from modeling_xlm_swcm.conversion.cli import main

def save_and_stop(model, folder, save_pretrained=XLMSWCMForConditionalGeneration.save_pretrained):
    save_pretrained(model, folder)
    os.kill(os.getpid(), signal.{signal})

XLMSWCMForConditionalGeneration.save_pretrained = save_and_stop
main()
"""


def test_a_killed_run_leaves_no_output_and_the_next_run_tidies_up(encoder_folder, output):
    script = STOPPED_WHILE_SAVING.format(signal="SIGKILL")
    killed = run_process(sys.executable, "-c", script, "convert", encoder_folder, output)
    assert killed.returncode == -9
    assert not output.exists()
    assert len(list(output.parent.glob("*/model.safetensors"))) == 1
    assert_converted(run(encoder_folder, output), output)
    assert list(output.parent.iterdir()) == [output]


def test_the_leftover_of_a_run_with_the_same_process_id_is_no_obstacle(encoder_folder, output):
    # in a container that is started again, process ids repeat
    leftover = output.parent / f".model.partial-{socket.gethostname()}-{os.getpid()}"
    leftover.mkdir(parents=True)
    (leftover / "model.safetensors").write_bytes(b"half of it")
    assert_converted(run(encoder_folder, output), output)


def test_an_interrupted_run_says_so_and_leaves_nothing(encoder_folder, output):
    script = STOPPED_WHILE_SAVING.format(signal="SIGINT")
    result = run_process(sys.executable, "-c", script, "convert", encoder_folder, output)
    assert result.returncode == 1
    assert "interrupted" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert contents(output.parent) == {}


# files that grow beyond the limit fail as on a full disk; the tokenizer fits and the weights do not
SMALL_DISK = """
import resource
from modeling_xlm_swcm.conversion.cli import main

resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
main()
"""


def test_a_full_disk_is_said_and_leaves_nothing(encoder_folder, output):
    result = run_process(sys.executable, "-c", SMALL_DISK, "convert", encoder_folder, output)
    assert result.returncode == 1, result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in result.stderr
    assert contents(output.parent) == {}


def test_too_little_space_is_said_before_anything_is_written(encoder_folder, output, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 50_000, 50_000))
    fail_while_saving(monkeypatch, AssertionError("this was to be noticed earlier"))
    assert_refused(run(encoder_folder, output), str(output), "GB free")
    assert contents(output.parent) == {}


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_a_folder_with_content_is_refused_and_untouched(encoder_folder, old_output, options):
    before = contents(old_output)
    assert_refused(run(encoder_folder, old_output, *options), str(old_output), "--overwrite")
    assert contents(old_output.parent / "model") == before


def test_overwrite_replaces_all_of_the_old_folder(encoder_folder, old_output):
    assert_converted(run(encoder_folder, old_output, "--overwrite"), old_output)
    assert not (old_output / "notes").exists()
    assert list(old_output.parent.iterdir()) == [old_output]


def test_an_overwrite_that_fails_keeps_the_old_folder(encoder_folder, old_output, monkeypatch):
    before = contents(old_output.parent)
    fail_while_saving(monkeypatch, OSError("the disk is gone"))
    assert run(encoder_folder, old_output, "--overwrite").exit_code == 1
    assert contents(old_output.parent) == before


def test_an_overwrite_that_fails_in_the_last_step_puts_the_old_folder_back(encoder_folder, old_output, monkeypatch):
    before = contents(old_output.parent)

    def rename(path: Path, target: Path, rename=Path.rename):
        if (path / "model.safetensors").exists():
            raise OSError(f"{path} cannot be renamed")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    assert run(encoder_folder, old_output, "--overwrite").exit_code == 1
    assert contents(old_output.parent) == before


def test_an_output_that_appears_in_the_meantime_is_not_replaced(encoder_folder, output, monkeypatch):
    def save_slowly(model, folder, save_pretrained=XLMSWCMForConditionalGeneration.save_pretrained):
        output.mkdir()
        (output / "kept.txt").write_text("not to be lost")
        save_pretrained(model, folder)

    monkeypatch.setattr(XLMSWCMForConditionalGeneration, "save_pretrained", save_slowly)
    result = run(encoder_folder, output)
    assert result.exit_code == 1
    assert str(output) in result.stderr.splitlines()[-1]
    assert contents(output.parent) == {"model": None, "model/kept.txt": b"not to be lost"}


@pytest.mark.parametrize("place", [".", ".."], ids=["the source", "its parent"])
def test_overwriting_the_source_is_refused(own_encoder, place):
    before = contents(own_encoder.parent)
    output = (own_encoder / place).resolve()
    assert_refused(run(own_encoder, output, "--overwrite"), str(output))
    assert contents(own_encoder.parent) == before


def test_an_empty_folder_is_a_fine_output(encoder_folder, output):
    output.mkdir(parents=True)
    assert_converted(run(encoder_folder, output), output)
    assert list(output.parent.iterdir()) == [output]


def test_the_current_folder_is_a_fine_output_if_it_is_empty(encoder_folder, output, monkeypatch):
    output.mkdir(parents=True)
    monkeypatch.chdir(output)
    assert_converted(run(encoder_folder, "."), output)


@pytest.mark.parametrize("options", [[], ["--overwrite"]])
def test_a_link_to_a_folder_is_an_output_like_the_folder(encoder_folder, tmp_path, output, options):
    target = tmp_path / "elsewhere"
    target.mkdir()
    if options:
        (target / "config.json").write_text("an older model")
    output.parent.mkdir()
    output.symlink_to(target)
    assert_converted(run(encoder_folder, output, *options), output)
    assert list(output.parent.iterdir()) == [output]
    assert {path.name for path in tmp_path.iterdir()} == {"elsewhere", "outputs"}


def test_a_file_is_no_output(encoder_folder, output):
    output.parent.mkdir()
    output.write_text("not to be lost")
    for options in ([], ["--overwrite"]):
        assert_refused(run(encoder_folder, output, *options), str(output), "is a file")
    assert output.read_text() == "not to be lost"


def test_a_file_is_no_parent_of_an_output(encoder_folder, tmp_path):
    (tmp_path / "file").write_text("not to be lost")
    assert_refused(run(encoder_folder, tmp_path / "file" / "model"), str(tmp_path / "file"))


# what is wrong with a source


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
    """The only file of weights loses its second half."""

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


# what is changed in a folder that could be converted, and words that the message must have
BAD_SOURCES = {
    "no config": (remove("config.json"), ["config.json"]),
    "a config that is not JSON": (write("config.json", '{"model_type": '), ["config.json", "not valid JSON"]),
    "a config that is a list": (write("config.json", "[1, 2]"), ["config.json"]),
    "a config without a type": (config(model_type=None), ["model type"]),
    "a config without a size": (config(num_hidden_layers=None), ["num_hidden_layers", "config"]),
    "a config with a wrong size": (config(num_attention_heads=5), ["num_attention_heads"]),
    "a config with an unknown activation": (config(hidden_act="step"), ["hidden_act", "step"]),
    "no weights": (remove("model.safetensors"), ["no weights", "pytorch_model.bin"]),
    "no tokenizer": (remove("tokenizer.json", "tokenizer_config.json"), ["tokenizer"]),
    "a tokenizer's settings only": (remove("tokenizer.json"), ["tokenizer"]),
    "a damaged tokenizer": (write("tokenizer.json", '{"version": '), ["tokenizer"]),
    "a tokenizer that is a pointer": (replace_tokenizer, ["tokenizer"]),
    "a tokenizer larger than the embedding": (add_tokens, ["149 tokens", "148 rows"]),
    "a tokenizer with another pad": (move_pad, ["pad_token_id is 1", "147"]),
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
    "an XL model": (config(model_type="xlm-roberta-xl"), ["xlm-roberta-xl", "normalises before"]),
    "a pre-LayerNorm model": (config(model_type="roberta-prelayernorm"), ["prelayernorm", "normalises before"]),
    "another kind of model": (config(model_type="bert"), ["bert", "xlm-roberta, roberta and camembert"]),
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


def test_a_converted_checkpoint_is_no_source(encoder_folder, tmp_path, output):
    convert(encoder_folder, tmp_path / "converted")
    assert_refused(run(tmp_path / "converted", output), str(tmp_path / "converted"), "XLM-SWCM checkpoint already")


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
    assert_refused(run(own_encoder, output), str(file), "never run")
    assert not (tmp_path / "made by the payload").exists()


# what is wrong with the options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--languages", "bo b"], ['"b"']),
        (["--languages", "bo,ug"], ['"bo,ug"']),
        (["--languages", "<bo>"], ['"<bo>"']),
        (["--languages", "Tibetan"], ['"Tibetan"']),
        (["--languages", "bo ug bo"], ['"bo"', "twice"]),
        (["--languages", "pad"], ["<pad>", "special token"]),
        (["--languages", "bo unk"], ["<unk>", "special token"]),
        (["--normal-layer-interval", "0"], ["normal_layer_interval", "at least 1", "got 0"]),
        (["--normal-layer-interval", "-3"], ["normal_layer_interval", "got -3"]),
        (["--weight-sharing", "tied", "--layer-map", "interleaved"], ["weight_sharing", "layer_map"]),
        (["--weight-sharing", "tied", "--decoder-init", "random"], ["weight_sharing", "decoder_init"]),
        (["--weight-sharing", "tied", "--normal-layers", "copy"], ["weight_sharing", "normal_layers"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_bad_options_are_refused_in_one_sentence_that_names_them(encoder_folder, output, options, words):
    assert_refused(run(encoder_folder, output, *options), *words)
    assert not output.parent.exists()


def test_the_interleaved_map_needs_an_even_number_of_layers(tmp_path, output):
    tokenizer = xlm_roberta_tokenizer()
    encoder = make_encoder(XLMRobertaForMaskedLM, tokenizer, num_hidden_layers=3)
    for part in (encoder, tokenizer):
        part.save_pretrained(tmp_path / "three")
    assert_refused(run(tmp_path / "three", output, "--layer-map", "interleaved"), "even number", "not 3")


def test_debug_shows_the_traceback_before_the_sentence(encoder_folder, output):
    result = run(encoder_folder, output, "--languages", "pad", "--debug")
    assert result.exit_code == 1
    assert result.stderr.startswith("Traceback (most recent call last)")
    assert result.stderr.splitlines()[-1].startswith("error: <pad> is a special token")


def test_the_console_script_refuses_in_one_line_too(own_encoder, output):
    write_shards(own_encoder, "pytorch_model", "bin")
    (own_encoder / "pytorch_model-00003-of-00003.bin").unlink()
    result = run_script(own_encoder, output)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
