"""The command `xlm-swcm serve`: parse options, load an exported model, run the server."""

import asyncio
import logging
import os
import socket
from pathlib import Path
from typing import Annotated

import typer

from modeling_xlm_swcm.checkpoints.errors import ConversionError
from modeling_xlm_swcm.command import check_packages, make_console, report_errors


REQUIREMENTS = ("openvino", "fastapi", "uvicorn", "prometheus_client")

# A server that stops gives its requests this time.
GRACE_SECONDS = 5

Folder = Annotated[Path, typer.Argument(help="Folder that `xlm-swcm export` wrote.")]
Host = Annotated[
    str,
    typer.Option(help="Address to listen on. `0.0.0.0` means all networks. The server has no passwords and no HTTPS."),
]
Port = Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="Port to listen on. 0 means a free port.")]
Threads = Annotated[
    int, typer.Option(metavar="N", min=0, max=1024, help="Number of CPU threads. 0 means one thread per core.")
]
MaxBody = Annotated[
    int, typer.Option(metavar="N", min=1, max=10**9, help="Maximum size of the body of a request in bytes.")
]
MaxWaiting = Annotated[
    int, typer.Option(metavar="N", min=1, max=10**6, help="Maximum number of texts that wait for the model.")
]
MaxBatch = Annotated[
    int, typer.Option(metavar="N", min=1, max=4096, help="Maximum number of texts in a batch of several requests.")
]
MaxBeams = Annotated[
    int, typer.Option(metavar="N", min=1, max=1000, help="Maximum number of beams, and of translations of a text.")
]
MaxSeconds = Annotated[
    float,
    typer.Option(
        metavar="N",
        min=0.1,
        max=86400,
        help="Maximum time between the headers of a request and its answer, in seconds. The model stops soon after.",
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def serve_command(
    folder: Folder,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    threads: Threads = 0,
    max_body_bytes: MaxBody = 100_000,
    max_waiting_texts: MaxWaiting = 1024,
    max_batch_texts: MaxBatch = 64,
    max_beams: MaxBeams = 8,
    max_seconds: MaxSeconds = 60,
    debug: Debug = False,
):
    """Serve an exported model over HTTP."""
    with report_errors(debug):
        if not folder.is_dir():
            problem = f"{folder} is not a folder" if folder.exists() else f"The folder {folder} does not exist"
            raise ConversionError(f"{problem}. Pass the folder that xlm-swcm export wrote.")
        check_packages("The server", REQUIREMENTS, "serve")
        from modeling_xlm_swcm.export.xlm_swcm_server import Limits, create_app

        listener = listen(host, port)
        limits = Limits(
            body_bytes=max_body_bytes,
            waiting_texts=max_waiting_texts,
            batch_texts=max_batch_texts,
            beams=max_beams,
            seconds=max_seconds,
        )
        try:
            app = create_app(folder, limits, threads)
        except ValueError as error:
            raise ConversionError(str(error)) from error
        address, port = listener.getsockname()[:2]
        make_console(stderr=True).print(
            f"Serving {folder} on http://{address}:{port}. See /docs for the fields of a request. Stop with Ctrl-C."
        )
    run_app(app, listener, GRACE_SECONDS)
    # Python would wait for the thread of the model, which can be at work for minutes.
    os._exit(0)


def run_app(app, listener: socket.socket, grace_seconds: int):
    """Answer requests until Ctrl-C. Requests at work then have `grace_seconds` to end."""
    import uvicorn

    logging.getLogger("uvicorn.error").addFilter(is_no_cancelled_task)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=grace_seconds)
    uvicorn.Server(config).run([listener])


def is_no_cancelled_task(record: logging.LogRecord) -> bool:
    """Return False for the traceback of a task that uvicorn cancels itself when it stops."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, asyncio.CancelledError) and "CancelledError" not in record.getMessage()


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        # Python adds the address to the reason.
        reason = str(error.strerror).partition(" (")[0]
        raise ConversionError(
            f"Cannot listen on {host}:{port} ({reason}). Choose another --host or --port."
        ) from error
