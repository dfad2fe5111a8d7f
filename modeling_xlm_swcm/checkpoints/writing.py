"""Write complete folders and files: a failed run leaves no partial output."""

import contextlib
import ctypes
import errno
import glob
import hashlib
import os
import re
import shutil
import socket
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from .errors import ConversionError


# Constants of renameat2 in Linux.
AT_FDCWD, RENAME_EXCHANGE = -100, 2

# Error numbers of systems and file systems that cannot exchange two folders.
NO_EXCHANGE = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}

FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

# A longer name is replaced by a hash in the names of temporary files, because file systems limit names to 255 bytes.
MAX_LABEL_BYTES = 120

# Temporary folders of this process that hold an unfinished output.
unfinished: set[Path] = set()


def label(path: Path) -> str:
    """Return the name of a path for the names of temporary files in the same folder."""
    name = os.fsencode(path.name)
    return path.name if len(name) <= MAX_LABEL_BYTES else hashlib.sha256(name).hexdigest()[:32]


def partial_prefix(output: Path) -> str:
    """Return the prefix of the names of temporary folders for `output`."""
    return f".{label(output)}.partial-{socket.gethostname()}-"


def recover(output: Path):
    """
    Tidy up after killed runs that wrote to `output` on this machine.

    A killed run leaves a temporary folder. If it was killed between two renames, the folder is the old output, which
    gets its name back.
    """
    output, prefix = output.absolute(), partial_prefix(output.absolute())
    folders: list[Path] = []
    # Without access to the folder, there is nothing to tidy up. A check of the output reports the folder.
    with contextlib.suppress(OSError):
        folders += output.parent.glob(f"{glob.escape(prefix)}*")
    for folder in folders:
        process = folder.name.removeprefix(prefix).removesuffix("-replaced")
        # Process ids repeat in a restarted container, so a folder with this process's id is from an old run.
        ended = process == str(os.getpid()) or (Path("/proc").exists() and not Path(f"/proc/{process}").exists())
        if not process.isdigit() or not ended or folder in unfinished:
            continue
        if folder.name.endswith("-replaced") and not os.path.lexists(output):
            with contextlib.suppress(OSError):
                folder.rename(output)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def exchange(first: Path, second: Path) -> bool:
    """Exchange two folders in one step. Return False if the system or the file system has no such step."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    if renameat2(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE) == 0:
        return True
    if (code := ctypes.get_errno()) in NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(second))


def replace_folder(partial: Path, output: Path):
    """Give a complete folder the name of the output. An incomplete folder never has this name."""
    if not output.exists():
        partial.rename(output)
        return
    # After the exchange, the old output has the temporary name.
    if not exchange(partial, output):
        replaced = partial.with_name(f"{partial.name}-replaced")
        output.rename(replaced)
        try:
            partial.rename(output)
        except BaseException:
            replaced.rename(output)
            raise
        shutil.rmtree(replaced, ignore_errors=True)


@contextlib.contextmanager
def whole_folder(output: Path, size: int, overwrite: bool) -> Iterator[Path]:
    """
    Yield a temporary folder for about `size` bytes. It replaces `output` at the end, or is removed on failure.

    Raises:
        ConversionError: if `output` cannot be written, for example because the disk is full.
    """
    recover(output)
    check_output(output, overwrite)
    # Keep the links in the path of the output.
    output = output.resolve()
    partial = output.parent / f"{partial_prefix(output)}{os.getpid()}"
    new_parents = [folder for folder in output.parents if not folder.exists()]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        check_space(output, size)
        unfinished.add(partial)
        partial.mkdir()
        yield partial
        # Another process can create the output during this run.
        check_output(output, overwrite)
        replace_folder(partial, output)
    except Exception as error:
        raise_write_error(output, error)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        unfinished.discard(partial)
        for folder in new_parents:
            # After a failure, the folder is empty.
            with contextlib.suppress(OSError):
                folder.rmdir()


def remove_unfinished():
    """Remove the temporary folders of this process before it ends."""
    for folder in list(unfinished):
        shutil.rmtree(folder, ignore_errors=True)


def check_space(output: Path, size: int):
    """Refuse an output that its disk has no space for."""
    if (free := shutil.disk_usage(output.parent).free) < size:
        raise ConversionError(
            f"{output} needs {size / 1e9:.2f} GB, but its disk has only {free / 1e9:.2f} GB free. Free some space, or "
            "choose another folder."
        )


def raise_write_error(output: Path, error: Exception):
    """Raise a `ConversionError` if the system refused to write the output."""
    code = getattr(error, "errno", None)
    # A failed copy has two names: source and copy.
    place = getattr(error, "filename2", None) or getattr(error, "filename", None)
    # The libraries in Rust name the number in their message.
    if found := re.search(r"\(os error (\d+)\)", str(error)):
        code = int(found[1])
    if place is None:
        concerns_output = code != errno.ENOENT
    else:
        place = Path(os.fsdecode(place))
        concerns_output = place.is_relative_to(output.parent) or output.is_relative_to(place)
    if code is not None and concerns_output and not isinstance(error, ConversionError):
        remedy = "Free some space, or choose another folder" if code in FULL_DISK else "Choose another folder"
        raise ConversionError(f"Cannot write {output}: {os.strerror(code)}. {remedy}.") from error


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """
    Yield a temporary file. It replaces `path` at the end, or is removed on failure.

    A link stays, and its target is replaced. A path that is not a regular file, such as `/dev/null`, is written to
    directly.
    """
    target = path.resolve()
    is_replaced = target.is_file() or not target.exists()
    partial = target.with_name(f".{label(target)}.partial") if is_replaced else target
    try:
        yield partial
        if is_replaced:
            partial.replace(target)
    except OSError as error:
        # The system names the temporary file. If the disk is full, the system names no file.
        if str(error.filename or partial) == str(partial):
            error.filename = str(path)
        raise
    finally:
        if is_replaced:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_files(folder: Path, names: Iterable[str]) -> Iterator[list[Path]]:
    """
    Yield temporary files. They replace the files with these names in `folder` at the end, or are removed on failure.

    Raises:
        ConversionError: if the folder cannot be written, for example because the disk is full.
    """
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            yield [stack.enter_context(whole_file(folder / name)) for name in names]
    except Exception as error:
        raise_write_error(folder, error)
        raise
    finally:
        if is_new:
            # After a failure, the folder is empty.
            with contextlib.suppress(OSError):
                folder.rmdir()


KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


def check_output(output: Path, overwrite: bool, *sources: str | os.PathLike):
    """
    Check that `output` can be written and that this loses no files.

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
    check_place(output)
    if output.is_dir() and any(output.iterdir()):
        if not (output / "config.json").is_file():
            raise ConversionError(f"{output} is not empty and holds no model. Choose another folder.")
        if not overwrite:
            raise ConversionError(
                f"{output} already holds a model. Choose another folder, or pass `overwrite=True` to replace it."
            )
    for source in map(Path, sources):
        if source.exists() and source.resolve().is_relative_to(output.resolve()):
            raise ConversionError(
                f"Cannot overwrite {output}: the source {source} would be lost. Choose another folder."
            )


