"""Serve an exported model over HTTP, without PyTorch.

Requirements: Python 3.11 or later, pip install openvino tokenizers numpy fastapi uvicorn prometheus-client

    uvicorn --factory xlm_swcm_server:create_app --timeout-graceful-shutdown 5 --host 127.0.0.1 --port 8000
"""

import asyncio
import contextlib
import functools
import json
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastapi
import prometheus_client
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect
from starlette.types import Receive


# The export puts the runtime beside this file.
if __package__ == "modeling_xlm_swcm.export":
    from .xlm_swcm_runtime import Answer, ExportedModel
else:
    from xlm_swcm_runtime import Answer, ExportedModel  # type: ignore[no-redef]


# Nginx has the same status for a client that closes its connection before the answer.
CLIENT_LEFT = 499

# After an early answer, the server reads the rest of a body for at most this time.
LINGER_SECONDS = 10


@dataclass(frozen=True, kw_only=True)
class Limits:
    """
    Limits of a server.

    Args:
        body_bytes (`int`, *optional*, defaults to 100000): Maximum size of the body of a request in bytes.
        waiting_texts (`int`, *optional*, defaults to 1024): Maximum number of texts that wait for the model.
        batch_texts (`int`, *optional*, defaults to 64): Maximum number of texts in a batch of several requests.
        beams (`int`, *optional*, defaults to 8): Maximum number of beams, and of translations of a text.
        seconds (`float`, *optional*, defaults to 60):
            Maximum time between the headers of a request and its answer, in seconds.
    """

    body_bytes: int = 100_000
    waiting_texts: int = 1024
    batch_texts: int = 64
    beams: int = 8
    seconds: float = 60


class TranslationRequest(BaseModel):
    """Texts to translate, and options of the exported model."""

    # A number in quotation marks or a truth value is not a number.
    model_config = ConfigDict(extra="forbid", strict=True)

    texts: list[str] = Field(min_length=1, description="The source texts.")
    src_lang: str | None = Field(None, description="Language of the sources.")
    tgt_lang: str | None = Field(None, description="Language to generate.")
    split: bool | None = Field(
        None, description="Whether to split the texts into sentences. Default: true if the languages differ."
    )
    num_beams: int | None = Field(None, ge=1, description="Number of beams. 1 means greedy decoding.")
    num_return_sequences: int | None = Field(None, ge=1, description="Number of translations of a text, best first.")
    max_new_tokens: int | None = Field(None, ge=1, description="Maximum number of tokens of a sentence.")
    length_penalty: float | None = Field(None, description="Exponent of the length. Large values favour long texts.")
    return_scores: bool = Field(False, description="Whether to return the mean log probability of each translation.")


class TranslationResponse(BaseModel):
    """
    The translations, their warnings and, on request, their scores, in the order of the texts.

    With several translations of a text, an item of `translations` and `scores` is a list.
    """

    translations: list[str] | list[list[str]]
    warnings: list[list[str]] = Field(
        description="The warnings about each text, for example that its translation is incomplete."
    )
    scores: list[float | None] | list[list[float | None]] | None = None


class OverloadError(Exception):
    """Too many texts wait for the model."""


@dataclass(kw_only=True, eq=False)
class Job:
    """The texts of a request that waits for the model."""

    texts: list[str]
    options: dict
    answer: asyncio.Future


