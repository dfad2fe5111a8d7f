"""What a push sends: a folder that has been loaded and checked, with a filled card."""

import json
from os import PathLike
from pathlib import Path

from modeling_xlm_swcm import XLMSWCMConfig
from modeling_xlm_swcm.checkpoints.code import check_code_version, package_code
from modeling_xlm_swcm.checkpoints.encoders import read_license, require_license
from modeling_xlm_swcm.checkpoints.errors import ConversionError
from modeling_xlm_swcm.checkpoints.inspection import read_folder_config
from modeling_xlm_swcm.checkpoints.loading import check_cache, load_model, load_tokenizer
from modeling_xlm_swcm.checkpoints.reading import read_config
from modeling_xlm_swcm.hub_xlm_swcm import REPORT

from .card import card_for, read_report
from .upload import check_repo_id, check_token, upload


# what belongs to a model beside its code; checkpoints, optimizer states and whatever else lies in a folder stay there
FILES = (
    *("config.json", "generation_config.json", REPORT, "vocabulary_report.json", "metrics.json"),
    *("model*.safetensors", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"),
)

REQUIRED_FILES = ("tokenizer_config.json", "tokenizer.json", "generation_config.json")


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
    Check a folder and send it to the Hub in one commit, with the code of this package.

    Args:
        folder: with model and tokenizer, as `convert` or `save_pretrained` of both write it.
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
    config = check_model(folder)
    card = card_for(folder, repo_id, license)
    report = json.dumps(read_report(folder), indent=2, ensure_ascii=False) + "\n"
    files = {path.name: path for pattern in FILES for path in sorted(folder.glob(pattern))}
    return {"README.md": card.encode()} | files | {REPORT: report.encode()} | package_code(config)


def check_destination(repo_id: str, encoder: str, revision: str | None = None, license: str | None = None):
    """Refuse before a conversion what a push would refuse after it."""
    check_repo_id(repo_id)
    check_token()
    read_config(encoder, revision)
    require_license(license or read_license(encoder, revision), encoder)


def check_model(folder: Path) -> XLMSWCMConfig:
    """Load what would be sent: every key in its place, the tokenizer, and a cache that changes no logits."""
    config = read_folder_config(folder)
    check_code_version(folder)
    if not any(folder.glob("model*.safetensors")):
        raise ConversionError(f"{folder} has no weights in safetensors; write them with save_pretrained.")
    for name in REQUIRED_FILES:
        if not (folder / name).is_file():
            raise ConversionError(f"{folder} lacks {name}; write model and tokenizer again with save_pretrained.")
    check_cache(load_model(folder), str(folder))
    load_tokenizer(folder, config.vocab_size)
    return config
