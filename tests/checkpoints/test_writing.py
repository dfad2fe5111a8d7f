"""An output is complete or absent, also during an overwrite and after a kill. Unusable outputs are refused."""

import errno
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import assert_refused, run, run_process
from support.folders import contents
from typer.testing import CliRunner

from modeling_xlm_swcm.checkpoints import writing
from modeling_xlm_swcm.checkpoints.errors import ConversionError, describe_error
from modeling_xlm_swcm.checkpoints.writing import (
    check_output,
    exchange,
    recover,
    whole_file,
    whole_files,
    whole_folder,
)
from modeling_xlm_swcm.cli import main


FILES = ("config.json", "weights", "tokenizer")


def overwrite_until(step: int, output: Path, atomic: bool):
    """Overwrite a folder in this process, and kill this process before a system call."""
    calls = itertools.count(1)

    def count(function: Callable) -> Callable:
        def counted(*arguments, **options):
            if next(calls) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return counted

    writing.exchange = count(exchange if atomic else lambda first, second: False)
    os.rename, os.mkdir, os.rmdir, os.unlink = map(count, (os.rename, os.mkdir, os.rmdir, os.unlink))
    with whole_folder(output, 0, overwrite=True) as folder:
        write_model(folder, "new")


def write_model(folder: Path, text: str):
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (folder / name).write_text(text)


def whole(text: str) -> dict[str, bytes]:
    return dict.fromkeys(FILES, text.encode())


def test_two_folders_are_exchanged_in_one_step(tmp_path):
    for name in ("first", "second"):
        write_model(tmp_path / name, name)
    assert exchange(tmp_path / "first", tmp_path / "second")
    assert contents(tmp_path / "first") == whole("second")
    assert contents(tmp_path / "second") == whole("first")


def test_an_exchange_with_nothing_is_an_error_and_not_a_fallback(tmp_path):
    (tmp_path / "first").mkdir()
    with pytest.raises(OSError) as caught:
        exchange(tmp_path / "first", tmp_path / "second")
    assert caught.value.errno == errno.ENOENT


