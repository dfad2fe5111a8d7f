"""Save, load and push the files that accompany the weights: conversion report, tokenizer and model card."""

import json
import re
import shutil
import tempfile
from collections.abc import Callable
from os import PathLike
from pathlib import Path, PureWindowsPath

from huggingface_hub import file_exists
from transformers.utils import CONFIG_NAME, cached_file, logging


# The name puts the logger under Transformers' verbosity settings.
logger = logging.get_logger(f"transformers.{__name__}")

REPORT = "conversion_report.json"
REPORT_FIELDS = {"source": str, "options": dict, "counts": dict}
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenization_xlm_swcm.py",
    "compat_xlm_swcm.py",
    "punctuation_xlm_swcm.py",
)
# This text stands in the cards that Transformers and its Trainer write.
TRANSFORMERS_CARD = r"model card has been (automatically generated\.|generated automatically according to)"
# A local path with at least one folder inside a text. URLs and fractions do not match.
LOCAL_PATH = re.compile(
    r"""(?<![\w/\\<.~+-])(?:file://|~|[A-Za-z]:)?[/\\](?:[^\s/\\"'`,;()|]+[/\\])+([^\s/\\"'`,;()|]*)"""
)
# Texts of vocabularies, in which a path is a token.
VOCABULARY_FILES = ("tokenizer.json", "vocab.json")


class XLMSWCMHubMixin:
    """
    Add the conversion report, tokenizer and model card to `from_pretrained`, `save_pretrained` and `push_to_hub`.

    Attributes:
        conversion_report (`dict`, *optional*):
            Source, options and tensor counts of the conversion. Saved and pushed with the model.
        fill_card (`Callable`, *optional*):
            Function of folder, repository id and report that returns a model card. The package `modeling_xlm_swcm`
            sets it. Without the package, a push writes Transformers' own card.
    """

    conversion_report: dict | None = None
    fill_card: Callable[[Path, str, dict], str] | None = None
    # Repository id and loading options, or the absolute path of a folder.
    _loaded_from: tuple[str, dict] | Path | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike | None, *model_args, **kwargs):
        """Load a model as in Transformers, and read its conversion report."""
        # The token stays out, because a pickled model would contain it.
        options = {name: kwargs[name] for name in ("revision", "cache_dir", "subfolder") if kwargs.get(name)}
        access = {name: kwargs[name] for name in ("token", "local_files_only") if kwargs.get(name)}
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if pretrained_model_name_or_path is not None:
            source = model.config.name_or_path
            folder = Path(source, kwargs.get("subfolder") or "").resolve()
            model._loaded_from = folder if Path(source).is_dir() else (source, options)
        if (path := model._find_beside_weights(REPORT, **access)) is not None:
            model.conversion_report = read_report(path)
        return loaded

    def _find_beside_weights(self, name: str, **access) -> str | Path | None:
        """Return the path of a file in the folder or repository that the model was loaded from, or None."""
        if self._loaded_from is None:
            return None
        if isinstance(self._loaded_from, Path):
            path = self._loaded_from / name
            # A link can lead to a private file.
            return path if path.is_file() and is_inside(path, self._loaded_from) else None
        source, options = self._loaded_from
        return cached_file(
            source,
            name,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            **options,
            **access,
        )

    def save_pretrained(self, save_directory: str | PathLike, is_main_process: bool = True, *args, **kwargs):
        """Save a model as in Transformers, with its conversion report."""
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        if self.should_save_on_this_rank(is_main_process):
            self._save_report(Path(save_directory))

    def _save_report(self, folder: Path):
        if self.conversion_report is not None:
            text = json.dumps(self.conversion_report, indent=2, ensure_ascii=False) + "\n"
            (folder / REPORT).write_text(text, encoding="utf-8")

    def _upload_modified_files(
        self, working_dir: str | PathLike, repo_id: str, files_timestamps: dict[str, float], *args, **kwargs
    ):
        # `push_to_hub` and `save_pretrained(push_to_hub=True)` both call this method.
        folder = Path(working_dir)
        self._save_report(folder)
        place = {name: kwargs.get(name) for name in ("revision", "token")}
        if not (folder / TOKENIZER_FILES[0]).exists() and not file_exists(repo_id, TOKENIZER_FILES[0], **place):
            for name in TOKENIZER_FILES:
                if (path := self._find_beside_weights(name, token=place["token"])) is not None:
                    shutil.copyfile(path, folder / name)
        card = folder / "README.md"
        # A folder without a config holds an adapter, which keeps Transformers' card.
        can_fill = (
            self.conversion_report is not None and self.fill_card is not None and (folder / CONFIG_NAME).is_file()
        )
        if can_fill and re.search(TRANSFORMERS_CARD, card.read_text(encoding="utf-8")):
            card.write_text(self.fill_card(folder, repo_id, self.conversion_report), encoding="utf-8")
        # Files that are not newer than their time stamp were there before the model was saved.
        files = {
            path.name: path
            for path in folder.iterdir()
            if path.is_file() and path.stat().st_mtime > files_timestamps.get(path.name, 0)
        }
        with tempfile.TemporaryDirectory() as staged:
            stage_files(files, folder, Path(staged))
            return super()._upload_modified_files(staged, repo_id, {}, *args, **kwargs)


