"""Read checkpoint files in small blocks, without running pickled code."""

import contextlib
import ctypes
import functools
import json
import math
import os
import re
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, get_session, get_token
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled
from safetensors import safe_open
from transformers.utils.hub import cached_file

from modeling_xlm_swcm.hub_xlm_swcm import is_inside

from .errors import ConversionError, describe_cause, first_line


# Upper limit for the bytes of a tensor that are in memory at a time.
BLOCK_BYTES = 16 * 2**20

# Upper limit for files that are read whole. The tokenizer.json of a million tokens has 60 MB.
MAX_TEXT_BYTES = 200 * 10**6

# Upper limits for sizes in a config.json, so that no list or tensor of such a size is made before a check.
MAX_LAYERS, MAX_SIZE = 10_000, 10**8

# Files that Transformers can read from a folder have these suffixes. Only weights may be large.
WEIGHT_SUFFIXES = (".safetensors", ".bin")
READ_SUFFIXES = (".json", ".model", ".txt", ".jinja", ".md", *WEIGHT_SUFFIXES)

# Fields of tokenizer_config.json that some versions of Transformers open as a file.
TOKENIZER_FILE_FIELDS = (
    *("tokenizer_file", "vocab_file", "merges_file", "spm_file", "gguf_file", "vocab", "merges"),
    "fast_tokenizer_files",
)

# Plain floating-point dtypes: name in safetensors -> dtype of PyTorch.
FLOAT_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

# Integer tensors that Transformers 4 saved with an encoder.
INTEGER_BUFFERS = (".position_ids", ".token_type_ids")

# In order of preference.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def find_file(source: str, name: str, revision: str | None = None, follow_links: bool = False) -> Path | None:
    """
    Find a file in a folder or Hub repository.

    Args:
        source (`str`):
            Folder or Hub id.
        name (`str`):
            Name of the file, without folders.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub.
        follow_links (`bool`, *optional*, defaults to `False`):
            Accept a link that leads out of the folder.

    Returns:
        `Path` or `None`: local path of the file, or `None` if it does not exist.

    Raises:
        ConversionError: if `source` cannot be read, or the file is a link out of the folder, not a regular file, or
            too large.
    """
    if Path(source).is_dir():
        if revision is not None:
            raise ConversionError(
                f"`revision` needs a Hub id, but {source} is a folder. Leave out `revision`, or pass a Hub id."
            )
        path = Path(source) / name
        if not os.path.lexists(path):
            return None
        check_file(path, Path(source), follow_links)
        return path
    if Path(source).exists():
        raise ConversionError(f"{source} is a file. Pass the folder with config.json and the weights.")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) or source.startswith("."):
        raise ConversionError(f"The folder {source} does not exist. Pass a folder or a Hub id.")
    check_token_characters()
    is_reachable = is_hub_reachable(constants.ENDPOINT)
    try:
        # Without this error, a Hub that cannot be reached looks like a repository without a config.
        found = cached_file(
            source,
            name,
            revision=revision,
            local_files_only=not is_reachable,
            _raise_exceptions_for_missing_entries=name == "config.json",
        )
    except OSError as error:
        cause = first_line(error).rstrip(".")
        advice = "Check the path or the Hub id." if is_reachable else "Check the path, or the connection to the Hub."
        raise ConversionError(
            f"There is no folder {source}, and the Hub did not return {name}: {cause}. {advice}"
        ) from error
    return Path(found) if found is not None else None


def check_file(path: Path, folder: Path, follow_links: bool = False):
    """Refuse a file that is a link out of its folder, that is not a regular file, or that is too large to be read."""
    try:
        target = path.resolve()
        if not follow_links and not is_inside(path, folder):
            raise ConversionError(
                f"{path} is a link to {target}, which is outside its folder. Replace the link with the file."
            )
        status = target.stat()
    except (OSError, RuntimeError) as error:
        # Path.resolve raises a RuntimeError for a link to itself.
        reason = getattr(error, "strerror", None) or "it is a link to itself"
        raise ConversionError(f"Cannot read {path}: {reason}. Replace the file.") from error
    if not stat.S_ISREG(status.st_mode):
        raise ConversionError(f"{path} is not a regular file. Replace it with a file.")
    if path.suffix not in WEIGHT_SUFFIXES and status.st_size > MAX_TEXT_BYTES:
        raise ConversionError(
            f"{path} is too large ({status.st_size / 1e6:,.0f} MB). The maximum is {MAX_TEXT_BYTES / 1e6:.0f} MB. "
            "Download the file again."
        )


