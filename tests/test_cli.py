"""The command line: options reach the conversion, and a failed run leaves no partial output."""

import json
import os
import resource
import shutil
import signal
import socket
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from support.commands import assert_refused, run
from support.encoders import read_tensors, write_shards
from support.folders import contents
from support.loopback_hub import Hub
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command
from typer.testing import Result

from modeling_xlm_swcm import XLMSWCMForConditionalGeneration
from modeling_xlm_swcm.checkpoints.writing import whole_file
from modeling_xlm_swcm.cli import main


QUERY = "encoder.layer.1.attention.self.query.weight"


def assert_converted(result: Result, output: Path):
    assert result.exit_code == 0, result.stderr
    _, info = AutoModelForSeq2SeqLM.from_pretrained(output, output_loading_info=True)
    assert not any(info.values()), info
    assert [path.name for path in output.parent.iterdir() if path.name.startswith(f".{output.name}")] == []


@pytest.fixture
def old_output(output) -> Path:
    (output / "notes").mkdir(parents=True)
    (output / "config.json").write_text("an older model")
    (output / "notes" / "kept.txt").write_text("not to be lost")
    return output


def test_a_conversion_prints_its_counts_and_where_it_wrote(encoder_folder, output):
    result = run(encoder_folder, output, "--languages", "bo")
    assert_converted(result, output)
    counts = json.loads((output / "conversion_report.json").read_text())["counts"]
    # Line breaks depend on the width of the terminal.
    printed = "".join(result.stdout.split())
    assert f"{counts['copied']}tensorscopied,eachbit-equaltoitssource.Copiedtensorswithnewrows:2." in printed
    assert f"Newtensors:{counts['new']}.Droppedtensorsofthesource:{counts['dropped']}." in printed
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


def find_commands(command: TyperGroup | TyperCommand) -> list[TyperCommand]:
    if not isinstance(command, TyperGroup):
        return [command]
    return [found for part in command.commands.values() for found in find_commands(part)]


@pytest.mark.parametrize("command", find_commands(get_command(main)), ids=lambda command: command.name)
def test_every_command_and_option_has_a_help_text(command):
    assert command.help.endswith(".")
    for parameter in command.params:
        if parameter.name != "help":
            assert parameter.help[0].isupper() and parameter.help.endswith("."), parameter.name


def test_a_dry_run_says_so_and_writes_nothing(encoder_folder, output):
    result = run(encoder_folder, output, "--dry-run")
    assert result.exit_code == 0
    assert f"{output} was not written (--dry-run)." in result.stdout
    assert not output.parent.exists()


@pytest.fixture
def encoder_hub(hub, encoder_folder, tmp_path) -> Hub:
    """Return a Hub with a repository that has weights and tokenizer only on the branch "trial"."""
    for name in ("trial", "empty"):
        shutil.copytree(encoder_folder, tmp_path / name)
    write_shards(tmp_path / "trial", "pytorch_model", "bin")
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "empty" / name).unlink()
    hub.add("someone/encoder", tmp_path / "empty")
    hub.add("someone/encoder", tmp_path / "trial", "trial")
    return hub


def test_a_branch_on_the_hub_is_converted_and_a_second_time_from_the_cache(
    encoder_hub, client, encoder_folder, output
):
    arguments = ["convert", "someone/encoder", output, "--revision", "trial", "--overwrite", "--languages", "bo"]
    for is_offline in (False, True):
        encoder_hub.requests.clear()
        client.run(f"import huggingface_hub; huggingface_hub.constants.HF_HUB_OFFLINE = {is_offline}")
        result = client.command(*arguments)
        client.run("import huggingface_hub; huggingface_hub.constants.HF_HUB_OFFLINE = False")
        assert result.exit_code == 0, result.stderr
        assert bool(encoder_hub.requests) != is_offline
    report = json.loads((output / "conversion_report.json").read_text())
    assert (report["source"], report["revision"]) == ("someone/encoder", "trial")
    source, written = read_tensors(encoder_folder), read_tensors(output)
    assert report["language_ids"] == {"bo": len(source["lm_head.bias"])}
    assert torch.equal(written["model.decoder.layers.1.self_attn.q_proj.weight"], source[f"roberta.{QUERY}"])


def test_what_the_hub_does_not_have_is_said_in_one_sentence(encoder_hub, client, output):
    for source, options, words in (
        ("someone/nothing", [], ["someone/nothing"]),
        ("someone/encoder", ["--revision", "nowhere"], ["someone/encoder", "nowhere"]),
        ("someone/encoder", [], ["someone/encoder", "no weights", "model.safetensors"]),
    ):
        assert_refused(client.command("convert", source, output, *options), *words)


