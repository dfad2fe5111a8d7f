"""End a training script with its error on one line, also at Ctrl-C."""

import multiprocessing
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from modeling_xlm_swcm.checkpoints.errors import describe_error, is_out_of_memory
from modeling_xlm_swcm.checkpoints.writing import remove_unfinished
from modeling_xlm_swcm.interruption import EXIT_CODE, interruptible

from .checkpoints import TrainingError


RESUME = "Pass --resume_from_checkpoint last to continue from the last checkpoint, if there is one."
NO_MEMORY = "There is not enough memory. Use smaller batches, fewer beams or shorter texts."


def end_workers():
    """End the progress bars and the processes that read data. PyTorch would wait for these processes."""
    # PyTorch raises an error if such a process is ended.
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for process in multiprocessing.active_children():
        process.terminate()
    for bar in list(tqdm._instances):
        bar.close()


@contextmanager
def report_errors(when_interrupted: str = RESUME) -> Iterator[None]:
    """
    Print an error on one line and exit with code 1, or with code 130 after Ctrl-C.

    Args:
        when_interrupted (`str`, *optional*):
            Sentence to show after Ctrl-C. It says what was written or how to continue.
    """
    message = f"error: Interrupted. {when_interrupted}"
    try:
        with interruptible(message, remove_unfinished):
            try:
                yield
            except KeyboardInterrupt:
                end_workers()
                raise
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            sys.exit(f"error: {NO_MEMORY}")
        if isinstance(error, RuntimeError) and not isinstance(error, TrainingError):
            raise
        sys.exit(f"error: {describe_error(error, '_')}")
    except KeyboardInterrupt:
        print(message, file=sys.stderr)
        sys.exit(EXIT_CODE)
