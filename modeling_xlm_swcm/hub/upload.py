"""Upload files to the Hub in one commit."""

import re
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from modeling_xlm_swcm.checkpoints.errors import ConversionError
from modeling_xlm_swcm.checkpoints.hub_errors import translate_hub_errors
from modeling_xlm_swcm.checkpoints.reading import check_token_characters

from .card import GENERATED, has_own_text, read_card
from .files import CARD, logger


# Files of an older model that a push removes: weights and adapters, whole or in shards, reports, and old code. With an
# adapter in the repository, Transformers loads the base model of the adapter instead of the pushed model.
STALE = (
    r"(model|pytorch_model|adapter_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?|adapter_config\.json"
    r"|metrics\.json|training\.png|vocabulary_report\.json|products_xlm_swcm\.py"
)


def check_repo_id(repo_id: str):
    """Check that `repo_id` has the form `owner/name`."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ConversionError(f'"{repo_id}" is not a repository id. Use the form owner/name.') from error
    if "/" not in str(repo_id):
        raise ConversionError(f'"{repo_id}" is not a repository id: it has no owner. Use the form owner/{repo_id}.')


def upload(
    files: dict[str, Path | bytes],
    repo_id: str,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload XLM-SWCM model",
    repo_type: str = "model",
) -> str:
    """
    Upload files in one commit, which also removes weights, adapters and reports of older models.

    A generated model card does not replace a card that somebody wrote on the Hub.

    Args:
        files (`dict[str, Path | bytes]`):
            Content of the files, or their local paths, by name.
        repo_id (`str`):
            Repository as `owner/name`. It is created if it does not exist.
        private (`bool`, *optional*, defaults to `False`):
            Create a private repository.
        revision (`str`, *optional*):
            Branch to push to. It is created if it does not exist. Default: the main branch.
        create_pr (`bool`, *optional*, defaults to `False`):
            Open a pull request instead of changing the branch.
        commit_message (`str`, *optional*, defaults to `"Upload XLM-SWCM model"`):
            First line of the commit message.
        repo_type (`str`, *optional*, defaults to `"model"`):
            `"model"`, or `"space"` for a Space with Gradio.

    Returns:
        `str`: URL of the commit or pull request.

    Raises:
        ConversionError: if the Hub refuses the upload, or `private` is set and the repository is public.
    """
    check_token()
    api = HfApi(library_name="xlm-swcm")
    with translate_hub_errors(repo_id):
        kind: dict[str, Any] = {"repo_type": repo_type}
        sdk = "gradio" if repo_type == "space" else None
        api.create_repo(repo_id, private=private or None, exist_ok=True, space_sdk=sdk, **kind)
        if private and not api.repo_info(repo_id, **kind).private:
            raise ConversionError(f"{repo_id} exists and is public. Make it private on the Hub first.")
        if revision is not None and not create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True, **kind)
        before: Any = api.repo_info(repo_id, revision=revision, **kind)
        # `hub.space` writes the card of a Space. A Space keeps its other files.
        names = {file.rfilename for file in before.siblings or []} if repo_type == "model" else set()
        if CARD in names:
            files = keep_own_card(files, Path(api.hf_hub_download(repo_id, CARD, revision=before.sha)), repo_id)
        stale = names - files.keys()
        operations: list[CommitOperationAdd | CommitOperationDelete] = []
        operations += [CommitOperationAdd(name, content) for name, content in files.items()]
        operations += [CommitOperationDelete(name) for name in sorted(stale) if re.fullmatch(STALE, name)]
        commit = api.create_commit(
            repo_id,
            operations,
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
            parent_commit=before.sha,
            **kind,
        )
    return commit.pr_url or commit.commit_url


def keep_own_card(files: dict[str, Path | bytes], card: Path, repo_id: str) -> dict[str, Path | bytes]:
    """Return the files to upload, without a generated card if somebody wrote the card of the repository."""
    new = files.get(CARD)
    if not isinstance(new, bytes) or GENERATED.encode() not in new or not has_own_text(read_card(card)):
        return files
    logger.warning(
        f"{repo_id} keeps its model card, because somebody wrote it. To replace it, save a card as {CARD} in the "
        "folder of the model."
    )
    return {name: content for name, content in files.items() if name != CARD}


def check_token():
    """Check that there is a token and that its characters are valid, so that no error message prints it."""
    if get_token() is None:
        raise ConversionError("There is no token for the Hub. Log in with `hf auth login`, or set HF_TOKEN.")
    check_token_characters()
