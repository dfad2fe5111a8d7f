"""Push a Space that shows the page of `xlm-swcm try` for a model on the Hub."""

import json
from importlib.metadata import requires
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, SpaceCard, SpaceCardData
from yaml import YAMLError

from modeling_xlm_swcm.checkpoints.errors import ConversionError
from modeling_xlm_swcm.checkpoints.hub_errors import translate_hub_errors
from modeling_xlm_swcm.checkpoints.inspection import read_model_config

from .files import CARD
from .upload import check_repo_id, check_token


# The version that the tests use.
GRADIO_VERSION = "6.31.0"

PACKAGE = Path(__file__).parents[1]
PAGE_FILES = {
    path.name: path
    for path in (
        *sorted((PACKAGE / "app").glob("xlm_swcm_*.py")),
        PACKAGE / "sentences_xlm_swcm.py",
        PACKAGE / "checkpoints" / "language_names.json",
    )
}
APP = "app.py"
# Files of a Space that is still empty.
EMPTY_SPACE = {CARD, ".gitattributes"}

# With a new commit of the model, this file changes. The Hub restarts a Space whose files change.
PROGRAM = """\
import os

from xlm_swcm_models import load_from_hub
from xlm_swcm_page import LAUNCH, make_page


# The variable MODEL in the settings of the Space replaces the model: owner/name or owner/name@branch.
# The last push of this Space found the commit {commit} of the model.
source = os.environ.get("MODEL") or {source}
model = load_from_hub(source)
make_page(model, source).launch(**LAUNCH)
"""

INTRODUCTION = "Try the model"
TOKEN_NOTE = """
The model is private or gated. The Space needs a token that can read it. Add the token in the settings of the Space, as
a secret with the name `HF_TOKEN`.
"""


def collect_space(
    space_id: str,
    model_id: str,
    revision: str | None = None,
    *,
    commit: str | None = None,
    needs_token: bool = False,
    before: SpaceCard | None = None,
) -> dict[str, Path | bytes]:
    """
    Return the files of a Space by name. Nothing is sent or written.

    Args:
        space_id (`str`):
            Space as `owner/name`.
        model_id (`str`):
            Hub id of the model that the Space shows.
        revision (`str`, *optional*):
            Branch, tag or commit of the model. Default: the main branch.
        commit (`str`, *optional*):
            Commit of the model, if the model is on the Hub.
        needs_token (`bool`, *optional*, defaults to `False`):
            Whether the Space needs a token to read the model.
        before (`SpaceCard`, *optional*):
            Card of the Space, if the Space exists. Its title, its other fields and a text of the owner are kept.

    Returns:
        `dict[str, Path | bytes]`: content of the files, or their local paths.

    Raises:
        ConversionError: if the id of the Space is wrong.
    """
    check_repo_id(space_id)
    source = model_id if revision is None else f"{model_id}@{revision}"
    program = PROGRAM.format(commit=commit, source=json.dumps(source))
    needed = [line for line in requires("xlm-swcm") or () if line.startswith(("torch", "transformers"))]
    card = write_card(space_id, model_id, needs_token, before)
    written = {CARD: card, APP: program, "requirements.txt": "".join(f"{line}\n" for line in needed)}
    return {name: content.encode() for name, content in written.items()} | PAGE_FILES


def write_card(space_id: str, model_id: str, needs_token: bool, before: SpaceCard | None) -> str:
    """Return the card of a Space. It keeps the owner's changes in the old card."""
    fields: dict[str, Any] = dict(title=space_id.partition("/")[2], emoji="🌐", colorFrom="green", colorTo="blue")
    fields |= {} if before is None else before.data.to_dict()
    fields |= dict(sdk="gradio", sdk_version=GRADIO_VERSION, python_version="3.11", app_file=APP)
    data = SpaceCardData(**fields | {"models": [model_id]})
    text = "" if before is None else before.text.strip()
    if not text or text.startswith(INTRODUCTION):
        note = TOKEN_NOTE if needs_token else ""
        text = f"{INTRODUCTION} [{model_id}](https://huggingface.co/{model_id}).\n{note}".rstrip()
    return f"---\n{data.to_yaml()}\n---\n\n{text}\n"


def find_model(model_id: str, revision: str | None = None) -> tuple[str | None, bool]:
    """
    Check that the Hub has an XLM-SWCM model. Return its commit, and True if its readers need a token.

    Raises:
        ConversionError: if the model does not exist, or is of another kind.
    """
    if Path(model_id).exists():
        raise ConversionError(
            f"{model_id} is a folder. A Space needs a model on the Hub. Write REPO after FOLDER to push the model too."
        )
    check_repo_id(model_id)
    with translate_hub_errors(model_id):
        info = HfApi().model_info(model_id, revision=revision)
    read_model_config(model_id, revision)
    return info.sha, bool(info.private or info.gated)


def check_space(space_id: str) -> SpaceCard | None:
    """
    Check that a Space can be created or replaced. Return its card if there is one.

    Raises:
        ConversionError: if no token is stored, if the Space holds another app, or if its card is damaged.
    """
    check_repo_id(space_id)
    check_token()
    api = HfApi()
    with translate_hub_errors(space_id):
        if not api.repo_exists(space_id, repo_type="space"):
            return None
        files = set(api.list_repo_files(space_id, repo_type="space"))
        if files - EMPTY_SPACE and not files & PAGE_FILES.keys():
            raise ConversionError(f"The Space {space_id} holds another app. Choose another name for the Space.")
        path = api.hf_hub_download(space_id, CARD, repo_type="space") if CARD in files else None
    try:
        return None if path is None else SpaceCard(Path(path).read_text(encoding="utf-8-sig"))
    except (ValueError, YAMLError) as error:
        raise ConversionError(f"{CARD} of the Space {space_id} cannot be read. Correct it, or delete it.") from error


def list_models(card: SpaceCard | None) -> list[str]:
    """Return the models that the card of a Space names."""
    models = None if card is None else card.data.get("models")
    return [str(model) for model in models] if isinstance(models, list) else []
