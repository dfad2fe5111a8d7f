"""Write folders and files whole or not at all."""

import contextlib
import glob
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from .errors import ConversionError


def _remove_abandoned(output: Path, prefix: str):
    """Remove what a run for the same output left behind when it was killed on this machine."""
    for folder in output.parent.glob(f"{glob.escape(prefix)}*"):
        process = folder.name.removeprefix(prefix).removesuffix("-replaced")
        # in a container that is started again, process ids repeat: what bears our own is not ours
        ended = process == str(os.getpid()) or (Path("/proc").exists() and not Path(f"/proc/{process}").exists())
        if process.isdigit() and ended and folder.name.endswith("-replaced") and not output.exists():
            folder.rename(output)  # killed between two renames: this is the output as it was
        elif process.isdigit() and ended:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def whole_folder(output: Path, size: int, overwrite: bool) -> Iterator[Path]:
    """A folder beside `output` for about `size` bytes, which becomes `output` at the end, or vanishes on failure."""
    output = output.resolve()  # of a link it is the target that is replaced
    output.parent.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(output.parent).free) < size:
        raise ConversionError(f"{output} needs {size / 1e9:.2f} GB, and its disk has {free / 1e9:.2f} GB free.")
    prefix = f".{output.name}.partial-{socket.gethostname()}-"
    _remove_abandoned(output, prefix)
    check_output(output, overwrite)
    partial = output.parent / f"{prefix}{os.getpid()}"
    partial.mkdir()
    try:
        yield partial
        check_output(output, overwrite)  # it may have appeared in the meantime
        if output.exists():
            replaced = output.parent / f"{partial.name}-replaced"
            output.rename(replaced)
            try:
                partial.rename(output)
            except BaseException:
                replaced.rename(output)
                raise
            shutil.rmtree(replaced)
        else:
            partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file beside `path` to write, which becomes it at the end, or vanishes on failure.

    A link stays one; what is no file, such as `/dev/stdout`, is written to directly.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        yield path
        return
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def check_output(output: Path, overwrite: bool, *sources: str | os.PathLike):
    """Refuse an output that would lose something, such as what it is made from."""
    if output.is_file():
        raise ConversionError(f"{output} is a file; give a folder to write.")
    if file := next((parent for parent in output.parents if parent.is_file()), None):
        raise ConversionError(f"{output} lies in {file}, which is a file; give another folder.")
    if output.is_dir() and Path.cwd().is_relative_to(output.resolve()):
        raise ConversionError(f"{output} is replaced as a whole, and you are in it; give a new folder.")
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        raise ConversionError(f"The folder {output} is not empty; give another one, or --overwrite to replace it.")
    if output.is_dir() and any(output.iterdir()) and not (output / "config.json").is_file():
        raise ConversionError(f"{output} holds no model, and --overwrite replaces only models; give another folder.")
    for source in map(Path, sources):
        if source.exists() and source.resolve().is_relative_to(output.resolve()):
            raise ConversionError(f"{output} holds {source}, which would be lost; give another folder.")