def check_folder(source: str | os.PathLike):
    """Check all files that Transformers can read from a local folder. A Hub id is accepted without a check."""
    folder = Path(source)
    if folder.is_dir():
        for path in sorted((*folder.iterdir(), *folder.glob("additional_chat_templates/*"))):
            if path.suffix in READ_SUFFIXES:
                check_file(path, folder)


def check_token_characters():
    """Refuse a token for the Hub that no HTTP header can hold, because the HTTP client prints such a token."""
    if not re.fullmatch(r"[!-~]*", get_token() or ""):
        raise ConversionError(
            "The token for the Hub contains an invalid character. Log in again with `hf auth login`, or set HF_TOKEN."
        )


def is_file_name(name: object) -> bool:
    """Return True if `name` is the name of a file, without folders."""
    return isinstance(name, str) and name not in ("", ".", "..") and name.isprintable() and not set(name) & set("/\\")


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
        if (adapter := find_file(source, "adapter_config.json", revision)) is not None:
            raise ConversionError(
                f"{source} contains adapters of PEFT, not a whole model. {describe_base(adapter)}Load the base model, "
                "merge the adapters with merge_and_unload, and save the result."
            )
        raise ConversionError(
            f"{source} has no config.json, so it is not a Transformers checkpoint. Pass the folder of a model."
        )
    config = read_json(path)
    if not isinstance(config.get("model_type"), str | None):
        raise ConversionError(f"model_type in {path} is not a string. Correct model_type.")
    for name, value in config.items():
        limit = MAX_LAYERS if name.endswith(("_layers", "_interval")) else MAX_SIZE
        is_size = name.endswith(("_layers", "_interval", "_size", "_embeddings")) and isinstance(value, int | float)
        if is_size and not value <= limit:
            raise ConversionError(f"{name} in {path} must be at most {limit:,} (got {value}). Correct {name}.")
    return config


def describe_base(path: Path) -> str:
    """Return a sentence about the base model that `adapter_config.json` names, or nothing if it names none."""
    base = read_json(path).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        return ""
    missing = ", which does not exist on this machine" if Path(base).is_absolute() and not Path(base).exists() else ""
    return f"Their base model is {base}{missing}. "


def read_json(path: Path) -> dict:
    """Read a JSON object from a file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=make_dict)
        # Half of a surrogate pair is valid JSON, but it cannot be printed or saved.
        json.dumps(content, ensure_ascii=False).encode()
    except RepeatedKeyError as error:
        raise ConversionError(f"{path} has the field {error} twice. Remove one of them.") from error
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{path} is not valid JSON. Correct the file, or download it again.") from error
    except OSError as error:
        raise ConversionError(f"Cannot read {path}: {error.strerror}. Replace the file.") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{path} is not a JSON object. Correct the file, or download it again.")
    return content


class RepeatedKeyError(ValueError):
    """Raised for a JSON object with two fields of the same name. The message is the name."""


def make_dict(pairs: list[tuple[str, Any]]) -> dict:
    """Return a JSON object as a dict, or raise a `RepeatedKeyError`."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise RepeatedKeyError(next(json.dumps(name) for name in names if names.count(name) > 1))
    return fields