def test_a_reader_never_finds_the_output_missing_or_partial(tmp_path):
    output, found, ended = tmp_path / "model", [], threading.Event()
    write_model(output, "0")

    def poll():
        while not ended.is_set():
            try:
                folder = os.open(output, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                found.append(None)
                continue
            found.append(set(os.listdir(folder)))
            os.close(folder)

    reader = threading.Thread(target=poll)
    reader.start()
    try:
        for number in range(300):
            with whole_folder(output, 0, overwrite=True) as folder:
                write_model(folder, str(number))
    finally:
        ended.set()
        reader.join()
    # A folder that was opened before an exchange is emptied after it.
    assert None not in found and set(FILES) in found
    assert contents(output) == whole("299") and list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("atomic", [True, False], ids=["exchange", "two renames"])
def test_a_kill_at_any_step_leaves_a_whole_output(tmp_path, atomic):
    output = tmp_path / "model"
    seen, status, step = [], signal.SIGKILL, 0
    while status == signal.SIGKILL:
        step += 1
        write_model(output, "old")
        if (child := os.fork()) == 0:
            overwrite_until(step, output, atomic)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if atomic:
            assert output.is_dir()
        recover(output)
        seen.append(contents(output))
        assert list(tmp_path.iterdir()) == [output]
    assert status == 0
    assert all(found in (whole("old"), whole("new")) for found in seen)
    assert seen[0] == whole("old") and seen[-1] == whole("new") and step > 4


def test_the_next_command_gives_a_lost_output_its_name_back(converted, tmp_path):
    """Any command restores the output, also a command that only reads."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    lost = tmp_path / f".model.partial-{socket.gethostname()}-{ended.pid}-replaced"
    lost.mkdir()
    for path in converted.iterdir():
        (lost / path.name).write_bytes(path.read_bytes())
    result = CliRunner().invoke(main, ["inspect", str(tmp_path / "model")])
    assert result.exit_code == 0, result.stderr
    assert contents(tmp_path / "model") == contents(converted) and not lost.exists()


def test_the_folder_of_a_run_that_is_still_running_is_kept(tmp_path):
    running = tmp_path / f".model.partial-{socket.gethostname()}-{os.getppid()}-replaced"
    running.mkdir()
    recover(tmp_path / "model")
    assert list(tmp_path.iterdir()) == [running]


def test_the_longest_name_is_written_and_a_longer_one_refused(tmp_path):
    output = tmp_path / ("ན" * 85)  # 255 bytes
    for overwrite in (False, True):
        with whole_folder(output, 0, overwrite) as folder:
            write_model(folder, "new")
    assert contents(output) == whole("new") and list(tmp_path.iterdir()) == [output]
    with pytest.raises(ConversionError, match="File name too long. Choose another folder."):
        check_output(tmp_path / ("ན" * 86), False)


def make_fifo(path: Path):
    os.mkfifo(path)


def make_socket(path: Path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def make_link(path: Path):
    path.with_name("elsewhere").mkdir()
    path.symlink_to("elsewhere")


def make_device(path: Path):
    try:
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes devices")


PLACES = {
    "a file": (lambda path: path.write_text("kept"), "is a file. Choose a folder."),
    "a FIFO": (make_fifo, "is a FIFO. Choose a folder."),
    "a socket": (make_socket, "is a socket. Choose a folder."),
    "a device": (make_device, "is a device. Choose a folder."),
    "a link to a folder": (make_link, "is a link. Pass the folder that it points to"),
    "a link to nothing": (lambda path: path.symlink_to("nothing"), "is a link."),
    "a link to itself": (lambda path: path.symlink_to(path.name), "is a link."),
}
COMMANDS = {
    "convert": ["convert", "SOURCE", "OUTPUT"],
    "convert-released": ["convert-released", "SOURCE/model.safetensors", "OUTPUT", "--encoder", "SOURCE"],
    "extend": ["vocab", "extend", "SOURCE", "OUTPUT", "--size", "100", "--corpus", "en=SOURCE/config.json"],
    "trim": ["vocab", "trim", "SOURCE", "OUTPUT", "--corpus", "en=SOURCE/config.json"],
    "export": ["export", "SOURCE", "OUTPUT"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_folder_is_refused_before_anything_is_done(encoder_folder, tmp_path, command, place):
    make, words = PLACES[place]
    output = tmp_path / "output"
    make(output)
    before = {path.name: os.lstat(path) for path in tmp_path.iterdir()}
    replaced = {"SOURCE": str(encoder_folder), "OUTPUT": str(output)}
    for overwrite in ([], ["--overwrite"]):
        arguments = [replaced.get(word, word.replace("SOURCE", replaced["SOURCE"])) for word in COMMANDS[command]]
        assert_refused(CliRunner().invoke(main, arguments + overwrite), f"{output} {words}")
    after = {path.name: os.lstat(path) for path in tmp_path.iterdir()}
    assert {name: (old.st_ino, old.st_mode) for name, old in before.items()} == {
        name: (new.st_ino, new.st_mode) for name, new in after.items()
    }


@pytest.mark.parametrize("make", [make_fifo, lambda path: path.write_text("kept"), lambda path: path.symlink_to("x")])
def test_what_is_no_folder_is_no_parent_of_an_output(tmp_path, make):
    make(tmp_path / "parent")
    with pytest.raises(ConversionError, match="parent is not a folder. Choose another folder."):
        check_output(tmp_path / "parent" / "deep" / "model", False)


@pytest.mark.parametrize("inside", [Path(), Path("cache")], ids=["is", "contains"])
def test_a_mount_point_is_no_output(tmp_path, monkeypatch, inside):
    output = tmp_path / "model 1"
    write_model(output / inside, "kept")
    write_model(output, "kept")
    escaped = str(output / inside).replace(" ", r"\040")
    line = f"36 35 98:0 / {escaped} rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n"
    read_bytes = Path.read_bytes
    monkeypatch.setattr(
        Path, "read_bytes", lambda path: line.encode() if path.name == "mountinfo" else read_bytes(path)
    )
    with pytest.raises(ConversionError, match="mount point. Choose another folder."):
        check_output(output, True)


def test_the_mounts_of_the_system_are_known():
    assert {Path("/"), Path("/proc")} <= set(writing.find_mounts())


def refuse_access(monkeypatch, *refused: Path):
    """Act as a user without permissions, also if root runs the tests."""
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) not in refused and access(path, mode))


def test_a_folder_without_rights_is_refused(tmp_path, monkeypatch):
    refuse_access(monkeypatch, tmp_path)
    with pytest.raises(ConversionError, match=f"{tmp_path} is not writable. Choose another folder."):
        check_output(tmp_path / "new" / "model", False)
    refuse_access(monkeypatch, tmp_path / "model")
    (tmp_path / "model").mkdir()
    with pytest.raises(ConversionError, match="is not readable and writable. Choose another folder."):
        check_output(tmp_path / "model", False)


RUST_ERROR = "Error while serializing: I/O error: No space left on device (os error 28)"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "full"), "No space left on device. Free some space, or choose another folder."),
        (OSError(errno.EDQUOT, "full"), "Disk quota exceeded. Free some space, or choose another folder."),
        (OSError(errno.EROFS, "refused", "{partial}/config.json"), "Read-only file system. Choose another folder."),
        (OSError(errno.EACCES, "refused", "{partial}"), "Permission denied. Choose another folder."),
        (OSError(errno.EIO, "broken"), "Input/output error. Choose another folder."),
        (RuntimeError(RUST_ERROR), "No space left on device. Free some space, or choose another folder."),
    ],
    ids=lambda value: "" if isinstance(value, str) else type(value).__name__,
)
def test_an_output_that_the_system_refuses_to_write_is_named(tmp_path, error, words):
    write_model(tmp_path / "model", "old")
    with (
        pytest.raises(ConversionError) as caught,
        whole_folder(tmp_path / "model", 0, overwrite=True) as folder,
    ):
        if getattr(error, "filename", None):
            error.filename = error.filename.format(partial=folder)
        write_model(folder, "new")
        raise error
    assert str(caught.value) == f"Cannot write {tmp_path / 'model'}: {words}"
    assert contents(tmp_path) == {"model": None} | {f"model/{name}": b"old" for name in FILES}


@pytest.mark.parametrize("named", [None, "{partial}"])
def test_a_full_disk_names_the_file(tmp_path, named):
    path = tmp_path / "texts.txt"
    with pytest.raises(OSError) as caught, whole_file(path) as partial:
        raise OSError(errno.ENOSPC, "full", *([named.format(partial=partial)] if named else []))
    assert describe_error(caught.value) == f"No space left on device: {path}. Free some space."
    assert contents(tmp_path) == {}


def test_several_files_are_written_together_or_not_at_all(tmp_path):
    with whole_files(tmp_path / "new", ["a", "b"]) as files:
        for file in files:
            file.write_text("new")
        assert not (tmp_path / "new" / "a").exists()
    assert contents(tmp_path) == {"new": None, "new/a": b"new", "new/b": b"new"}
    for folder in ("new", "other"):
        with pytest.raises(ConversionError, match="Cannot write .* Free some space"):  # noqa: SIM117
            with whole_files(tmp_path / folder, ["a", "b"]) as files:
                files[0].write_text("changed")
                raise OSError(errno.ENOSPC, "full")
    assert contents(tmp_path) == {"new": None, "new/a": b"new", "new/b": b"new"}


def test_an_error_of_an_input_is_not_taken_for_one_of_the_output(tmp_path):
    with pytest.raises(FileNotFoundError, match="weights"), whole_folder(tmp_path / "model", 0, overwrite=False):
        (tmp_path.parent / "weights").read_bytes()
    assert contents(tmp_path) == {}


def test_a_real_mount_point_is_refused_and_a_disk_that_is_full_is_said(encoder_folder, tmp_path):
    """The second command converts to a small file system in memory, which becomes full."""
    script = f"""
import collections, json, shutil, subprocess
from pathlib import Path
from modeling_xlm_swcm.cli import main

def convert(output, *options):
    try:
        main(["convert", {str(encoder_folder)!r}, str(output), *options])
    except SystemExit as error:
        return error.code

disk = Path({str(tmp_path)!r}) / "disk"
disk.mkdir()
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", disk], check=True)
usage = collections.namedtuple("usage", "total used free")
shutil.disk_usage = lambda path: usage(10**9, 0, 10**9)
codes = [convert(disk, "--overwrite"), convert(disk / "model")]
print(json.dumps([codes, [path.name for path in disk.iterdir()]]))
"""
    if run_process("unshare", "--mount", "true").returncode:
        pytest.skip("only root mounts")
    result = run_process("unshare", "--mount", sys.executable, "-c", script)
    assert json.loads(result.stdout.splitlines()[-1]) == [[1, 1], []], result.stderr
    mounted, full = (line for line in result.stderr.splitlines() if line.startswith("error: "))
    assert mounted.endswith("it is a mount point. Choose another folder.")
    assert full.startswith("error: Cannot write ") and full.endswith(
        "No space left on device. Free some space, or choose another folder."
    )


def test_another_file_system_is_a_fine_output(encoder_folder):
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or os.stat(memory).st_dev == os.stat(encoder_folder).st_dev:
        pytest.skip("there is no second file system")
    output = memory / f"xlm-swcm-test-{os.getpid()}"
    try:
        for overwrite in ([], ["--overwrite"]):
            result = run(encoder_folder, output, *overwrite)
            assert result.exit_code == 0, result.stderr
        assert (output / "model.safetensors").is_file()
    finally:
        subprocess.run(["rm", "-rf", output], check=True)


def test_a_copy_onto_a_full_disk_names_the_output(tmp_path):
    output = tmp_path / "model"
    message = f"^Cannot write {output}: No space left on device. Free some space"
    with pytest.raises(ConversionError, match=message), whole_folder(output, 0, overwrite=False) as partial:
        raise OSError(errno.ENOSPC, "No space left", "/elsewhere/code.py", None, str(partial / "code.py"))
    assert contents(tmp_path) == {}
