"""What a push sends: a folder that has been loaded and checked, with a filled card."""

import json
import re
from os import PathLike
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_imports

from modeling_xlm_swcm import XLMSWCMConfig
from modeling_xlm_swcm.hub_xlm_swcm import REPORT

from .card import card_for, read_report, require_license
from .checkpoint import ConversionError, read_config
from .encoder import read_license
from .hub import check_repo_id, check_token, upload
from .inspection import read_model_config
from .loading import load_model, load_tokenizer


# what belongs to a model; checkpoints, optimizer states and whatever else lies in a folder stay there
FILES = (
    *("config.json", "generation_config.json", REPORT, "vocabulary_report.json", "metrics.json"),
    *("model*.safetensors", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"),
    "*_xlm_swcm*.py",
)


def push(
    folder: str | PathLike,
    repo_id: str,
    *,
    license: str | None = None,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload XLM-SWCM model",
) -> str:
    """
    Check a folder and send it to the Hub in one commit.

    Args:
        folder: with model, tokenizer and code, as `convert` or `save_pretrained` of both write it.
        repo_id: `owner/name`; made if it does not exist.
        license: of the base model, where the folder does not know it.
        private: make the repository private.
        revision: branch to send to, made if it does not exist.
        create_pr: open a pull request.
        commit_message: first line of the commit.

    Returns:
        The URL of the commit, or of the pull request.

    Raises:
        ConversionError: the folder is not complete, or the Hub refuses it.
    """
    return upload(collect(folder, repo_id, license), repo_id, private, revision, create_pr, commit_message)


def collect(folder: str | PathLike, repo_id: str, license: str | None = None) -> dict[str, Path | bytes]:
    """What a push sends, by name, after it has been loaded and checked; nothing is sent and nothing written."""
    check_repo_id(repo_id)
    folder = Path(folder)
    check_model(folder)
    card = card_for(folder, repo_id, license)
    report = json.dumps(read_report(folder), indent=2, ensure_ascii=False) + "\n"
    files = {path.name: path for pattern in FILES for path in sorted(folder.glob(pattern))}
    return {"README.md": card.encode()} | files | {REPORT: report.encode()}


def check_destination(repo_id: str, encoder: str, revision: str | None = None, license: str | None = None):
    """Refuse before a conversion what a push would refuse after it."""
    check_repo_id(repo_id)
    check_token()
    read_config(encoder, revision)
    require_license(license or read_license(encoder, revision), encoder)


def check_model(folder: Path):
    """Load what would be sent: every key in its place, the tokenizer, and the code that the configs name."""
    config = read_folder_config(folder)
    if not any(folder.glob("model*.safetensors")):
        raise ConversionError(f"{folder} has no weights in safetensors; write them with save_pretrained.")
    for name in named_files(folder):
        if not (folder / name).is_file():
            raise ConversionError(f"{folder} lacks {name}; write model and tokenizer again with save_pretrained.")
    load_model(folder)
    load_tokenizer(folder, config.vocab_size)


def read_folder_config(folder: Path) -> XLMSWCMConfig:
    if not folder.is_dir():
        raise ConversionError(f"The folder {folder} does not exist.")
    return read_model_config(str(folder))


def named_files(folder: Path) -> list[str]:
    """What a machine with Transformers alone needs beside the weights: configs, tokenizer, and the code they name."""
    configs = [folder / name for name in ("config.json", "tokenizer_config.json")]
    text = "".join(config.read_text(encoding="utf-8") for config in configs if config.is_file())
    modules = dict.fromkeys(re.findall(r'"(\w+_xlm_swcm)\.\w+"', text))
    for code in [folder / f"{name}.py" for name in modules]:
        modules |= dict.fromkeys(get_relative_imports(code) if code.is_file() else [])
    return ["tokenizer_config.json", "tokenizer.json", "generation_config.json", *(f"{name}.py" for name in modules)]
