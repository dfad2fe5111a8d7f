"""Text and JSON files, each written complete or not at all, and the line that names the output folder."""

import json
from pathlib import Path

from rich.console import Console
from transformers import TrainingArguments

from modeling_xlm_swcm.checkpoints.writing import whole_file


def write_whole(path: Path, text: str):
    """Write `text` as UTF-8. A run that is killed leaves the old file."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def format_json(content: dict | list) -> str:
    """Return `content` as JSON with one space of indentation."""
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def write_json(path: Path, content: dict | list):
    """Write `content` as JSON, and create the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, format_json(content))


def read_run(path: Path) -> dict[str, str]:
    """Return the settings in the `run.json` of a checkpoint, or an empty dict if there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def print_output(args: TrainingArguments):
    """Print where a training script has written its files."""
    if args.process_index == 0:
        Console().print(f"Written to {args.output_dir}.", markup=False, highlight=False, soft_wrap=True)
