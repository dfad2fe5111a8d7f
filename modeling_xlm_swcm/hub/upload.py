"""Talking to the Hub: one commit or none, and one sentence for whatever it will not do."""

import re
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import (
    HFValidationError,
)
from huggingface_hub.utils import validate_repo_id

from modeling_xlm_swcm.checkpoints.errors import ConversionError
from modeling_xlm_swcm.checkpoints.hub_errors import hub_errors


# what an older push may have left: whole or in shards, of any form
WEIGHTS = r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?"


def check_repo_id(repo_id: str):
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ConversionError(f'"{repo_id}" is not the id of a repository, such as owner/name.') from error
    if "/" not in repo_id:
        raise ConversionError(f'"{repo_id}" is not the id of a repository: it lacks the owner, as in owner/{repo_id}.')


def upload(
    files: dict[str, Path | bytes],
    repo_id: str,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload XLM-SWCM model",
) -> str:
    """Send files in one commit, which also removes the weights of an older one; the commit's or request's URL."""
    check_token()
    api = HfApi(library_name="xlm-swcm")
    with hub_errors(repo_id):
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        if private and not api.repo_info(repo_id).private:
            raise ConversionError(f"{repo_id} exists and is public; make it private on the Hub first.")
        if revision is not None and not create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        before = api.repo_info(repo_id, revision=revision)
        stale = {file.rfilename for file in before.siblings} - files.keys()
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        operations += [CommitOperationDelete(name) for name in sorted(stale) if re.fullmatch(WEIGHTS, name)]
        commit = api.create_commit(
            repo_id,
            operations,
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
            parent_commit=before.sha,
        )
    return commit.pr_url or commit.commit_url


def check_token():
    """The token comes from the client's store or HF_TOKEN; an odd one must not reach an error message."""
    token = get_token()
    if token is None:
        raise ConversionError("There is no token for the Hub: log in with `hf auth login`, or set HF_TOKEN.")
    if not re.fullmatch(r"[!-~]+", token):
        raise ConversionError(
            "The token for the Hub holds a character that no token has; log in again or set HF_TOKEN."
        )
