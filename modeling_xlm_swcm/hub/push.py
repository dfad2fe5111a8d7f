"""Check the folder of a model and push it to the Hub."""

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

from .card import choose_card, make_public_report
from .upload import check_repo_id, check_token, upload


# Files of a model besides its code. Training checkpoints, optimizer states and other files are not pushed.
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
    Check a model and push it to the Hub in one commit, with the code of this package and a model card.

    Args:
        folder (`str` or `PathLike`):
            Folder with model and tokenizer, from `convert` or `save_pretrained`.
        repo_id (`str`):
            Repository as `owner/name`. It is created if it does not exist.
        license (`str`, *optional*):
            Licence of the encoder. Default: the licence in the conversion report.
        private (`bool`, *optional*, defaults to `False`):
            Make the repository private.
        revision (`str`, *optional*):
            Branch to push to. It is created if it does not exist. Default: the main branch.
        create_pr (`bool`, *optional*, defaults to `False`):
            Open a pull request instead of changing the branch.
        commit_message (`str`, *optional*, defaults to `"Upload XLM-SWCM model"`):
            First line of the commit message.

    Returns:
        `str`: URL of the commit or pull request.

    Raises:
        ConversionError: if the folder is not complete, or the Hub refuses the push.
    """
    return upload(collect_files(folder, repo_id, license), repo_id, private, revision, create_pr, commit_message)


def collect_files(folder: str | PathLike, repo_id: str, license: str | None = None) -> dict[str, Path | bytes]:
    """Check a model and return the files to push by name. Nothing is sent or written."""
    check_repo_id(repo_id)
    folder = Path(folder)
    config = check_model(folder)
    card = choose_card(folder, repo_id, license)
    report = json.dumps(make_public_report(folder), indent=2, ensure_ascii=False) + "\n"
    files = {path.name: path for pattern in FILES for path in sorted(folder.glob(pattern))}
    return {"README.md": card.encode()} | files | {REPORT: report.encode()} | package_code(config)


def check_destination(repo_id: str, encoder: str, revision: str | None = None, license: str | None = None):
    """Check repository id, token, encoder and licence of a push before the conversion starts."""
    check_repo_id(repo_id)
    check_token()
    read_config(encoder, revision)
    require_license(license or read_license(encoder, revision), encoder)


def check_model(folder: Path) -> XLMSWCMConfig:
    """Load weights and tokenizer, check that both are complete, and check that a cache changes no logits."""
    config = read_folder_config(folder)
    check_code_version(folder)
    if not any(folder.glob("model*.safetensors")):
        raise ConversionError(f"{folder} has no weights in safetensors. Save the model with save_pretrained.")
    for name in REQUIRED_FILES:
        if not (folder / name).is_file():
            raise ConversionError(f"{folder} lacks {name}. Save model and tokenizer with save_pretrained.")
    check_cache(load_model(folder), str(folder))
    load_tokenizer(folder, config.vocab_size)
    return config