def test_a_hub_that_cannot_be_reached_is_not_taken_for_an_empty_one(output, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = run("someone/not-in-the-cache", output)
    assert_refused(result, "someone/not-in-the-cache")
    assert "has no config.json" not in result.stderr


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


def test_a_killed_run_leaves_no_output_and_the_next_run_tidies_up(encoder_folder, output, monkeypatch):
    def save_and_die(model, folder, save_pretrained=XLMSWCMForConditionalGeneration.save_pretrained):
        save_pretrained(model, folder)
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(XLMSWCMForConditionalGeneration, "save_pretrained", save_and_die)
        if (child := os.fork()) == 0:
            try:
                # The threads of this process do not exist in the child.
                torch.set_num_threads(1)
                run(encoder_folder, output)
            finally:
                os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert not output.exists()
    assert len(list(output.parent.glob("*/model.safetensors"))) == 1
    assert_converted(run(encoder_folder, output), output)
    assert list(output.parent.iterdir()) == [output]


def test_the_leftover_of_a_run_with_the_same_process_id_is_no_obstacle(encoder_folder, output):
    # Process ids repeat in a restarted container.
    output = output.with_name("model [1]")
    leftover = output.parent / f".{output.name}.partial-{socket.gethostname()}-{os.getpid()}"
    leftover.mkdir(parents=True)
    (leftover / "model.safetensors").write_bytes(b"half of it")
    assert_converted(run(encoder_folder, output), output)
    assert not leftover.exists()


def test_a_file_written_whole_keeps_links_and_writes_into_what_is_no_file(tmp_path):
    link, target, queue = (tmp_path / name for name in ("link", "target", "queue"))
    link.symlink_to(target)
    os.mkfifo(queue)
    reader = os.open(queue, os.O_RDONLY | os.O_NONBLOCK)
    for path in (link, queue):
        with whole_file(path) as partial:
            partial.write_text("new")
    assert link.is_symlink() and target.read_text() == "new" and os.read(reader, 9) == b"new"
    os.close(reader)


def test_an_interrupted_run_says_so_and_leaves_nothing(encoder_folder, output, monkeypatch):
    fail_while_saving(monkeypatch, KeyboardInterrupt())
    result = run(encoder_folder, output)
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (130, "error: Interrupted. Nothing was written.")
    assert "Traceback" not in result.stderr
    assert contents(output.parent) == {}


def test_a_full_disk_is_said_and_leaves_nothing(encoder_folder, output):
    """A limit for the file size acts like a full disk. The tokenizer is below the limit, the weights are above it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        result = run(encoder_folder, output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.exit_code == 1, result.stderr
    expected = f"error: Cannot write {output}: File too large. Free some space, or choose another folder."
    assert result.stderr.splitlines()[-1] == expected
    assert "Traceback" not in result.stderr
    assert contents(output.parent) == {}


def test_too_little_space_is_said_before_anything_is_written(encoder_folder, output, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 50_000, 50_000))
    fail_while_saving(monkeypatch, AssertionError("the check of the free space came too late"))
    assert_refused(run(encoder_folder, output), str(output), "GB free", "choose another folder")
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
        # Without an exchange, the old folder is moved away before the new one gets its name.
        if (path / "model.safetensors").exists():
            raise OSError(f"{path} cannot be renamed")
        return rename(path, target)

    monkeypatch.setattr("modeling_xlm_swcm.checkpoints.writing.exchange", lambda first, second: False)
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


@pytest.mark.parametrize("place", [".", ".."])
def test_the_current_folder_is_no_output(encoder_folder, output, monkeypatch, place):
    output.mkdir(parents=True)
    monkeypatch.chdir(output)
    relation = {".": "is", "..": "contains"}[place]
    message = f"Cannot overwrite {Path(place)}: it {relation} the current directory. Choose another folder."
    assert_refused(run(encoder_folder, place, "--overwrite"), message)
    assert Path.cwd() == output and not list(output.iterdir())


def test_overwrite_does_not_replace_a_folder_that_is_no_model(encoder_folder, output):
    output.mkdir(parents=True)
    (output / "thesis.tex").write_text("years of work")
    assert_refused(
        run(encoder_folder, output, "--overwrite"), "is not empty and holds no model. Choose another folder."
    )
    assert (output / "thesis.tex").read_text() == "years of work"
