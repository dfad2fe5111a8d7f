"""A process that talks to a loopback Hub: the endpoint is read when huggingface_hub is imported."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from support.loopback_hub import WRITE, Hub
from support.remote_code import MODERN_CODE

import modeling_xlm_swcm


PACKAGE = Path(modeling_xlm_swcm.__file__).parent
# the files of a model with one file of weights
SENT = {
    *("README.md", "config.json", "generation_config.json", "conversion_report.json", "model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json"),
    # all code that travels, except the layers of the authors' release and of ModernBERT
    *({path.name for path in PACKAGE.glob("*_xlm_swcm.py")} - {"released_xlm_swcm.py"} - MODERN_CODE),
}

# Each line of stdin is one command or one piece of code. Their output does not mix with the answers.
WORKER = """
import contextlib, io, json, os, sys
answers, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr
os.dup2(2, 1)
from typer.testing import CliRunner
from modeling_xlm_swcm.cli import main

for line in sys.stdin:
    request = json.loads(line)
    os.environ.pop("HF_TOKEN", None)
    os.environ.update({} if request["token"] is None else {"HF_TOKEN": request["token"]})
    if "code" in request:
        names = {"answer": None}
        try:
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(request["code"], names)
            answer = {"answer": names["answer"], "printed": printed.getvalue(), "error": None}
        except Exception as error:
            answer = {"answer": None, "printed": "", "error": f"{type(error).__name__}: {error}"}
    else:
        result = CliRunner().invoke(main, request["arguments"])
        answer = {"exit_code": result.exit_code, "stdout": result.stdout, "stderr": result.stderr}
    print(json.dumps(answer), file=answers, flush=True)
"""


@dataclass
class Outcome:
    """Outcome of a command, with the fields of typer's `Result`."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


class Client:
    def __init__(self, process: subprocess.Popen):
        self.process = process

    def ask(self, token: str | None, **request) -> dict:
        self.process.stdin.write(json.dumps(request | {"token": token}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def command(self, *arguments, token: str | None = WRITE) -> Outcome:
        """Run `xlm-swcm` with these arguments."""
        return Outcome(**self.ask(token, arguments=list(map(str, arguments))))

    def run(self, code: str, token: str | None = WRITE) -> dict:
        """Run `code`. Return its variable `answer`, its output and its error."""
        return self.ask(token, code=code)

    @contextlib.contextmanager
    def working_in(self, folder: Path) -> Iterator[None]:
        """Change the current directory of the process."""
        before = self.run("import os; answer = os.getcwd()")["answer"]
        self.run(f"import os; os.chdir({str(folder)!r})")
        yield
        self.run(f"import os; os.chdir({before!r})")


@contextlib.contextmanager
def hub_client(hub: Hub, home: Path) -> Iterator[Client]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= hub.environment | {"HF_HOME": str(home), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=(home / "stderr").open("w"))
    with subprocess.Popen([sys.executable, "-c", WORKER], cwd=home, env=environment, text=True, **pipes) as process:
        yield Client(process)
        process.kill()
