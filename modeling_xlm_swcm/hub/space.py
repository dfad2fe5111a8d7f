"""Push a Space that shows the page of `xlm-swcm try` for a model on the Hub."""

import json
from importlib.metadata import requires
from pathlib import Path

from huggingface_hub import HfApi, SpaceCardData

from modeling_xlm_swcm.checkpoints.errors import ConversionError
from modeling_xlm_swcm.checkpoints.hub_errors import translate_hub_errors
from modeling_xlm_swcm.checkpoints.inspection import read_model_config, read_tasks

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

PROGRAM = """\
from xlm_swcm_models import load_from_hub
from xlm_swcm_page import LAUNCH, make_page


model = load_from_hub({model}, revision={revision}, tasks={tasks})
make_page(model, {model}).launch(**LAUNCH)
"""

TOKEN_NOTE = """
The model is private or gated. The Space needs a token that can read it. Add the token in the settings of the Space, as
a secret with the name `HF_TOKEN`.
"""


def collect_space(
    space_id: str,
    model_id: str,
    revision: str | None = None,
    tasks: list[str] | None = None,
    needs_token: bool = False,
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
        tasks (`list[str]`, *optional*):
            Tasks of the model. Default: the tasks that the model's repository names.
        needs_token (`bool`, *optional*, defaults to `False`):
            Whether the Space needs a token to read the model.

    Returns:
        `dict[str, Path | bytes]`: content of the files, or their local paths.

    Raises:
        ConversionError: if an id is wrong, or the model is not an XLM-SWCM model.
    """
    check_repo_id(space_id)
    tasks = read_tasks(model_id, revision) if tasks is None else tasks
    names = {"model": model_id, "revision": revision, "tasks": tasks}
    program = PROGRAM.format(**{name: json.dumps(value) if value else "None" for name, value in names.items()})
    needed = [line for line in requires("xlm-swcm") or () if line.startswith(("torch", "transformers"))]
    card = SpaceCardData(
        title=space_id.partition("/")[2],
        emoji="🌐",
        colorFrom="green",
        colorTo="blue",
        sdk="gradio",
        sdk_version=GRADIO_VERSION,
        python_version="3.11",
        app_file=APP,
        models=[model_id],
    )
    note = TOKEN_NOTE if needs_token else ""
    text = f"---\n{card.to_yaml()}\n---\n\nTry the model [{model_id}](https://huggingface.co/{model_id}).\n{note}"
    written = {CARD: text, APP: program, "requirements.txt": "".join(f"{line}\n" for line in needed)}
    return {name: content.encode() for name, content in written.items()} | PAGE_FILES


def find_model(model_id: str, revision: str | None = None) -> bool:
    """
    Check that the Hub has an XLM-SWCM model. Return True if its readers need a token.

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
    return bool(info.private or info.gated)


def check_space(space_id: str):
    """
    Check that a Space can be created or replaced.

    Raises:
        ConversionError: if no token is stored, or if the Space holds another app.
    """
    check_repo_id(space_id)
    check_token()
    api = HfApi()
    with translate_hub_errors(space_id):
        if not api.repo_exists(space_id, repo_type="space"):
            return
        files = set(api.list_repo_files(space_id, repo_type="space"))
    if APP in files and not files & PAGE_FILES.keys():
        raise ConversionError(f"The Space {space_id} holds another app. Choose another name for the Space.")
