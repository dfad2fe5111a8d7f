"""Read checkpoint files in small blocks, without running pickled code."""

import contextlib
import ctypes
import functools
import json
import math
import os
import pickle
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, get_session
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled
from safetensors import safe_open
from transformers.utils.hub import cached_file

from .errors import ConversionError, first_line


# Upper limit for the bytes of a tensor that are in memory at a time.
BLOCK_BYTES = 16 * 2**20

# In order of preference.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def find_file(source: str, name: str, revision: str | None = None) -> Path | None:
    """Return the local path of a file in a folder or Hub repository, or `None` if it does not exist there."""
    if Path(source).is_dir():
        if revision is not None:
            raise ConversionError(
                f"{source} is a folder, so it has no revision. Leave out --revision, or pass a Hub id."
            )
        path = Path(source) / name
        return path if path.is_file() else None
    if Path(source).exists():
        raise ConversionError(f"{source} is a file. Pass the folder that holds config.json and the weights.")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) or source.startswith("."):
        raise ConversionError(f"The folder {source} does not exist. Pass a folder or a Hub id.")
    try:
        # Without this error, a Hub that cannot be reached looks like a repository without a config.
        found = cached_file(
            source,
            name,
            revision=revision,
            local_files_only=not is_hub_reachable(constants.ENDPOINT),
            _raise_exceptions_for_missing_entries=name == "config.json",
        )
    except OSError as error:
        raise ConversionError(
            f"There is no folder {source}, and the Hub did not return {name}: {first_line(error)}"
        ) from error
    return Path(found) if found is not None else None


@functools.cache
def is_hub_reachable(endpoint: str) -> bool:
    """Return True if the Hub answers. The result is cached, because the Hub client retries for half a minute."""
    try:
        get_session().head(endpoint, timeout=10)
    except (HTTPError, OfflineModeIsEnabled):
        return False
    return True


def read_config(source: str, revision: str | None = None) -> dict:
    """Read `config.json` of a folder or Hub repository."""
    path = find_file(source, "config.json", revision)
    if path is None:
        raise ConversionError(
            f"{source} has no config.json, so it is not a Transformers checkpoint. Pass another folder or Hub id."
        )
    return read_json(path)


def read_json(path: Path) -> dict:
    """Read a JSON object from a file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConversionError(f"{path} is not valid JSON. Correct the file, or download it again.") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{path} is not a JSON object. Correct the file, or download it again.")
    return content


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file. Every read opens and closes the file, so that its pages leave memory."""

    path: Path
    name: str

    @property
    def shape(self) -> torch.Size:
        with safe_open(self.path, "pt") as file:
            return torch.Size(file.get_slice(self.name).get_shape())

    @property
    def dtype(self) -> torch.dtype:
        return self[0:1].dtype

    def __getitem__(self, rows: slice) -> torch.Tensor:
        with safe_open(self.path, "pt") as file:
            return file.get_slice(self.name)[rows]


def read_weights(source: str, revision: str | None = None) -> dict[str, torch.Tensor | StoredTensor]:
    """Return the tensors of a folder or Hub repository from safetensors or `.bin` files, whole or in shards."""
    files = (find_file(source, name, revision) for name in WEIGHT_FILES)
    path = next((file for file in files if file is not None), None)
    if path is None:
        raise ConversionError(f"{source} has no weights. It needs one of these files: {', '.join(WEIGHT_FILES)}.")
    if not path.name.endswith(".index.json"):
        return _read_file(path)
    try:
        shards = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConversionError(f"{path} has no valid weight_map. Download it again.") from error
    weights: dict[str, torch.Tensor | StoredTensor] = {}
    for shard in shards:
        shard_path = find_file(source, shard, revision)
        if shard_path is None:
            raise ConversionError(f"{path} lists {shard}, which {source} does not hold. Download it again.")
        weights |= _read_file(shard_path)
    return weights


def _read_file(path: Path) -> dict[str, torch.Tensor | StoredTensor]:
    return check_weights(path, load_file(path))


def load_file(path: Path) -> object:
    """Return the content of a weight file. Pickled code is never run."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {name: StoredTensor(path, name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        # A file from before torch 1.6 is not a zip archive, so it cannot be mapped into memory.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    # A damaged pickle can raise any error.
    except Exception as error:
        # PyTorch's message for an unsafe pickle suggests to run its code.
        details = "" if isinstance(error, pickle.UnpicklingError) else f" ({first_line(error)})"
        raise ConversionError(
            f"Cannot read weights from {path}. The file is cut short or damaged, or it holds pickled code, which "
            f"xlm-swcm never runs. Download it again, or convert it to safetensors.{details}"
        ) from error


def load_pretrained(auto_class: type[Any], source: str | os.PathLike, **options):
    """
    Call `auto_class.from_pretrained(source, **options)`.

    Raises:
        ConversionError: if a file of `source` is damaged.
    """
    try:
        return auto_class.from_pretrained(source, **options)
    # A damaged file can raise any error of its parser.
    except Exception as error:
        raise ConversionError(
            f"Cannot load {source}: {first_line(error).rstrip('.')}. Convert or download it again."
        ) from error


def check_weights(path: Path, weights: object) -> dict[str, torch.Tensor | StoredTensor]:
    """Return the content of a weight file if it is a dict of tensors, or raise a `ConversionError`."""
    if not isinstance(weights, dict) or not all(
        isinstance(tensor, torch.Tensor | StoredTensor) for tensor in weights.values()
    ):
        raise ConversionError(f"{path} is not a dict of tensors. Use a file that save_pretrained wrote.")
    return weights


def blocks(tensor: torch.Tensor | StoredTensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield a tensor in blocks of consecutive rows, each with the slice of its rows."""
    rows, *columns = tensor.shape
    step = max(1, BLOCK_BYTES // (4 * math.prod(columns)))
    for start in range(0, rows, step):
        place = slice(start, min(start + step, rows))
        yield place, tensor[place]


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """View a tensor as bytes, so that a comparison finds NaN equal to itself and 0.0 different from -0.0."""
    return tensor.contiguous().view(torch.uint8)


def equal(first: torch.Tensor | StoredTensor, second: torch.Tensor | StoredTensor) -> bool:
    """Return True if two tensors have the same shape, dtype and bytes."""
    if (first.shape, first.dtype) != (second.shape, second.dtype):
        return False
    return all(torch.equal(as_bytes(block), as_bytes(second[rows])) for rows, block in blocks(first))


def return_freed_memory():
    """Return freed memory to the system. glibc keeps half a gigabyte after a tokenizer of 250,000 tokens."""
    # Other C libraries have no malloc_trim.
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
