"""Ctrl-C in every command: one sentence, exit code 130, within two seconds, and nothing half-written."""

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.folders import contents
from support.processes import Script
from support.vocabularies import TEXTS
from typer.testing import CliRunner

from modeling_xlm_swcm import interruption
from modeling_xlm_swcm.cli import main


COMMAND = Path(sys.executable).with_name("xlm-swcm")
SAID = "error: Interrupted. Nothing was written."

# Converts as the console script does, and stays for half a minute in the middle.
STAYS = """
import hashlib, importlib, time
from pathlib import Path
from modeling_xlm_swcm.cli import main

def stay(*arguments, **options):
    for folder in Path({folder!r}).glob(".*"):
        (folder / "half").write_text("half of it")
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**8) if {native} else time.sleep(30)

importlib.import_module("modeling_xlm_swcm.conversion.from_encoder").prove_copies = stay
main()
"""


def interrupt(command: list, wait: float) -> tuple[int, str, float]:
    """Send SIGINT after `wait` seconds. Return exit code, stderr and seconds until the end."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    # A background process can ignore SIGINT.
    restore = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(list(map(str, command)), env=environment, **pipes, **restore) as process:
        time.sleep(wait)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    return process.returncode, stderr, time.monotonic() - start


@pytest.mark.parametrize("wait", [0.3, 1.0])
def test_an_interruption_while_the_command_starts(encoder_folder, output, wait):
    code, stderr, seconds = interrupt([COMMAND, "convert", encoder_folder, output], wait)
    assert (code, stderr.splitlines()[-1]) == (130, SAID) and seconds < 10
    assert "Traceback" not in stderr and not output.parent.exists()


VOCABULARY = "modeling_xlm_swcm.vocabulary.rewrite"
PLACES = {
    "convert": (["convert", "SOURCE", "OUTPUT"], "modeling_xlm_swcm.conversion.from_encoder", "prove_copies"),
    "extend": (
        ["vocab", "extend", "SOURCE", "OUTPUT", "--size", "100", "--corpus", "TEXT"],
        VOCABULARY,
        "save_weights",
    ),
    "trim": (
        ["vocab", "trim", "SOURCE", "OUTPUT", "--corpus", "TEXT"],
        "modeling_xlm_swcm.vocabulary.trim",
        "partial",
    ),
    "export": (["export", "MODEL", "OUTPUT"], "modeling_xlm_swcm.export.graph", "write_graph"),
    "inspect": (["inspect", "MODEL"], "modeling_xlm_swcm.checkpoints.inspection", "read_headers"),
    "refresh": (["refresh", "MODEL"], "modeling_xlm_swcm.checkpoints.code", "package_code"),
    "push": (["push", "MODEL", "someone/model", "--dry-run"], "modeling_xlm_swcm.hub.push", "check_cache"),
}
OTHER_WORDS = {
    "push": "error: Interrupted. Push again. The next push skips files that are already on the Hub.",
    "refresh": "error: Interrupted. Run xlm-swcm refresh again.",
}


@pytest.fixture
def set_handler():
    """Return a function that sets a handler of SIGINT for this test. In a background process it is SIG_IGN."""
    before = signal.getsignal(signal.SIGINT)
    yield lambda handler: signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("command", PLACES)
def test_an_interruption_ends_every_command(
    encoder_folder, converted, output, tmp_path, monkeypatch, set_handler, command
):
    words, module, name = PLACES[command]
    (tmp_path / "bo.txt").write_text("\n".join(TEXTS["bo"]))
    paths = {"SOURCE": encoder_folder, "MODEL": converted, "OUTPUT": output, "TEXT": tmp_path / "bo.txt"}

    def interrupt(*arguments, **options):
        for folder in output.parent.glob(".*"):
            (folder / "half").write_text("half of it")
        # The command waits for native code with this handler only.
        assert signal.getsignal(signal.SIGINT) is interruption.raise_once
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    monkeypatch.setattr(importlib.import_module(module), name, interrupt)
    set_handler(signal.default_int_handler)
    result = CliRunner().invoke(main, [str(paths.get(word, word)) for word in words])
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (130, OTHER_WORDS.get(command, SAID))
    assert contents(output.parent) == {}


@pytest.mark.parametrize(("native", "times"), [(True, 1), (False, 5)], ids=["native code", "several times in Python"])
def test_the_process_ends_soon_and_tidies_up(encoder_folder, output, tmp_path, native, times):
    (tmp_path / "xlm-swcm").write_text(STAYS.format(native=native, folder=str(output.parent)))
    with Script.start(tmp_path / "xlm-swcm", "convert", encoder_folder, output) as script:
        assert script.outputs[0].readline() == "ready\n", script.outputs[1].read()
        code, stderr, seconds = script.interrupt(times)
    assert (code, stderr.splitlines()[-1]) == (130, SAID)
    # The native code alone takes longer.
    assert seconds < 10 and "Traceback" not in stderr
    assert stderr.count("Interrupted") == 1 and contents(output.parent) == {}


def test_the_handler_of_another_program_is_kept(set_handler):
    set_handler(signal.default_int_handler)
    interruption.watch_start("xlm-swcm")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt), interruption.interruptible("", lambda: None):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_program_that_ignores_the_signal_still_does(set_handler):
    set_handler(signal.SIG_IGN)
    with interruption.interruptible("", lambda: None):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def report_errors():
    for error in (EOFError("closed"), ConnectionResetError("reset"), ValueError("wrong")):
        sys.excepthook(type(error), error, None)


def test_a_worker_reports_its_errors_but_no_connection_that_the_command_has_closed(set_handler, capfd):
    set_handler(signal.default_int_handler)
    with interruption.interruptible("", lambda: None):
        worker = multiprocessing.get_context("fork").Process(target=report_errors)
        worker.start()
        worker.join()
    assert capfd.readouterr().err == "ValueError: wrong\n"
