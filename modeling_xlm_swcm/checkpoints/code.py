"""Find, compare and replace the code files that are saved with a model."""

import contextlib
import json
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version
from transformers.dynamic_module_utils import get_relative_imports

from modeling_xlm_swcm import XLMSWCMConfig, XLMSWCMTokenizer, compat_xlm_swcm
from modeling_xlm_swcm.compat_xlm_swcm import VERSION

from .errors import ConversionError
from .reading import find_file, read_json


PACKAGE = Path(compat_xlm_swcm.__file__).parent

VERSION_FILE = "compat_xlm_swcm.py"

# Code of this version and older names no version.
UNNAMED_VERSION = "0.1.0"


def package_code(config: XLMSWCMConfig) -> dict[str, Path]:
    """Return the files of this package that a model with `config` needs when the package is not installed."""
    return find_code(
        PACKAGE, ["tokenization_xlm_swcm", *(name.split(".")[0] for name in config.auto_classes.values())]
    )


def find_code(folder: Path, modules: list[str]) -> dict[str, Path]:
    """Return the files of `modules` in `folder` and of all modules that they import, by file name."""
    files, waiting = {}, list(modules)
    while waiting:
        path = folder / f"{waiting.pop()}.py"
        if path.name not in files and path.is_file():
            files[path.name] = path
            # A damaged file is replaced, so its imports do not matter.
            with contextlib.suppress(UnicodeDecodeError):
                waiting += get_relative_imports(path)
    return dict(sorted(files.items()))


def read_code_version(source: str, revision: str | None = None) -> str | None:
    """Return the version of the code in a folder or Hub repository, or `None` if there is no code."""
    # Only the version is used, and refresh replaces links.
    path = find_file(source, VERSION_FILE, revision, follow_links=True)
    if path is None:
        has_code = find_file(source, "configuration_xlm_swcm.py", revision, follow_links=True)
        return UNNAMED_VERSION if has_code else None
    text = path.read_text(encoding="utf-8", errors="replace")
    found = re.search(r"""^VERSION\b[^=\n]*=\s*["']([^"'\n]+)["']""", text, re.MULTILINE)
    try:
        return str(Version(found.group(1) if found else ""))
    except InvalidVersion as error:
        raise ConversionError(f"{path} has no valid VERSION. Remove the file, then run xlm-swcm refresh.") from error


def find_changed_code(source: str, config: XLMSWCMConfig, revision: str | None = None) -> list[str]:
    """Return the names of code files that a folder or Hub repository lacks, or that differ from this package."""
    changed = []
    for name, path in package_code(config).items():
        saved = find_file(source, name, revision, follow_links=True)
        if saved is None or saved.read_bytes() != path.read_bytes():
            changed.append(name)
    return changed


def complete_auto_maps(source: str, config: XLMSWCMConfig, revision: str | None = None) -> dict[str, dict]:
    """
    Add the names of the saved code to `config.json` and `tokenizer_config.json`.

    Args:
        source (`str`):
            Folder or Hub id.
        config ([`XLMSWCMConfig`]):
            Config of the model.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub.

    Returns:
        `dict[str, dict]`: new content of the files in which names are missing, by file name.
    """
    tokenizer = {"AutoTokenizer": [f"tokenization_xlm_swcm.{XLMSWCMTokenizer.__name__}", None]}
    classes: Mapping[str, Any]
    completed = {}
    for name, classes in (("config.json", config.auto_classes), ("tokenizer_config.json", tokenizer)):
        path = find_file(source, name, revision)
        fields = {} if path is None else read_json(path)
        named = fields.get("auto_map")
        auto_map: dict[str, Any] = named if isinstance(named, dict) else {}
        is_ours = name == "config.json" or fields.get("tokenizer_class") == XLMSWCMTokenizer.__name__
        if is_ours and auto_map | classes != auto_map:
            completed[name] = fields | {"auto_map": auto_map | classes}
    return completed


def is_outdated(version: str | None) -> bool:
    """Return True if `version` is older than the installed package."""
    return version is not None and Version(version) < Version(VERSION)


def is_newer(version: str | None) -> bool:
    """Return True if `version` is newer than the installed package."""
    return version is not None and Version(version) > Version(VERSION)


def check_code_version(folder: Path):
    """Raise a `ConversionError` if the folder holds code of a newer version than the installed one."""
    version = read_code_version(str(folder))
    if is_newer(version):
        raise ConversionError(
            f"{folder} holds the code of xlm-swcm {version}, but xlm-swcm {VERSION} is installed. Install xlm-swcm "
            f"{version} or newer first."
        )


def replace_code(folder: str | PathLike, config: XLMSWCMConfig) -> list[str]:
    """
    Replace the code in the folder of a saved model with the code of this package.

    Args:
        folder (`str` or `PathLike`):
            Folder of the model.
        config ([`XLMSWCMConfig`]):
            Config of the model.

    Returns:
        `list[str]`: names of the files that changed.

    Raises:
        ConversionError: if the folder holds the code of a newer version of xlm-swcm.
    """
    folder = Path(folder)
    check_code_version(folder)
    new = {name: path.read_bytes() for name, path in package_code(config).items()}
    old = {name: path.read_bytes() for name, path in find_code(folder, [Path(name).stem for name in new]).items()}
    for name, fields in complete_auto_maps(str(folder), config).items():
        new[name] = (json.dumps(fields, indent=2, ensure_ascii=False) + "\n").encode()
    changed = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    if blocked := [name for name in new if (folder / name).is_dir()]:
        raise ConversionError(
            f"{folder / blocked[0]} is a folder, but a code file needs this name. Remove the folder."
        )
    # The version goes last. Until then the folder counts as outdated, and the command can be repeated.
    written = sorted(new.keys() & changed, key=lambda name: (name == VERSION_FILE, name))
    try:
        for name in written:
            (folder / f".{name}.partial").write_bytes(new[name])
        for name in written:
            # A link is replaced, not its target, which other checkpoints may share.
            (folder / f".{name}.partial").replace(folder / name)
    except OSError as error:
        # If the disk is full, the system names no file.
        error.filename = error.filename or str(folder)
        raise
    finally:
        for name in written:
            (folder / f".{name}.partial").unlink(missing_ok=True)
    # Remove old modules last, because the old files still import them.
    for name in old.keys() - new.keys():
        (folder / name).unlink()
    return changed
