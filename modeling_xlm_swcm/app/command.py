"""The command `xlm-swcm try`: load a model, and show a page to try it."""

import os
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from modeling_xlm_swcm.checkpoints.errors import ConversionError
from modeling_xlm_swcm.checkpoints.inspection import EXPORTED_TYPE, read_model_config, read_optional, read_tasks
from modeling_xlm_swcm.checkpoints.loading import load_model, load_tokenizer
from modeling_xlm_swcm.command import check_packages, make_console, report_errors
from modeling_xlm_swcm.pipeline_xlm_swcm import XLMSWCMPipeline
from modeling_xlm_swcm.serving.command import Debug, Host, Port, listen, run_app


# The browser loads nothing from other hosts, even if a version of Gradio links to them.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"

Model = Annotated[str, typer.Argument(help="XLM-SWCM model or exported model: folder, or Hub id of a model.")]


def try_command(model: Model, host: Host = "127.0.0.1", port: Port = 7860, debug: Debug = False):
    """Show a page in the browser to try a model."""
    with tempfile.TemporaryDirectory() as folder:
        with report_errors(debug):
            check_packages("The page", ["gradio"], "app")
            listener = listen(host, port)
            # Uploaded and written files are removed at the end.
            os.environ["GRADIO_TEMP_DIR"] = folder
            app = make_app(model)
            address, port = listener.getsockname()[:2]
            make_console(stderr=True).print(f"Open http://{address}:{port} in a browser. Stop with Ctrl-C.")
        run_app(app, listener, grace_seconds=1)


def make_app(source: str):
    """Return the ASGI application of the page for a model."""
    import fastapi
    import gradio

    from .xlm_swcm_page import LAUNCH, make_page

    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    page = make_page(load_page_model(source), Path(source).resolve().name if Path(source).exists() else source)
    app.add_middleware(ContentPolicy)
    return gradio.mount_gradio_app(app, page, "/", **LAUNCH)


class ContentPolicy:
    """Middleware that adds `POLICY` to every response."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        """Pass a request to the application."""

        async def send_with_policy(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, send_with_policy)


def load_page_model(source: str):
    """
    Load a model for the page.

    Args:
        source (`str`): Folder or Hub id of an XLM-SWCM model, or folder of an exported model.

    Returns:
        `PageModel`: the model.

    Raises:
        ConversionError: if the model cannot be loaded.
    """
    if Path(source).is_dir():
        fields = read_optional(source, "config.json", None) or {}
        if fields.get("model_type") == EXPORTED_TYPE:
            return load_exported(Path(source))
    from .xlm_swcm_models import EAGER, TransformersModel

    config = read_model_config(source)
    tokenizer = load_tokenizer(source, config.vocab_size)
    pipe = XLMSWCMPipeline(model=load_model(source, **EAGER), tokenizer=tokenizer)
    return TransformersModel(pipe, read_tasks(source))


def load_exported(folder: Path):
    """Load an exported model for the page."""
    if find_spec("openvino") is None:
        raise ConversionError(
            f"{folder} is an exported model, which needs openvino. Install xlm-swcm with the extra export, for "
            "example with pip install '.[app,export]' in a clone."
        )
    from .exported import RuntimeModel

    try:
        return RuntimeModel(folder)
    except ValueError as error:
        raise ConversionError(str(error)) from error
