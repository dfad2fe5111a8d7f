"""New processes that start with the imports done, because imports take most of the time of a short process."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import torch


_context = multiprocessing.get_context("forkserver")
# A server process imports these modules once. Each new process is a fork of the server.
_context.set_forkserver_preload(
    ["torch.distributed.fsdp", "modeling_xlm_swcm.training.finetuning", "modeling_xlm_swcm.training.pretraining"]
)


def _call(function: Callable, *arguments):
    # The workers of a data loader start as in a program that a user starts, so they end when their parent is killed.
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)
    function(*arguments)


def run_in_new_process(function: Callable, *arguments) -> int:
    """Call a function of a module in a new process, and return the exit code."""
    process = _context.Process(target=_call, args=(function, *arguments))
    process.start()
    process.join()
    return process.exitcode


def _join_group(rank: int, store: Path, function: Callable, *arguments):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
    _call(function, *arguments)
    torch.distributed.destroy_process_group()


def run_in_two_processes(folder: Path, function: Callable, *arguments):
    """Call a function of a module in two new processes that communicate through gloo and a file in `folder`."""
    arguments = (folder / "store", function, *arguments)
    torch.multiprocessing.start_processes(_join_group, arguments, nprocs=2, start_method="forkserver")
