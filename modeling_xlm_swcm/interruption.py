"""End a command at Ctrl-C with one sentence and exit code 130, also while native code runs."""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator


EXIT_CODE = 130

# A command waits at most this long for native code to return to Python.
PATIENCE_SECONDS = 1.5


def end_process(message: str):
    """Print a message and end the process without running any other code."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    os.write(sys.stderr.fileno(), f"{message}\n".encode())
    os._exit(EXIT_CODE)


def end_while_starting(number=None, frame=None):
    """End the process at Ctrl-C during the imports of a command."""
    end_process("error: Interrupted. Nothing was written.")


def ignore(number=None, frame=None):
    """Ignore Ctrl-C in a process that has done its work."""


def raise_once(number, frame):
    """Raise `KeyboardInterrupt`. Ignore more signals, so that nothing interrupts the cleanup."""
    signal.signal(signal.SIGINT, ignore)
    raise KeyboardInterrupt


def hide_broken_connection(kind, error, traceback):
    """Print an error that nothing catches, except for a connection that the other process has closed."""
    if not issubclass(kind, (EOFError, ConnectionError)):
        sys.__excepthook__(kind, error, traceback)


def leave_to_parent():
    """Ignore Ctrl-C in a forked process, for example a dataloader worker. The command ends such a process."""
    if signal.getsignal(signal.SIGINT) is raise_once:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # At Ctrl-C, the command can close a connection while a worker sends a batch.
        sys.excepthook = hide_broken_connection


def watch_start(command: str):
    """
    End the process at Ctrl-C while a command imports its modules.

    A script asks for the same with `__interruptible__ = True` before its imports. Other programs are not changed.
    """
    is_command = os.path.basename(sys.argv[0] if sys.argv else "") == command
    is_script = getattr(sys.modules.get("__main__"), "__interruptible__", False)
    if (is_command or is_script) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_while_starting)


@contextlib.contextmanager
def interruptible(message: str, clean_up: Callable[[], None]) -> Iterator[None]:
    """
    Raise `KeyboardInterrupt` at Ctrl-C. If native code delays the exception, clean up and end the process.

    Args:
        message (`str`): The message to print if the process is ended.
        clean_up (`Callable`): Function that removes unfinished files.
    """
    previous = signal.getsignal(signal.SIGINT)
    if previous is signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
        yield
        return
    ended = threading.Event()
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def watch():
        # Python writes the numbers of signals to this socket at once, also while native code runs.
        while number := reader.recv(1):
            if number[0] == signal.SIGINT and not ended.wait(PATIENCE_SECONDS):
                clean_up()
                end_process(f"\n{message}")

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    previous_socket = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, raise_once)
    try:
        yield
    except KeyboardInterrupt:
        # A second Ctrl-C would kill the process while Python shuts down.
        if previous in (end_while_starting, ignore):
            end_process(message)
        raise
    finally:
        ended.set()
        signal.set_wakeup_fd(previous_socket)
        signal.signal(signal.SIGINT, ignore if previous is end_while_starting else previous)
        # A forked process can have a copy of the socket, so closing it here does not end the watcher.
        writer.shutdown(socket.SHUT_WR)
        watcher.join()
        writer.close()
        reader.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=leave_to_parent)
# The command "xlm-swcm" imports this module first.
watch_start("xlm-swcm")