def read_tokenizer_config(source: str, revision: str | None = None) -> dict:
    """Read `tokenizer_config.json`, and refuse names of files that are not in its folder."""
    path = find_file(source, "tokenizer_config.json", revision)
    config = {} if path is None else read_json(path)
    for field in TOKENIZER_FILE_FIELDS:
        for name in config[field] if isinstance(config.get(field), list) else [config.get(field)]:
            if isinstance(name, str) and not is_file_name(name) or (field == "gguf_file" and name):
                raise ConversionError(f'{field} in {path} names "{name}", which is not in the folder. Remove {field}.')
    if not isinstance(config.get("chat_template"), str | None):
        raise ConversionError(f"chat_template in {path} is not a string. Correct or remove chat_template.")
    return config


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file. Every read opens and closes the file, so that its pages leave memory."""

    path: Path
    name: str
    shape: torch.Size
    kind: str  # dtype in the header of the file, for example F32

    @property
    def dtype(self) -> torch.dtype:
        """PyTorch dtype of the tensor."""
        return FLOAT_DTYPES.get(self.kind) or self[0:1].dtype

    def __getitem__(self, rows: slice) -> torch.Tensor:
        with safe_open(self.path, "pt") as file:
            return file.get_slice(self.name)[rows]


def read_weights(source: str, revision: str | None = None) -> dict[str, torch.Tensor | StoredTensor]:
    """
    Open the weights of a folder or Hub repository: safetensors or `.bin` files, whole or in shards.

    Args:
        source (`str`):
            Folder or Hub id.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub.

    Returns:
        `dict[str, torch.Tensor | StoredTensor]`: tensors by name.

    Raises:
        ConversionError: if a file is missing or damaged, if an index names a file outside the folder, or if the
            weights do not fit in memory.
    """
    weights = open_weights(source, find_weights(source, revision), revision)
    check_memory(source, sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in weights.values()))
    return weights


def open_weights(
    source: str, path: Path, revision: str | None = None, read: Callable[[Path], dict] | None = None
) -> dict[str, Any]:
    """Open a weight file with `read`, or the shards of an index, and check that each shard holds its tensors."""
    read = read or _read_file
    if not path.name.endswith(".index.json"):
        return read(path)
    weight_map = read_weight_map(path)
    shards: dict[str, set[str]] = {}
    for name, shard in weight_map.items():
        shards.setdefault(shard, set()).add(name)
    weights: dict[str, Any] = {}
    for shard, names in sorted(shards.items()):
        shard_path = find_file(source, shard, revision)
        if shard_path is None:
            raise ConversionError(
                f"{path} lists {shard}, but {source} does not contain this file. Download {shard} again."
            )
        content = read(shard_path)
        if missing := sorted(names - content.keys()):
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ConversionError(
                f"{shard} lacks {missing[0]}{more}, which {path} lists there. Download both files again."
            )
        if repeated := sorted(content.keys() & weights.keys()):
            raise ConversionError(
                f"Two shards of {path} hold {repeated[0]}. Save the model again with save_pretrained."
            )
        weights |= content
    return weights


def find_weights(source: str, revision: str | None = None) -> Path:
    """Return the path of the weights, or of their index, that Transformers loads."""
    files = (find_file(source, name, revision) for name in WEIGHT_FILES)
    path = next((file for file in files if file is not None), None)
    if path is None:
        raise ConversionError(f"{source} has no weights. Add one of these files: {', '.join(WEIGHT_FILES)}.")
    return path


def check_safetensors(source: str, revision: str | None = None):
    """Check the safetensors files of a folder, and the names in a weight index, without opening weights."""
    whole, index = WEIGHT_FILES[:2]
    if Path(source).is_dir() and (path := find_file(source, whole) or find_file(source, index)):
        open_weights(source, path, read=read_header)
    elif path := find_file(source, index, revision):
        read_weight_map(path)


def read_header(path: Path) -> dict[str, dict]:
    """Return the header of a safetensors file, and check that the file is as long as the header says."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(min(length, MAX_TEXT_BYTES))
    try:
        tensors = {name: tensor for name, tensor in json.loads(text).items() if name != "__metadata__"}
        end = 8 + length + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise ConversionError(f"The header of {path} is damaged. Download or save the file again.") from error
    if end != path.stat().st_size:
        raise ConversionError(
            f"{path} is cut short or damaged: its header describes {end} bytes. Download or save it again."
        )
    return tensors


def read_weight_map(path: Path) -> dict[str, str]:
    """Return the shard of each tensor from a weight index. All shards are in the folder of the index."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ConversionError(f"{path} has no valid weight_map. Download it again.")
    suffix = Path(path.name.removesuffix(".index.json")).suffix
    for name, shard in weight_map.items():
        if not is_file_name(shard) or not shard.endswith(suffix):
            raise ConversionError(
                f"weight_map in {path} places {name} in {json.dumps(shard, ensure_ascii=False)}, which is not a "
                f"{suffix} file in the same folder. Download it again."
            )
    return weight_map


def check_memory(source: str | os.PathLike, size: int):
    """Refuse weights of `size` bytes if this machine has less memory."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > memory:
        raise ConversionError(
            f"The weights of {source} need {size / 1e9:,.1f} GB of memory, but this machine has {memory / 1e9:,.1f} "
            "GB. Use a larger machine."
        )