def check_place(output: Path):
    """Refuse an output that is not a folder, cannot be replaced by a folder, or is in a folder without access."""
    try:
        kind = stat.S_IFMT(os.lstat(output).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        kind = stat.S_IFDIR
    except OSError as error:
        raise ConversionError(f"Cannot write {output}: {error.strerror}. Choose another folder.") from error
    if kind == stat.S_IFLNK:
        raise ConversionError(f"{output} is a link. Pass the folder that it points to, or choose another folder.")
    if kind != stat.S_IFDIR:
        raise ConversionError(f"{output} is a {KINDS.get(kind, 'file')}. Choose a folder.")
    if output.is_dir():
        check_replaceable(output)
    if output.is_dir() and not os.access(output, os.R_OK | os.W_OK | os.X_OK):
        raise ConversionError(f"The folder {output} is not readable and writable. Choose another folder.")
    folder = next(parent for parent in output.absolute().parents if os.path.lexists(parent))
    if not os.path.isdir(folder):
        raise ConversionError(f"Cannot write {output}: {folder} is not a folder. Choose another folder.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConversionError(f"Cannot write {output}: {folder} is not writable. Choose another folder.")


def check_replaceable(output: Path):
    """Refuse to replace a folder that this process or the system needs at its place."""
    resolved = output.resolve()
    if Path.cwd().is_relative_to(resolved):
        relation = "is" if resolved == Path.cwd() else "contains"
        raise ConversionError(
            f"Cannot overwrite {output}: it {relation} the current directory. Choose another folder."
        )
    if (mount := next((mount for mount in find_mounts() if mount.is_relative_to(resolved)), None)) is not None:
        relation = "is" if resolved == mount else f"contains {mount}, which is"
        raise ConversionError(f"Cannot overwrite {output}: it {relation} a mount point. Choose another folder.")


def find_mounts() -> list[Path]:
    """Return the mount points of the system, or an empty list if the system does not list them."""
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return []
    names = (re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8)]), line.split()[4]) for line in lines)
    return [Path(os.fsdecode(name)) for name in names]
