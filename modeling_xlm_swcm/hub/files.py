"""Find the files of a model in a folder, and check that they hold nothing private."""

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from huggingface_hub import get_token
from transformers.utils import logging

from modeling_xlm_swcm.checkpoints.errors import ConversionError
from modeling_xlm_swcm.checkpoints.reading import find_file, read_weight_map
from modeling_xlm_swcm.hub_xlm_swcm import REPORT, make_public, stage_files


# A child of Transformers' logger, so that Transformers' verbosity applies.
logger = logging.get_logger(f"transformers.{__name__}")

CARD = "README.md"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

# Files of a model besides its weights and its code.
MODEL_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
REPORT_FILES = (REPORT, "vocabulary_report.json", "metrics.json", "training.png", "LICENSE")

# Files that only a training writes.
TRAINING_FILES = (
    *("adapter_config.json", "adapter_model.safetensors", "generated_predictions.txt"),
    *(f"{name}_results.json" for name in ("all", "train", "eval", "predict")),
)

# Number of names in the line about files that are left out.
NAMES_SHOWN = 8

# A user access token, or a token of an organisation.
TOKEN = re.compile(rb"\b(hf|api_org)_[A-Za-z0-9]{30,}\b")


def find_model_files(folder: Path, names: Iterable[str] = (*MODEL_FILES, *REPORT_FILES)) -> dict[str, Path]:
    """
    Find the files of a model by the names that xlm-swcm and Transformers give them.

    Args:
        folder (`Path`):
            Folder of the model.
        names (`Iterable[str]`, *optional*):
            Names of the files besides the weights.

    Returns:
        `dict[str, Path]`: the files in `names` and the weights, by name. Sharded weights come with their index.

    Raises:
        ConversionError: if one of the files is not a regular file, or is a link out of the folder.
    """
    weights = [WEIGHTS]
    if find_file(str(folder), WEIGHTS) is None and (index := find_file(str(folder), INDEX)) is not None:
        weights = [*sorted(set(read_weight_map(index).values())), INDEX]
    found = {name: find_file(str(folder), name) for name in (*names, *weights)}
    return {name: path for name, path in found.items() if path is not None}


def report_left_out(folder: Path, sent: Collection[str]):
    """Log the names in a folder that are not sent."""
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir() if path.name not in sent)
    if names:
        more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
        logger.warning(
            f"These files are not part of the model and are not sent: {', '.join(names[:NAMES_SHOWN])}{more}."
        )


def read_public(path: Path) -> Path | bytes:
    """Return the path of a file, or its content without local paths. A token for the Hub is refused."""
    check_text(path)
    content = make_public(path)
    return path if content is None else content


def stage_public(files: dict[str, Path], folder: Path, staged: Path):
    """Prepare files for an upload with [`stage_files`]. A token for the Hub is refused."""
    for path in files.values():
        check_text(path)
    stage_files(files, folder, staged)


def check_text(path: Path):
    """Refuse a text file that holds a token for the Hub."""
    if path.suffix in (".json", ".md", ".txt", ".py", ""):
        check_no_token(path.name, path.read_bytes())


def check_no_token(name: str, content: bytes):
    """Refuse a text that holds a token for the Hub."""
    own = (get_token() or "").encode()
    if TOKEN.search(content) or (own and own in content):
        raise ConversionError(f"{name} holds a token for the Hub. Remove the token from the file, and revoke it.")
