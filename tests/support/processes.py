"""New processes that start with the imports done, because imports take most of the time of a short process."""

import contextlib
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch


FORKSERVER = multiprocessing.get_context("forkserver")
# A server process imports these modules once. Each new process is a fork of the server.
FORKSERVER.set_forkserver_preload(
    ["torch.distributed.fsdp", "modeling_xlm_swcm.training.finetuning", "modeling_xlm_swcm.training.pretraining"]
)


def _call(function: Callable, *arguments):
    # The workers of a data loader start as in a program that a user starts, so they end when their parent is killed.
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)
    function(*arguments)


def run_in_new_process(function: Callable, *arguments) -> int:
    """Call a function of a module in a new process, and return the exit code."""
    process = FORKSERVER.Process(target=_call, args=(function, *arguments))
    process.start()
    process.join()
    return process.exitcode


def write_to(path: Path):
    """Append the output of this process to a file."""
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)


def _run_script(pipes: list[Path], path: Path, *arguments: str):
    os.setsid()
    for number, pipe in enumerate(pipes, 1):
        os.dup2(os.open(pipe, os.O_WRONLY), number)
    # A background process can ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [str(path), *map(str, arguments)]
    runpy.run_path(str(path), run_name="__main__")


@dataclass
class Script:
    """A Python script that runs in a new process, in a session of its own."""

    process: BaseProcess
    outputs: list

    @classmethod
    def start(cls, path: Path, *arguments) -> "Script":
        with tempfile.TemporaryDirectory() as folder:
            pipes = [Path(folder) / "stdout", Path(folder) / "stderr"]
            for pipe in pipes:
                os.mkfifo(pipe)
            process = FORKSERVER.Process(target=_call, args=(_run_script, pipes, path, *arguments))
            process.start()
            return cls(process, [pipe.open() for pipe in pipes])

    def interrupt(self, times: int = 1, all_processes: bool = False) -> tuple[int, str, float]:
        """Send SIGINT, and return the exit code, stderr and the seconds until the last process has ended."""
        start = time.monotonic()
        for _ in range(times):
            # The first signal can end the process.
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if all_processes else os.kill)(self.process.pid, signal.SIGINT)
            time.sleep(0.05)
        # The pipes stay open until the last worker has ended.
        _, stderr = (output.read() for output in self.outputs)
        self.process.join()
        return self.process.exitcode, stderr, time.monotonic() - start

    def __enter__(self) -> "Script":
        return self

    def __exit__(self, *error):
        self.process.kill()
        for output in self.outputs:
            output.close()


def _join_group(rank: int, store: Path, function: Callable, *arguments):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
    _call(function, *arguments)
    torch.distributed.destroy_process_group()


def run_in_two_processes(folder: Path, function: Callable, *arguments):
    """Call a function of a module in two new processes that communicate through gloo and a file in `folder`."""
    arguments = (folder / "store", function, *arguments)
    torch.multiprocessing.start_processes(_join_group, arguments, nprocs=2, start_method="forkserver")
