"""Write complete folders and files: a failed run leaves no partial output."""

import contextlib
import glob
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from .errors import ConversionError


def _remove_abandoned(output: Path, prefix: str):
    """Remove the temporary folders of killed runs that wrote to the same output on this machine."""
    for folder in output.parent.glob(f"{glob.escape(prefix)}*"):
        process = folder.name.removeprefix(prefix).removesuffix("-replaced")
        # Process ids repeat in a restarted container, so a folder with this process's id is from an old run.
        ended = process == str(os.getpid()) or (Path("/proc").exists() and not Path(f"/proc/{process}").exists())
        if process.isdigit() and ended and folder.name.endswith("-replaced") and not output.exists():
            # The run was killed between two renames, so this folder is the old output.
            folder.rename(output)
        elif process.isdigit() and ended:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def whole_folder(output: Path, size: int, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary folder for about `size` bytes. It replaces `output` at the end, or is removed on failure."""
    # A link stays, and its target is replaced.
    output = output.resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(output.parent).free) < size:
        raise ConversionError(
            f"{output} needs {size / 1e9:.2f} GB, but its disk has only {free / 1e9:.2f} GB free. Free some space, or "
            "choose another folder."
        )
    prefix = f".{output.name}.partial-{socket.gethostname()}-"
    _remove_abandoned(output, prefix)
    check_output(output, overwrite)
    partial = output.parent / f"{prefix}{os.getpid()}"
    partial.mkdir()
    try:
        yield partial
        # Another process can create the output during this run.
        check_output(output, overwrite)
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
    """
    Yield a temporary file. It replaces `path` at the end, or is removed on failure.

    A link stays, and its target is replaced. A path that is not a regular file, such as `/dev/stdout`, is written to
    directly.
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
    """
    Check that writing `output` loses no files.

    Args:
        output (`Path`):
            Folder to write.
        overwrite (`bool`):
            Allow replacing a folder that holds a model.
        sources (`str` or `PathLike`):
            Files and folders that are read, which must not be in `output`.

    Raises:
        ConversionError: if `output` cannot be written, is not empty, or holds one of `sources`.
    """
    if output.is_file():
        raise ConversionError(f"{output} is a file. Choose a folder.")
    if file := next((parent for parent in output.parents if parent.is_file()), None):
        raise ConversionError(f"Cannot write {output}: {file} is a file. Choose another folder.")
    if output.is_dir() and Path.cwd().is_relative_to(output.resolve()):
        relation = "is" if output.resolve() == Path.cwd() else "contains"
        raise ConversionError(
            f"Cannot overwrite {output}: it {relation} the current directory. Choose another folder."
        )
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        raise ConversionError(
            f"The folder {output} is not empty. Choose another folder, or pass --overwrite to replace it."
        )
    if output.is_dir() and any(output.iterdir()) and not (output / "config.json").is_file():
        raise ConversionError(f"{output} holds no model, and --overwrite replaces only models. Choose another folder.")
    for source in map(Path, sources):
        if source.exists() and source.resolve().is_relative_to(output.resolve()):
            raise ConversionError(
                f"Cannot overwrite {output}: it holds {source}, which would be lost. Choose another folder."
            )