def check_dtypes(source: str | os.PathLike, weights: Mapping[str, torch.Tensor | StoredTensor]):
    """Refuse weights that are not plain floating-point tensors, such as quantised weights without their config."""
    for name, tensor in weights.items():
        kind = tensor.kind if isinstance(tensor, StoredTensor) else str(tensor.dtype).removeprefix("torch.")
        is_stored = isinstance(tensor, StoredTensor) or (tensor.layout == torch.strided and not tensor.is_meta)
        is_plain = is_stored and tensor.dtype in FLOAT_DTYPES.values()
        if not is_plain and not f".{name}".endswith(INTEGER_BUFFERS):
            raise ConversionError(
                f"{name} of {source} has the data type {kind}. Use weights in float32, float16 or bfloat16. If the "
                "weights are quantised, use the checkpoint before quantisation."
            )
        if not tensor.shape:
            raise ConversionError(f"{name} of {source} is a single number. Use a checkpoint of an encoder.")


def _read_file(path: Path) -> dict[str, torch.Tensor | StoredTensor]:
    # A .bin file from before torch 1.6 is read into memory.
    check_memory(path, path.stat().st_size)
    return check_weights(path, load_file(path))


def load_file(path: Path) -> object:
    """Return the content of a weight file. Pickled code is never run."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
                return {
                    name: StoredTensor(path, name, torch.Size(part.get_shape()), part.get_dtype())
                    for name, part in parts.items()
                }
        # A file from before torch 1.6 is not a zip archive, so it cannot be mapped into memory.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    # A damaged pickle can raise any error.
    except Exception as error:
        is_pickle = path.suffix != ".safetensors"
        unsafe = ", or it holds pickled code, which xlm-swcm never runs" if is_pickle else ""
        remedy = "convert it to safetensors" if is_pickle else "save it again"
        raise ConversionError(
            f"Cannot read weights from {path}. The file is cut short or damaged{unsafe}. Download it again, or "
            f"{remedy}.{describe_cause(error, ' ({})')}"
        ) from error


def load_pretrained(auto_class: type[Any], source: str | os.PathLike, **options):
    """
    Call `auto_class.from_pretrained(source, **options)`. Code in `source` is never run.

    Raises:
        ConversionError: if a file of `source` is damaged, or is a link out of the folder.
    """
    check_folder(source)
    try:
        return auto_class.from_pretrained(source, trust_remote_code=False, **options)
    # A damaged file can raise any error of its parser.
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise ConversionError(
                f"{source} needs the code that its auto_map names. xlm-swcm never runs such code. Remove auto_map, or "
                "use another checkpoint."
            ) from error
        if "backend tokenizer" in str(error):
            raise ConversionError(
                f"{source} has no tokenizer files, for example tokenizer.json. Add the files of the tokenizer."
            ) from error
        part = "tokenizer" if "Tokenizer" in auto_class.__name__ else "model"
        raise ConversionError(
            f"Cannot load the {part} of {source}{describe_cause(error, ': {}')}. Convert or download it again."
        ) from error


def check_weights(path: Path, weights: object) -> dict[str, torch.Tensor | StoredTensor]:
    """Return the content of a weight file if it is a dict of tensors, or raise a `ConversionError`."""
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor | StoredTensor) for name, tensor in weights.items()
    ):
        raise ConversionError(f"{path} is not a dict of tensors. Use a file that save_pretrained wrote.")
    return weights


def blocks(tensor: torch.Tensor | StoredTensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield a tensor in blocks of consecutive rows, each with the slice of its rows."""
    rows, *columns = tensor.shape
    step = max(1, BLOCK_BYTES // max(1, 4 * math.prod(columns)))
    for start in range(0, rows, step):
        place = slice(start, min(start + step, rows))
        yield place, tensor[place]


def measure_rows(tensor: torch.Tensor, excluded: Iterable[int] = ()) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation over the rows of a tensor that are not excluded."""
    total = squares = torch.zeros(tensor.shape[1:], dtype=torch.float64)
    is_measured = torch.ones(len(tensor), dtype=torch.bool)
    is_measured[list(excluded)] = False
    # One pass over blocks is several times faster than torch.std_mean.
    for rows, block in blocks(tensor):
        measured = (block if is_measured[rows].all() else block[is_measured[rows]]).float()
        total = total + measured.sum(0)
        squares = squares + measured.square().sum(0)
    mean, square = total / is_measured.sum(), squares / is_measured.sum()
    return mean.float(), (square - mean.square()).clamp(min=0).sqrt().float()


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
