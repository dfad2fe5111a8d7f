"""Writing of text and JSON files, each complete or not at all."""

import json
from pathlib import Path

from modeling_xlm_swcm.checkpoints.writing import whole_file


def write_whole(path: Path, text: str):
    """Write `text` as UTF-8. A run that is killed leaves the old file."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, content: dict | list):
    """Write `content` as JSON with one space of indentation, and create the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
