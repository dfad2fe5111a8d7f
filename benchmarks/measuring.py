"""Descriptions of measurements that the benchmarks share."""

import os
import statistics
from pathlib import Path

import torch


def summarise(runs: list[dict]) -> dict:
    """Return median, smallest and largest of each measured number. Lists and tables are taken from the first run."""
    columns = {name: [run[name] for run in runs] for name in runs[0]}
    return {
        name: [statistics.median(values), min(values), max(values)] if isinstance(values[0], float) else values[0]
        for name, values in columns.items()
    }


def describe_machine() -> str:
    """Return the names of GPU and CPU, and the numbers of cores and threads."""
    models = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return f"{gpu}{models[0]}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
