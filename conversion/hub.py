"""Talking to the Hub: one commit or none, and one sentence for whatever it will not do."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from .checkpoint import ConversionError, first_line


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


@contextlib.contextmanager
def hub_errors(repo_id: str) -> Iterator[None]:
    """Say in one sentence what the Hub would not do."""
    try:
        yield
    except ConversionError:
        raise
    except Exception as error:
        message = explain(repo_id, error)
        if message is None:
            raise
        raise ConversionError(message) from error


def explain(repo_id: str, error: BaseException | None) -> str | None:
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    said = getattr(error, "server_message", None) or f"status {status}"
    if isinstance(error, GatedRepoError):
        return f"{repo_id} is gated: ask for access at {constants.ENDPOINT}/{repo_id}, with the account of your token."
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id} has no such revision; give the name of a branch or tag, or a commit."
    if status == 401 and re.search("credentials|password", said):
        return "The Hub does not know your token: log in again with `hf auth login`, or set HF_TOKEN to a valid one."
    if isinstance(error, RepositoryNotFoundError):
        return f"The Hub has no repository {repo_id} that your account can see; check its name, and your token."
    if status == 412:
        return f"{repo_id} has been changed by somebody else since this push began; push again."
    if status is not None:
        return f"The Hub answered for {repo_id}: {said.splitlines()[0]}"
    if isinstance(error, (HTTPError, OfflineModeIsEnabled)):
        return f"The Hub at {constants.ENDPOINT} cannot be reached: {first_line(error)}"
    # an upload fails with the reason behind it
    return explain(repo_id, error.__cause__) if error is not None and error.__cause__ is not None else None
