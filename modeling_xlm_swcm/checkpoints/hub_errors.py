"""Turn what the Hub answers into one sentence."""

import contextlib
import re
from collections.abc import Iterator

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .errors import ConversionError, first_line


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
