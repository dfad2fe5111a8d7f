"""Short messages for errors of the Hub."""

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

from .errors import ConversionError, describe_cause, hide_password


@contextlib.contextmanager
def translate_hub_errors(repo_id: str) -> Iterator[None]:
    """Turn errors of the Hub client into a `ConversionError` that names the repository."""
    try:
        yield
    except ConversionError:
        raise
    except Exception as error:
        message = explain_hub_error(repo_id, error)
        if message is None:
            raise
        raise ConversionError(message) from error


def explain_hub_error(repo_id: str, error: BaseException | None) -> str | None:
    """Return the message for an error of the Hub client, or `None` if the error has another cause."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    answer = getattr(error, "server_message", None) or f"status {status}"
    if isinstance(error, GatedRepoError):
        page = f"{hide_password(constants.ENDPOINT)}/{repo_id}"
        return f"{repo_id} is gated. Ask for access at {page} with the account of your token."
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id} has no such revision. Use a branch, a tag or a commit of the repository."
    if status == 401 and re.search("credentials|password", answer):
        return "The Hub does not know your token. Log in again with `hf auth login`, or set HF_TOKEN to a valid token."
    if isinstance(error, RepositoryNotFoundError):
        return f"The Hub has no repository {repo_id} that your account can read. Check the name and your token."
    if status == 412:
        return f"Somebody else changed {repo_id} during this push. Push again."
    if status is not None:
        line = answer.splitlines()[0].rstrip(".")
        return f"The Hub returned an error for {repo_id}: {line}. Check your account, or try again later."
    if isinstance(error, (HTTPError, OfflineModeIsEnabled)):
        cause = describe_cause(error, ": {}")
        return f"The Hub at {hide_password(constants.ENDPOINT)} cannot be reached{cause}. Check the connection."
    # The client wraps the error of a failed upload in another error.
    if error is not None and error.__cause__ is not None:
        return explain_hub_error(repo_id, error.__cause__)
    return None
