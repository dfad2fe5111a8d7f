"""What goes with a model beside its weights: its conversion report and, where it pushes itself, tokenizer and card."""

import json
import re
import shutil
from collections.abc import Callable
from os import PathLike
from pathlib import Path

from huggingface_hub import file_exists
from transformers.utils import CONFIG_NAME, cached_file, logging


# one of Transformers' loggers, so that its verbosity holds
logger = logging.get_logger(f"transformers.{__name__}")

REPORT = "conversion_report.json"
REPORT_FIELDS = {"source": str, "options": dict, "counts": dict}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenization_xlm_swcm.py", "compat_xlm_swcm.py")
# of the cards that Transformers writes: a model's or tokenizer's, and the Trainer's
TRANSFORMERS_CARD = r"model card has been (automatically generated\.|generated automatically according to)"


class XLMSWCMHubMixin:
    """
    Attributes:
        conversion_report (`dict` or `None`): what the model was made from; it is saved and pushed with the model.
        fill_card: (folder, repository id, report) -> a model card. The package sets it; without the package a push
            has Transformers' own card.
    """

    conversion_report: dict | None = None
    fill_card: Callable[[Path, str, dict], str] | None = None
    # repository, and what it was loaded with; or folder, wherever the process may stand by then
    _loaded_from: tuple[str, dict] | Path | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike | None, *model_args, **kwargs):
        # never the token, which would be saved with a model that is pickled
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
        """A file of the folder or repository that the model was loaded from, if there is one."""
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
        # both `push_to_hub` and `save_pretrained(push_to_hub=True)` come here
        folder = Path(working_dir)
        self._save_report(folder)
        place = {name: kwargs.get(name) for name in ("revision", "token")}
        if not (folder / TOKENIZER_FILES[0]).exists() and not file_exists(repo_id, TOKENIZER_FILES[0], **place):
            for name in TOKENIZER_FILES:
                if (path := self._find_beside_weights(name, token=place["token"])) is not None:
                    shutil.copyfile(path, folder / name)
        card = folder / "README.md"
        # adapters are saved without a config, and keep Transformers' card
        can_fill = (
            self.conversion_report is not None and self.fill_card is not None and (folder / CONFIG_NAME).is_file()
        )
        if can_fill and re.search(TRANSFORMERS_CARD, card.read_text(encoding="utf-8")):
            card.write_text(self.fill_card(folder, repo_id, self.conversion_report), encoding="utf-8")
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)


def read_report(path: str | PathLike) -> dict | None:
    """A conversion report as everybody may see it, or None and a warning if the file is damaged."""
    try:
        return without_paths(parse_report(path))
    except ValueError as error:
        logger.warning(f"{path} is no conversion report ({error}); the model goes on without one.")
        return None


def parse_report(path: str | PathLike) -> dict:
    """
    Raises:
        ValueError: it is no JSON, or no conversion report.
    """
    report = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(report, dict):
        raise ValueError("it is no JSON object")
    for name, kind in REPORT_FIELDS.items():
        if not isinstance(report.get(name), kind):
            raise ValueError(f"it lacks {name}")
    if missing := {"copied", "new", "dropped"} - report["counts"].keys():
        raise ValueError(f"its counts lack {sorted(missing)[0]}")
    return report


def without_paths(report: dict) -> dict:
    """The report with the names alone of files and folders: where they lie on this machine is nobody's business."""
    shortened = {}
    for name, value in report.items():
        if isinstance(value, dict):
            value = without_paths(value)
        elif isinstance(value, str) and Path(value).is_absolute():
            value = Path(value).name
        shortened[name] = value
    return shortened