def is_inside(path: Path, folder: Path) -> bool:
    """Return True if `path` is in `folder`, all links followed, or in the part of the Hub's cache for `folder`."""
    target, folder = path.resolve(), folder.resolve()
    # The cache keeps the files of all snapshots of a repository in one folder, and links to them.
    blobs = [folder.parents[1] / "blobs"] if folder.parent.name == "snapshots" else []
    return any(target.is_relative_to(place) for place in (folder, *blobs))


def stage_files(files: dict[str, Path], folder: Path, staged: Path):
    """
    Prepare files of a folder for an upload: local paths in JSON and Markdown are shortened.

    Args:
        files (`dict[str, Path]`):
            Files by their name in the repository.
        folder (`Path`):
            Folder that holds the files.
        staged (`Path`):
            Empty folder. It gets the changed files and links to the other files.

    Raises:
        ValueError: if a file is a link out of the folder.
    """
    for name, path in files.items():
        if not is_inside(path, folder):
            raise ValueError(f"{path} is a link out of its folder. Replace the link with the file.")
        public = make_public(path)
        (staged / name).parent.mkdir(parents=True, exist_ok=True)
        if public is None:
            (staged / name).symlink_to(path.resolve())
        else:
            (staged / name).write_bytes(public)


def make_public(path: Path) -> bytes | None:
    """Return a JSON or Markdown file with each local path shortened to its last part, or None if there is none."""
    if path.suffix not in (".json", ".md") or path.name in VOCABULARY_FILES:
        return None
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else text
    except ValueError:
        # The file is not text, so no path is found in it.
        return None
    public = without_paths(content)
    if public == content:
        return None
    return (public if isinstance(public, str) else json.dumps(public, indent=2, ensure_ascii=False) + "\n").encode()


def read_report(path: str | PathLike) -> dict | None:
    """Return a conversion report without local paths, or warn and return None if the file is damaged."""
    try:
        return without_paths(parse_report(path))
    except ValueError as error:
        logger.warning(
            f"{path} is not a conversion report: {error}. The model is loaded without a report. Copy the report again "
            "from the folder that xlm-swcm convert wrote."
        )
        return None


def parse_report(path: str | PathLike) -> dict:
    """
    Read a conversion report and check its fields.

    Args:
        path (`str` or `os.PathLike`):
            JSON file.

    Returns:
        `dict`: the report.

    Raises:
        ValueError: if the file is not JSON, or lacks a field of a conversion report.
    """
    report = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(report, dict):
        raise ValueError("the file is not a JSON object")
    for name, kind in REPORT_FIELDS.items():
        if not isinstance(report.get(name), kind):
            raise ValueError(f"the field {name} is missing or has the wrong type")
    if missing := {"copied", "new", "dropped"} - report["counts"].keys():
        raise ValueError(f"the counts lack {sorted(missing)[0]}")
    return report


def without_paths(content):
    """Return a text, or a JSON value, with each local path shortened to its last part, so that paths stay private."""
    if isinstance(content, dict):
        return {without_paths(name): without_paths(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_paths(value) for value in content]
    if not isinstance(content, str):
        return content
    path = Path(content)
    if "\n" not in content and len(path.parts) > 2 and (path.is_absolute() or path.parts[0] in ("~", "..")):
        return path.name
    if len(PureWindowsPath(content).parts) > 1 and PureWindowsPath(content).drive:
        return PureWindowsPath(content).name
    return LOCAL_PATH.sub(r"\1", content)