class Batcher:
    """
    Collect requests with the same options, and translate their texts in one batch.

    The model runs one batch at a time. Requests that wait while it runs form the next batch.
    """

    def __init__(self, model: ExportedModel, limits: Limits, registry: prometheus_client.CollectorRegistry):
        self.model, self.limits = model, limits
        self.waiting: deque[Job] = deque()
        self.arrived = asyncio.Event()
        # The end of the event loop does not wait for this thread, but the end of the process does. OpenVINO crashes in
        # a daemon thread at the end of a process.
        self.thread = ThreadPoolExecutor(1)
        sizes = [2**power for power in range(11)]
        self.sizes = prometheus_client.Histogram(
            "xlm_swcm_batch_texts", "Texts in a batch.", registry=registry, buckets=sizes
        )
        gauge = prometheus_client.Gauge("xlm_swcm_waiting_texts", "Texts that wait.", registry=registry)
        gauge.set_function(self.count_waiting)

    def count_waiting(self) -> int:
        """Return the number of texts that wait."""
        return sum(len(job.texts) for job in self.waiting)

    async def translate(self, texts: list[str], options: dict) -> list[Answer]:
        """Return an answer for each text. Raise an [`OverloadError`] if too many texts wait already."""
        if self.count_waiting() + len(texts) > self.limits.waiting_texts:
            raise OverloadError
        answer = asyncio.get_running_loop().create_future()
        job = Job(texts=texts, options=options, answer=answer)
        self.waiting.append(job)
        self.arrived.set()
        try:
            return await answer
        finally:
            # A request without time or client does not wait any longer.
            with contextlib.suppress(ValueError):
                self.waiting.remove(job)

    async def run(self):
        """Translate batches until this task is cancelled."""
        while True:
            await self.arrived.wait()
            self.arrived.clear()
            while self.waiting:
                batch = self._take_batch()
                self.sizes.observe(sum(len(job.texts) for job in batch))
                await self._answer(batch)

    def _take_batch(self) -> list[Job]:
        """Remove the oldest job and other jobs with the same options from the queue, and return them."""
        first = self.waiting.popleft()
        batch, size = [first], len(first.texts)
        for job in list(self.waiting):
            if job.options == first.options and size + len(job.texts) <= self.limits.batch_texts:
                self.waiting.remove(job)
                batch.append(job)
                size += len(job.texts)
        return batch

    async def _answer(self, batch: list[Job]):
        """Translate the texts of a batch and give each job the answers for its texts."""
        texts = [text for job in batch for text in job.texts]

        def is_wanted() -> bool:
            return not all(job.answer.done() for job in batch)

        try:
            generate = functools.partial(self.model.generate_texts, texts, is_wanted=is_wanted, **batch[0].options)
            answers = iter(await asyncio.get_running_loop().run_in_executor(self.thread, generate))
        except Exception as error:
            if len(batch) == 1:
                resolve(batch[0], error)
                return
            # A wrong text must not harm the other requests.
            for job in batch:
                if not job.answer.done():
                    await self._answer([job])
            return
        for job in batch:
            resolve(job, [next(answers) for _ in job.texts])


def resolve(job: Job, answer: list[Answer] | Exception):
    """Answer a request, unless its time is over or its client has left."""
    if job.answer.done():
        return
    if isinstance(answer, Exception):
        job.answer.set_exception(answer)
    else:
        job.answer.set_result(answer)


