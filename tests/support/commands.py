"""Run commands in this process or in a new process."""

import os
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner, Result

from modeling_xlm_swcm.cli import main


def run(*arguments) -> Result:
    return CliRunner().invoke(main, ["convert", *map(str, arguments)])


def run_process(*command, **environment) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | environment
    return subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=120)


def run_script(*arguments, **environment) -> subprocess.CompletedProcess:
    return run_process(Path(sys.executable).with_name("xlm-swcm"), "convert", *arguments, **environment)


def assert_refused(result: Result, *words: str):
    """Check for exit code 1 and one line on stderr with all `words`."""
    assert result.exit_code == 1, result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1 and result.stderr.endswith("\n"), result.stderr
    assert "Traceback" not in result.output
    for word in words:
        assert word in result.stderr, result.stderr
    assert result.stdout == ""
