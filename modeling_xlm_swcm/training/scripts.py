"""The end of a training script: errors on one line, and Ctrl-C."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from modeling_xlm_swcm.checkpoints.errors import describe_error
from modeling_xlm_swcm.checkpoints.writing import remove_unfinished
from modeling_xlm_swcm.interruption import EXIT_CODE, interruptible

from .checkpoints import TrainingError


RESUME = "Pass --resume_from_checkpoint last to continue from the last checkpoint, if there is one."
NO_MEMORY = "There is not enough memory. Use smaller batches, fewer beams or shorter texts."


def is_out_of_memory(error: BaseException) -> bool:
    # PyTorch has no class of its own for this error on a CPU.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@contextmanager
def report_errors(when_interrupted: str = RESUME) -> Iterator[None]:
    """
    Print an error on one line and exit with code 1, or with code 130 after Ctrl-C.

    Args:
        when_interrupted (`str`, *optional*):
            Sentence that says what Ctrl-C left behind or how to continue.
    """
    message = f"error: Interrupted. {when_interrupted}"
    try:
        with interruptible(message, remove_unfinished):
            yield
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            sys.exit(f"error: {NO_MEMORY}")
        if isinstance(error, RuntimeError) and not isinstance(error, TrainingError):
            raise
        sys.exit(f"error: {describe_error(error)}")
    except KeyboardInterrupt:
        print(f"\n{message}", file=sys.stderr)
        sys.exit(EXIT_CODE)