async def await_with_client(work: Coroutine, receive: Receive) -> Any:
    """Return the result of `work`. If the client closes its connection first, cancel `work`."""

    async def wait_for_end():
        while (await receive())["type"] != "http.disconnect":
            pass

    result, end = tasks = [asyncio.ensure_future(work), asyncio.ensure_future(wait_for_end())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            raise fastapi.HTTPException(CLIENT_LEFT, "The client closed the connection.")
        return result.result()
    finally:
        result.cancel()
        end.cancel()


async def answer_request(body: TranslationRequest, batcher: Batcher, receive: Receive):
    """Return the translations of a request, or raise the error with its status code."""
    limits = batcher.limits
    for name, count in (("num_beams", body.num_beams), ("num_return_sequences", body.num_return_sequences)):
        if count is not None and count > limits.beams:
            raise fastapi.HTTPException(400, f"{name} must be at most {limits.beams} (got {count}). Use fewer.")
    if len(body.texts) > limits.waiting_texts:
        raise fastapi.HTTPException(
            413, f"A request has at most {limits.waiting_texts} texts (got {len(body.texts)}). Send fewer texts."
        )
    options = body.model_dump(exclude={"texts"}, exclude_none=True)
    try:
        answers = await await_with_client(batcher.translate(body.texts, options), receive)
    except OverloadError as error:
        raise fastapi.HTTPException(
            503, "Too many texts wait for the model. Try again later.", headers={"Retry-After": "1"}
        ) from error
    except (TypeError, ValueError) as error:
        # A language can be a lone surrogate, which an answer cannot hold.
        raise fastapi.HTTPException(400, str(error).encode(errors="replace").decode()) from error
    except RuntimeError as error:
        raise fastapi.HTTPException(500, str(error)) from error
    warnings = [batcher.model.list_warnings([answer]) for answer in answers]
    outputs = [answer.outputs for answer in answers]
    translations = [[output.text for output in candidates] for candidates in outputs]
    response = TranslationResponse(translations=choose(translations), warnings=warnings)
    if body.return_scores:
        response.scores = choose([[output.score for output in candidates] for candidates in outputs])
    return response


def choose(rows: list[list]) -> list:
    """Return the candidates of each text, or only its candidate if there is one."""
    return [row[0] for row in rows] if all(len(row) == 1 for row in rows) else rows


class JsonRequest(fastapi.Request):
    """A request with clear errors for a body that is not valid."""

    async def body(self) -> bytes:
        """Return the body, or raise status 499 if the client closes its connection."""
        try:
            return await super().body()
        except ClientDisconnect as error:
            raise fastapi.HTTPException(CLIENT_LEFT, "The client closed the connection.") from error

    async def json(self) -> Any:
        """Return the fields of the body."""
        try:
            fields = json.loads(await self.body(), object_pairs_hook=make_fields)
            if isinstance(fields, dict):
                return fields
            names = {list: "an array", str: "a string", int: "a number", float: "a number"}
            reason = f"found {names.get(type(fields)) or json.dumps(fields)}"
        except json.JSONDecodeError as error:
            reason = f"{error.msg}: line {error.lineno}, column {error.colno}"
        except UnicodeDecodeError as error:
            reason = f"byte {error.start + 1} is not valid {error.encoding.upper()}"
        except RecursionError:
            reason = "too many nested brackets"
        except ValueError:
            reason = "a number has too many digits"
        raise fastapi.HTTPException(422, f"Cannot read the body as a JSON object ({reason}). Correct the body.")


def make_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the fields of a JSON object. Refuse a field that occurs twice, because only one value would count."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        name = Counter(name for name, _ in pairs).most_common(1)[0][0].encode(errors="replace").decode()
        raise fastapi.HTTPException(422, f'The body has the field "{name}" twice. Remove one of them.')
    return fields


class JsonRoute(APIRoute):
    """A route that reads bodies with [`JsonRequest`]."""

    def get_route_handler(self) -> Callable[[fastapi.Request], Coroutine[Any, Any, fastapi.Response]]:
        """Return the function that answers a request."""
        handle = super().get_route_handler()

        async def handle_json(request: fastapi.Request) -> fastapi.Response:
            return await handle(JsonRequest(request.scope, request.receive))

        return handle_json


class RequestLimits:
    """Middleware that limits the size of bodies and the time of requests, and counts responses."""

    def __init__(self, app, limits: Limits, registry: prometheus_client.CollectorRegistry):
        self.app, self.limits = app, limits
        buckets = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
        self.seconds = prometheus_client.Histogram(
            "xlm_swcm_request_seconds",
            "Time of a request by status code.",
            ["status"],
            registry=registry,
            buckets=buckets,
        )

    async def __call__(self, scope, receive, send):
        """Pass a request to the application, and apply the limits."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, size, status = time.perf_counter(), 0, 0
        headers = dict(scope["headers"])
        is_sending = b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"

        async def receive_limited():
            nonlocal size, is_sending
            message = await receive()
            size += len(message.get("body", b""))
            is_sending = message.get("more_body", False)
            if size > self.limits.body_bytes:
                raise fastapi.HTTPException(
                    413, f"The body has more than {self.limits.body_bytes} bytes. Send fewer or shorter texts."
                )
            return message

        async def send_counted(message):
            nonlocal status
            status = message.get("status", status)
            if message["type"] == "http.response.start" and is_sending:
                # The rest of the body can be endless.
                message = message | {"headers": [*message["headers"], (b"connection", b"close")]}
            elif is_sending and not message.get("more_body"):
                await send(message | {"more_body": True})
                await drop_body(receive)
                message = {"type": "http.response.body"}
            await send(message)

        async def refuse(code: int, message: str):
            if not status:
                await fastapi.responses.JSONResponse({"detail": message}, code)(scope, receive, send_counted)

        try:
            async with asyncio.timeout(self.limits.seconds):
                await self.app(scope, receive_limited, send_counted)
        except TimeoutError:
            await refuse(504, describe_timeout(self.limits.seconds, is_sending))
        except asyncio.CancelledError:
            # Uvicorn cancels requests at the end of its grace time.
            await refuse(503, "The server stops. Send the request again later.")
        finally:
            if scope["path"] == "/translate":
                # Starlette answers an error that nothing catches.
                self.seconds.labels(status or 500).observe(time.perf_counter() - start)


async def drop_body(receive: Receive):
    """Read the rest of a body. A client whose connection closes while it sends does not see the answer."""
    # The answer is already sent, so a stop of the server is no error here.
    with contextlib.suppress(TimeoutError, asyncio.CancelledError):
        async with asyncio.timeout(LINGER_SECONDS):
            while (await receive()).get("more_body"):
                pass


def describe_timeout(seconds: float, is_sending: bool) -> str:
    """Return the error message for a request that reaches its time limit."""
    if is_sending:
        return f"The body did not arrive within {seconds:g} seconds. Send the whole body."
    return f"The request took more than {seconds:g} seconds. Send fewer or shorter texts, or try again later."


def create_app(folder: str | Path = Path(__file__).parent, limits: Limits | None = None, threads: int = 0):
    """
    Make the ASGI application that serves an exported model. It has the routes `/translate`, `/health` and `/metrics`.

    Args:
        folder (`str` or `Path`, *optional*):
            The folder that `xlm-swcm export` wrote. By default, the folder of this file.
        limits ([`Limits`], *optional*): Limits of the server. By default, the defaults of [`Limits`].
        threads (`int`, *optional*, defaults to 0): Number of CPU threads of the model. 0 means one thread per core.

    Returns:
        `fastapi.FastAPI`: the application.

    Raises:
        ValueError: if `folder` does not hold an exported model.
    """
    limits = limits or Limits()
    model = ExportedModel(folder, threads)
    registry = prometheus_client.CollectorRegistry()
    batcher = Batcher(model, limits, registry)

    @contextlib.asynccontextmanager
    async def run_batcher(app: fastapi.FastAPI) -> AsyncIterator[None]:
        app.state.worker = asyncio.create_task(batcher.run())
        yield
        app.state.worker.cancel()

    app = fastapi.FastAPI(
        title="xlm-swcm",
        description="Translate texts with an exported model.",
        version=model.config.get("xlm_swcm_version", "unknown"),
        lifespan=run_batcher,
    )
    app.router.route_class = JsonRoute
    app.add_middleware(RequestLimits, limits=limits, registry=registry)

    @app.exception_handler(fastapi.exceptions.RequestValidationError)
    async def refuse(request: fastapi.Request, error: fastapi.exceptions.RequestValidationError):
        if not isinstance(error.body, dict):
            problem = "The body must be JSON. Send it" if error.body else "The body is empty. Send a JSON object"
            message = f"{problem} with the header Content-Type: application/json."
            return fastapi.responses.JSONResponse({"detail": message}, 422)
        # The input is left out. It can be bytes, which JSON cannot hold.
        detail = [{name: problem[name] for name in ("type", "loc", "msg")} for problem in error.errors()]
        return fastapi.responses.JSONResponse({"detail": detail}, 422)

    @app.post("/translate", response_model_exclude_unset=True)
    async def translate(body: TranslationRequest, request: fastapi.Request) -> TranslationResponse:
        """Translate texts."""
        return await answer_request(body, batcher, request.receive)

    @app.get("/health")
    async def health() -> dict:
        """Return the languages of the model. Status 503 means that the server cannot translate."""
        if app.state.worker.done():
            raise fastapi.HTTPException(503, "The server cannot translate any more. Restart the server.")
        return {"status": "ok", "languages": list(model.config["languages"])}

    @app.get("/metrics", response_class=fastapi.responses.PlainTextResponse)
    async def metrics() -> fastapi.Response:
        """Return the metrics in the format of Prometheus."""
        return fastapi.Response(
            prometheus_client.generate_latest(registry), media_type=prometheus_client.CONTENT_TYPE_LATEST
        )

    return app
