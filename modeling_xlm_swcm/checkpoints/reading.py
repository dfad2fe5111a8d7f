"""Reading checkpoints without running or holding them whole, and writing folders whole or not at all."""

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

import torch
from huggingface_hub import constants, get_session
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled
from safetensors import safe_open
from transformers.utils.hub import cached_file

from .errors import ConversionError, first_line


# the block in which tensors are read: what is mapped into memory at a time
BLOCK_BYTES = 16 * 2**20

# in the order in which they are looked for
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def find_file(source: str, name: str, revision: str | None = None) -> Path | None:
    """The local path of a file of a folder or Hub repository (downloaded if need be), or None if it has none."""
    if Path(source).is_dir():
        if revision is not None:
            raise ConversionError(f"{source} is a folder, and --revision is of a repository on the Hub.")
        path = Path(source) / name
        return path if path.is_file() else None
    if Path(source).exists():
        raise ConversionError(f"{source} is a file; give the folder that holds config.json and the weights.")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) or source.startswith("."):
        raise ConversionError(f"The folder {source} does not exist.")
    try:
        # raising is what tells a Hub that cannot be reached from one that has no config; a missing one is None still
        found = cached_file(
            source,
            name,
            revision=revision,
            local_files_only=not hub_answers(constants.ENDPOINT),
            _raise_exceptions_for_missing_entries=name == "config.json",
        )
    except OSError as error:
        raise ConversionError(
            f"There is no folder {source}, and the Hub did not give {name}: {first_line(error)}"
        ) from error
    return Path(found) if found is not None else None


@functools.cache
def hub_answers(endpoint: str) -> bool:
    """Whether the Hub can be reached: asked once, where each request of its client would try for half a minute."""
    try:
        get_session().head(endpoint, timeout=10)
    except (HTTPError, OfflineModeIsEnabled):
        return False
    return True


def read_config(source: str, revision: str | None = None) -> dict:
    """`config.json` of a folder or Hub repository."""
    path = find_file(source, "config.json", revision)
    if path is None:
        raise ConversionError(f"{source} has no config.json, so it is not a Transformers checkpoint.")
    return read_json(path)


def read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConversionError(f"{path} is not valid JSON.") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{path} is not a JSON object with named fields.")
    return content


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file; every read opens the file anew, so that its pages are given back after it."""

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
    """The tensors of a folder or Hub repository: safetensors before `.bin`, one file or shards."""
    found = ((name, find_file(source, name, revision)) for name in WEIGHT_FILES)
    name, path = next(((name, path) for name, path in found if path is not None), (None, None))
    if path is None:
        raise ConversionError(f"{source} has no weights: none of {', '.join(WEIGHT_FILES)} is there.")
    if not name.endswith(".index.json"):
        return _read_file(path)
    try:
        shards = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConversionError(f"{path} is not an index of weights with a weight_map; download it again.") from error
    weights = {}
    for shard in shards:
        shard_path = find_file(source, shard, revision)
        if shard_path is None:
            raise ConversionError(f"{path} lists {shard}, which is not in {source}.")
        weights |= _read_file(shard_path)
    return weights


def _read_file(path: Path) -> dict[str, torch.Tensor | StoredTensor]:
    return check_weights(path, load_file(path))


def load_file(path: Path) -> object:
    """What a file of weights holds, nothing of which is run."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {name: StoredTensor(path, name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        # weights_only: a pickle is data here and never code; a file from before torch 1.6 is no zip and not mappable
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged pickle raises whatever its opcodes come to
        # PyTorch's own words for a pickle advise to run its code
        details = "" if isinstance(error, pickle.UnpicklingError) else f" ({first_line(error)})"
        raise ConversionError(
            f"{path} cannot be read as weights: it is cut short, damaged, or holds pickled code, which is never run. "
            f"Download it again, or convert it to safetensors.{details}"
        ) from error


def load_pretrained(auto_class: type, source: str | os.PathLike, **options):
    """
    `auto_class.from_pretrained(source, **options)`.

    Raises:
        ConversionError: a file of `source` is damaged.
    """
    try:
        return auto_class.from_pretrained(source, **options)
    except Exception as error:  # whatever the parsers of damaged files raise
        raise ConversionError(
            f"{source} cannot be loaded: {first_line(error).rstrip('.')}; convert or download it again."
        ) from error


def check_weights(path: Path, weights: object) -> dict[str, torch.Tensor | StoredTensor]:
    if not isinstance(weights, dict) or not all(
        isinstance(tensor, torch.Tensor | StoredTensor) for tensor in weights.values()
    ):
        raise ConversionError(f"{path} is not a dict of tensors, as save_pretrained writes it.")
    return weights


def blocks(tensor: torch.Tensor | StoredTensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Consecutive rows of a tensor with one dimension or more, each block with its place."""
    rows, *columns = tensor.shape
    step = max(1, BLOCK_BYTES // (4 * math.prod(columns)))
    for start in range(0, rows, step):
        place = slice(start, min(start + step, rows))
        yield place, tensor[place]


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """For comparisons in which NaN is equal to itself, and 0.0 is not -0.0."""
    return tensor.contiguous().view(torch.uint8)


def equal(first: torch.Tensor | StoredTensor, second: torch.Tensor | StoredTensor) -> bool:
    if (first.shape, first.dtype) != (second.shape, second.dtype):
        return False
    return all(torch.equal(as_bytes(block), as_bytes(second[rows])) for rows, block in blocks(first))


def return_freed_memory():
    """Give freed memory back to the system; glibc keeps what a tokenizer of 250,000 pieces leaves, half a gigabyte."""
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
