"""Save, load and push the files that accompany the weights: conversion report, tokenizer and model card."""

import json
import re
import shutil
from collections.abc import Callable
from os import PathLike
from pathlib import Path

from huggingface_hub import file_exists
from transformers.utils import CONFIG_NAME, cached_file, logging


# The name puts the logger under Transformers' verbosity settings.
logger = logging.get_logger(f"transformers.{__name__}")

REPORT = "conversion_report.json"
REPORT_FIELDS = {"source": str, "options": dict, "counts": dict}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenization_xlm_swcm.py", "compat_xlm_swcm.py")
# This text stands in the cards that Transformers and its Trainer write.
TRANSFORMERS_CARD = r"model card has been (automatically generated\.|generated automatically according to)"


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
            return path if path.is_file() else None
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
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        if self.should_save_on_this_rank(is_main_process):
            self._save_report(Path(save_directory))

    def _save_report(self, folder: Path):
        if self.conversion_report is not None:
            text = json.dumps(self.conversion_report, indent=2, ensure_ascii=False) + "\n"
            (folder / REPORT).write_text(text, encoding="utf-8")

    def _upload_modified_files(self, working_dir: str | PathLike, repo_id: str, *args, **kwargs):
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
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)


def read_report(path: str | PathLike) -> dict | None:
    """Return a conversion report without local paths, or warn and return None if the file is damaged."""
    try:
        return without_paths(parse_report(path))
    except ValueError as error:
        logger.warning(f"{path} is not a conversion report: {error}. The model is loaded without a report.")
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


def without_paths(report: dict) -> dict:
    """Return the report with each absolute path shortened to its last part, so that local paths stay private."""
    shortened = {}
    for name, value in report.items():
        if isinstance(value, dict):
            value = without_paths(value)
        elif isinstance(value, str) and Path(value).is_absolute():
            value = Path(value).name
        shortened[name] = value
    return shortened
