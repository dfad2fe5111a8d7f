"""Find the encoder in a folder of Sentence Transformers."""

import json
from pathlib import Path

from .errors import ConversionError
from .reading import find_file, is_file_name, read_json


MODULES = "modules.json"
# Old versions name the file after the class of the encoder.
LENGTH_FILES = tuple(f"sentence_{name}_config.json" for name in ("bert", "roberta", "xlm-roberta", "camembert"))


def find_encoder_folder(source: str, revision: str | None = None) -> str:
    """
    Return the folder with the encoder of a Sentence Transformers model.

    Args:
        source (`str`):
            Folder or Hub id.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub.

    Returns:
        `str`: the subfolder that `modules.json` names, or `source` if there is no such file or subfolder.

    Raises:
        ConversionError: if `modules.json` is damaged, or names a subfolder that cannot be read.
    """
    if (path := find_file(source, MODULES, revision)) is None:
        return source
    try:
        subfolder = json.loads(path.read_text(encoding="utf-8"))[0]["path"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ConversionError(f"{path} is not a list of modules with a path. Download it again.") from error
    if subfolder == "":
        return source
    if not is_file_name(subfolder):
        raise ConversionError(
            f"{path} places the encoder in {json.dumps(subfolder)}, which is not a subfolder. Correct the field path."
        )
    if not Path(source).is_dir():
        raise ConversionError(
            f"{source} keeps its encoder in the subfolder {subfolder}, which cannot be read from the Hub. Run hf "
            f"download {source} --local-dir FOLDER, and pass FOLDER."
        )
    folder = Path(source) / subfolder
    if not folder.is_dir() or folder.is_symlink():
        raise ConversionError(f"{path} names the folder {folder}, which does not exist. Download the model again.")
    return str(folder)


def read_max_length(source: str, revision: str | None = None) -> int | None:
    """Return the maximum length in tokens that Sentence Transformers uses, or `None` if no file names it."""
    # Every file that a repository lacks costs a request.
    if not Path(source).is_dir() and find_file(source, MODULES, revision) is None:
        return None
    path = next(filter(None, (find_file(source, name, revision) for name in LENGTH_FILES)), None)
    length = None if path is None else read_json(path).get("max_seq_length")
    if length is not None and (isinstance(length, bool) or not isinstance(length, int) or length < 1):
        raise ConversionError(f"max_seq_length in {path} is {json.dumps(length)}. Use a positive number of tokens.")
    return length
