"""The error for input that a user can correct, and helpers for its message."""

import errno
import os
import re
from collections.abc import Sequence

import torch
from huggingface_hub.errors import StrictDataclassError


# Exit code for a wrong command line, as in argparse.
USAGE_EXIT_CODE = 2

# Words of upstream messages that give wrong advice: to run code in a checkpoint, to set an option that xlm-swcm does
# not have, or to read a report that is not shown.
UPSTREAM_ADVICE = re.compile(
    r"weights_only|trust_remote_code|ignore_mismatched_sizes|above report|allow_pickle|from_(tf|flax)\b|pip install|"
    r"use_fast|use_safetensors|add_safe_globals|force_download|local_files_only|Bearer|token=|issues"
)


REMEDIES = {
    errno.ENAMETOOLONG: "Use a shorter path.",
    errno.EACCES: "Check the permissions.",
    errno.EPERM: "Check the permissions.",
    errno.EROFS: "Use a writable folder.",
    errno.ENOSPC: "Free some space.",
    errno.EDQUOT: "Free some space.",
    errno.EMFILE: "Close other programs.",
    errno.EPIPE: "The output was closed.",
}


class ConversionError(ValueError):
    """
    Raised for input that cannot be used. The message names the problem and says what to do.

    The message writes arguments in backticks and as in Python, for example `overwrite=True`.
    """


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an error of Python or PyTorch means that memory is full."""
    # PyTorch has no special class for this error on a CPU.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def name_options(message: str, separator: str) -> str:
    """Replace Python arguments by options of a command: `dry_run=True` becomes --dry-run with the separator "-"."""

    def option(match: re.Match) -> str:
        value = re.sub(r'[\[\]",]', "", match[2] or "")
        return f"--{match[1].replace('_', separator)}" + (f" {value}" if value not in ("", "True") else "")

    return re.sub(r"`([a-z]\w*)(?:=([^`]+))?`", option, message)


def check_choice(name: str, value: object, choices: Sequence[str]):
    """Raise a `ConversionError` if an argument is not one of `choices`."""
    if value not in choices:
        raise ConversionError(f'`{name}` cannot be "{value}". Use {list_choices(choices)}.')


def list_choices(choices: Sequence[str]) -> str:
    """Return the values of an argument for a sentence: "a", "b" or "c"."""
    *others, last = (f'"{choice}"' for choice in choices)
    return f"{', '.join(others)} or {last}" if others else last


def describe_error(error: BaseException, separator: str = "-") -> str:
    """Return the message of an error on one line, for a command with this separator in its options."""
    if isinstance(error, ConversionError):
        return escape_unprintable(name_options(str(error), separator))
    if isinstance(error, MemoryError):
        return "There is not enough memory. Close other programs, or use a machine with more memory."
    if not isinstance(error, Exception):
        # Libraries in Rust raise a BaseException after a crash.
        return f"A library crashed: {first_line(error)}. Check that the files of the model are complete."
    if isinstance(error, OSError) and error.errno:
        place = f": {os.fsdecode(error.filename)}" if isinstance(error.filename, str | bytes) else ""
        remedy = REMEDIES.get(error.errno, "Check the path.")
        return escape_unprintable(f"{os.strerror(error.errno)}{place}. {remedy}")
    return escape_unprintable(first_line(error))


def escape_unprintable(text: str) -> str:
    """Escape line breaks, control characters and bytes that are not UTF-8, for example of a file name."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error message, joined with the second line if the first ends in a colon."""
    first, *others = (str(error).strip() or type(error).__name__).splitlines()
    return hide_password(f"{first} {others[0].strip()}" if first.endswith(":") and others else first)


def hide_password(text: str) -> str:
    """Return a text without user names and passwords in its URLs."""
    return re.sub(r"(?<=://)[^/@\s]*@", "", text)


def describe_cause(error: BaseException, template: str) -> str:
    """Return the first line of a library's message in `template`, or nothing if it gives advice that is wrong here."""
    line = first_line(error).rstrip(".")
    return "" if UPSTREAM_ADVICE.search(line) else template.format(line)


def make_config_error(name: str, error: Exception) -> ConversionError:
    """Return the error for a config that its class rejects, on one line."""
    # The message of a StrictDataclassError names a validator. Its cause has the message of this validator.
    cause = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ is not None else error
    # The errors of each allowed type of a field only repeat the first sentence.
    reason = " ".join(str(cause).split()).partition(" Errors: ")[0]
    advice = "" if type(cause) is ValueError and reason.endswith(".") else " Correct the config."
    return ConversionError(f"The config of {name} is invalid: {reason.rstrip('.')}.{advice}")
