"""Check the folder of a model and push it to the Hub."""

import json
from os import PathLike
from pathlib import Path

from modeling_xlm_swcm import XLMSWCMConfig
from modeling_xlm_swcm.checkpoints.arguments import check_path
from modeling_xlm_swcm.checkpoints.code import check_code_version, package_code
from modeling_xlm_swcm.checkpoints.encoders import read_license, require_license
from modeling_xlm_swcm.checkpoints.errors import ConversionError
from modeling_xlm_swcm.checkpoints.inspection import read_folder_config
from modeling_xlm_swcm.checkpoints.loading import check_cache, load_model, load_tokenizer
from modeling_xlm_swcm.checkpoints.reading import check_folder, find_file, read_config, read_json
from modeling_xlm_swcm.hub_xlm_swcm import REPORT

from .card import choose_card, make_public_report
from .files import CARD, INDEX, WEIGHTS, check_no_token, find_model_files, read_public, report_left_out
from .upload import check_repo_id, check_token, upload


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
            Create a private repository.
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
    check_path("folder", folder)
    folder = Path(folder)
    if not folder.exists() and Path(str(repo_id)).is_dir():
        raise ConversionError(
            f"{repo_id} is a folder, and {folder} is not. Write the folder first, then the repository."
        )
    check_repo_id(repo_id)
    config = check_model(folder)
    files = {name: read_public(path) for name, path in find_model_files(folder).items()}
    card = choose_card(folder, repo_id, license).encode()
    check_no_token(CARD, card)
    report = json.dumps(make_public_report(folder), indent=2, ensure_ascii=False) + "\n"
    sent = {CARD: card} | files | {REPORT: report.encode()} | package_code(config)
    report_left_out(folder, sent)
    return sent


def check_destination(repo_id: str, encoder: str, revision: str | None = None, license: str | None = None):
    """Check repository id, token, encoder and licence of a push before the conversion starts."""
    check_repo_id(repo_id)
    check_token()
    read_config(encoder, revision)
    require_license(license or read_license(encoder, revision), encoder)


def check_model(folder: Path) -> XLMSWCMConfig:
    """Load weights and tokenizer, check that both are complete, and check that a cache changes no logits."""
    config = read_folder_config(folder)
    check_folder(folder)
    check_code_version(folder)
    check_code_names(folder, config)
    if not find_file(str(folder), WEIGHTS) and not find_file(str(folder), INDEX):
        raise ConversionError(f"{folder} has no weights in safetensors. Save the model with save_pretrained.")
    for name in REQUIRED_FILES:
        if find_file(str(folder), name) is None:
            raise ConversionError(f"{folder} lacks {name}. Save model and tokenizer with save_pretrained.")
    check_cache(load_model(folder), str(folder))
    load_tokenizer(folder, config.vocab_size)
    return config


def check_code_names(folder: Path, config: XLMSWCMConfig):
    """Check that the configs of a folder name only code that is pushed with the model."""
    pushed = {name.removesuffix(".py") for name in package_code(config)}
    for file in ("config.json", "tokenizer_config.json"):
        path = find_file(str(folder), file)
        fields = {} if path is None else read_json(path)
        for field in ("auto_map", "custom_pipelines"):
            for name in find_class_names(fields.get(field)):
                if name.rpartition(".")[0] not in pushed:
                    raise ConversionError(
                        f'{field} in {path} names "{name}", which is not a class of xlm-swcm. Remove {field}.'
                    )


def find_class_names(value: object) -> list[str]:
    """Return the names of classes in a field that says which code Transformers runs."""
    if isinstance(value, dict):
        return find_class_names([part for key, part in value.items() if key not in ("pt", "type", "default")])
    if isinstance(value, list):
        return [name for part in value for name in find_class_names(part)]
    return [value] if isinstance(value, str) else []
