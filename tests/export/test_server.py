"""The server translates like the runtime, shares batches between requests, and survives bad requests."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import prometheus_client
import pytest
from fastapi.testclient import TestClient
from support.learners import TEXTS
from typer.testing import CliRunner

from modeling_xlm_swcm import __version__
from modeling_xlm_swcm.cli import main
from modeling_xlm_swcm.export.xlm_swcm_runtime import Answer, ExportedModel
from modeling_xlm_swcm.export.xlm_swcm_server import (
    Batcher,
    Limits,
    OverloadError,
    await_with_client,
    create_app,
)
from modeling_xlm_swcm.sentences_xlm_swcm import Output


ROOT = Path(__file__).parents[2]

with_learner = pytest.mark.parametrize(
    "learner", [dict(weight_sharing="init", lm_head_transform=True)], indirect=True, ids=["init"]
)


@pytest.fixture(scope="module")
def client(exported):
    limits = Limits(body_bytes=5000, waiting_texts=20, beams=4)
    with TestClient(create_app(exported, limits, threads=1)) as client:
        yield client


def translate(client: TestClient, texts: list[str], **options):
    body = json.dumps({"texts": texts, "src_lang": "zh", "tgt_lang": "bo"} | options)
    return client.post("/translate", content=body, headers={"content-type": "application/json"})


@with_learner
@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "length_penalty": 0.5}, {"split": False, "tgt_lang": "kk"}])
def test_translations_are_those_of_the_runtime(client, exported, options):
    response = translate(client, TEXTS, **options)
    assert response.status_code == 200
    expected = ExportedModel(exported, threads=1)(TEXTS, **({"src_lang": "zh", "tgt_lang": "bo"} | options))
    assert response.json() == {"translations": expected, "warnings": [[]] * len(TEXTS)}


@with_learner
def test_scores_are_those_of_the_runtime(client, exported):
    expected = ExportedModel(exported, threads=1)([*TEXTS, " "], src_lang="zh", tgt_lang="bo", return_scores=True)
    answer = translate(client, [*TEXTS, " "], return_scores=True).json()
    assert answer["translations"] == [text for text, _ in expected]
    assert answer["scores"][:-1] == pytest.approx([score for _, score in expected[:-1]], rel=1e-5)
    assert answer["scores"][-1] is None


@with_learner
def test_several_translations_are_those_of_the_runtime(client, exported):
    options = {"num_beams": 3, "num_return_sequences": 2}
    expected = ExportedModel(exported, threads=1)(TEXTS, "zh", "bo", return_scores=True, **options)
    answer = translate(client, TEXTS, return_scores=True, **options).json()
    assert answer["translations"] == [[text for text, _ in candidates] for candidates in expected]
    assert answer["scores"] == [pytest.approx([score for _, score in candidates], rel=1e-5) for candidates in expected]
    del answer["scores"]
    assert translate(client, TEXTS, **options).json() == answer


@with_learner
def test_each_text_has_its_warnings(client, exported):
    texts = ["no wind", "- One boat.\n- " + "two herons, one boat, " * 6, "***"]
    answer = translate(client, texts).json()
    assert [len(warnings) for warnings in answer["warnings"]] == [0, 1, 0]
    assert re.match(
        "A sentence has .* It is cut into 4 parts. .* It starts with .two herons", answer["warnings"][1][0]
    )
    short = translate(client, texts, max_new_tokens=2, num_beams=2, num_return_sequences=2).json()
    incomplete = "Number of incomplete outputs: {}. The maximum is 2 tokens. "
    incomplete += "Pass a larger max_new_tokens, or shorter sentences."
    # One sentence, one sentence and four parts, each with two translations.
    assert short["warnings"] == [[incomplete.format(2)], [*answer["warnings"][1], incomplete.format(10)], []]
    runtime = ExportedModel(exported, threads=1)
    with pytest.warns(UserWarning) as warned:
        runtime(texts, "zh", "bo", max_new_tokens=2, num_beams=2, num_return_sequences=2)
    assert [str(warning.message) for warning in warned] == [*answer["warnings"][1], incomplete.format(12)]


@with_learner
@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"tgt_lang": "xx"}, 400, 'Unknown language "xx" for tgt_lang. Use one of: '),
        ({"tgt_lang": None}, 400, "tgt_lang is not set. Use one of: "),
        ({"texts": ["\ud800"]}, 400, "Text 1 is not valid Unicode. Remove its lone surrogates."),
        ({"src_lang": "\ud800"}, 400, r'Unknown language "\?" for src_lang. Use one of: '),
        ({"texts": ["no wind " * 60], "split": False}, 400, "Text 1 has .* tokens, but the model reads at most"),
        ({"num_beams": 5}, 400, r"num_beams must be at most 4 \(got 5\)."),
        ({"num_return_sequences": 5}, 400, r"num_return_sequences must be at most 4 \(got 5\)."),
        ({"num_beams": 2, "num_return_sequences": 3}, 400, "num_return_sequences must be at most num_beams"),
        ({"max_new_tokens": 10**6}, 400, "max_new_tokens must be a whole number from 1 to"),
        ({"texts": ["a"] * 21}, 413, r"A request has at most 20 texts \(got 21\)."),
        ({"texts": ["a" * 5000]}, 413, "The body has more than 5000 bytes. Send fewer or shorter texts."),
        ({"texts": []}, 422, "texts"),
        ({"texts": [1]}, 422, "texts"),
        ({"num_beams": True}, 422, "num_beams"),
        ({"num_beams": "2"}, 422, "num_beams"),
        ({"split": "yes"}, 422, "split"),
        ({"beams": 2}, 422, "beams"),
    ],
)
def test_a_bad_request_is_refused_with_a_sentence(client, body, status, message):
    response = translate(client, **({"texts": ["no wind"]} | body))
    assert response.status_code == status
    assert re.match(message, str(response.json()["detail"])) or (status == 422 and message in response.text)
    assert translate(client, ["no wind"]).status_code == 200


@with_learner
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"rubbish", "Expecting value: line 1, column 1"),
        (b'{"texts":\n["\xff"]}', "byte 13 is not valid UTF-8"),
        (b"\xff\xfe{", "byte 3 is not valid UTF-16-LE"),
        (b"[" * 5000, "too many nested brackets"),
        (b'{"num_beams": ' + b"9" * 4800 + b"}", "a number has too many digits"),
        (b"[]", "found an array"),
        (b'"a"', "found a string"),
        (b"1", "found a number"),
        (b"NaN", "found a number"),
        (b"true", "found true"),
        (b"null", "found null"),
    ],
)
def test_a_body_that_is_no_json_object_is_explained(client, content, reason):
    response = client.post("/translate", content=content, headers={"content-type": "application/json"})
    assert response.status_code == 422
    assert response.json()["detail"] == f"Cannot read the body as a JSON object ({reason}). Correct the body."


@with_learner
@pytest.mark.parametrize(("name", "printed"), [("texts", "texts"), ("\\ud800", "?")])
def test_a_field_that_occurs_twice_is_refused(client, name, printed):
    body = f'{{"{name}": ["a"], "{name}": ["b"], "src_lang": "zh", "tgt_lang": "bo"}}'
    response = client.post("/translate", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 422
    assert response.json() == {"detail": f'The body has the field "{printed}" twice. Remove one of them.'}


@with_learner
@pytest.mark.parametrize("content", [b"", b"rubbish", [b" " * 3000] * 2])
def test_rubbish_without_its_type_is_refused(client, content):
    response = client.post("/translate", content=iter(content) if isinstance(content, list) else content)
    assert response.status_code in (413, 422) and response.json()["detail"]


@with_learner
@pytest.mark.parametrize("kind", ["APPLICATION/JSON", "application/json; charset=utf-8", "application/vnd.api+json"])
def test_all_types_of_json_are_read(client, kind):
    response = client.post("/translate", content=b'{"text": ["no wind"]}', headers={"content-type": kind})
    assert [problem["loc"] for problem in response.json()["detail"]] == [["body", "texts"], ["body", "text"]]


@with_learner
@pytest.mark.parametrize(
    "headers", [{}, *({"content-type": kind} for kind in ("application/x-www-form-urlencoded", "application/jsonx"))]
)
def test_a_body_without_its_type_is_explained(client, headers):
    response = client.post("/translate", content=b'{"texts": ["no wind"], "src_lang": "zh"}', headers=headers)
    assert response.status_code == 422
    assert (
        response.json()["detail"] == "The body must be JSON. Send it with the header Content-Type: application/json."
    )


@with_learner
@pytest.mark.parametrize("headers", [{}, {"content-type": "application/json"}])
def test_an_empty_body_is_named(client, headers):
    response = client.post("/translate", headers=headers)
    assert response.status_code == 422
    message = "The body is empty. Send a JSON object with the header Content-Type: application/json."
    assert response.json() == {"detail": message}


@with_learner
def test_health_and_metrics(client):
    assert client.get("/health").json() == {"status": "ok", "languages": ["zh", "kk", "bo"]}
    translate(client, ["no wind"] * 2)
    metrics = client.get("/metrics").text
    assert re.search(r"xlm_swcm_batch_texts_sum [1-9]", metrics)
    assert re.search(r'xlm_swcm_request_seconds_count\{status="200"\} [1-9]', metrics)
    # Requests can take longer than 10 seconds, the last bucket by default.
    assert 'xlm_swcm_request_seconds_bucket{le="60.0",status="200"}' in metrics
    description = client.get("/openapi.json").json()
    assert description["paths"].keys() == {"/translate", "/health", "/metrics"}
    assert description["info"]["version"] == __version__


@with_learner
def test_a_server_that_cannot_translate_is_not_healthy(exported, monkeypatch):
    def fail(self):
        raise RuntimeError("a bug")

    monkeypatch.setattr(Batcher, "_take_batch", fail)
    with TestClient(create_app(exported, Limits(seconds=0.1), threads=1)) as client:
        assert translate(client, ["no wind"]).status_code == 504
        assert client.get("/health").status_code == 503


def call(app, *messages: dict, path: str = "/translate") -> tuple[int, dict, str]:
    """Send a request to an application in pieces. Return status, headers and detail of the response."""
    received, sent = list(messages), []
    headers = [(b"content-type", b"application/json"), (b"transfer-encoding", b"chunked")]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}

    async def receive() -> dict:
        if not received and sent:
            return LEFT
        if not received:
            await asyncio.Event().wait()
        return received.pop(0)

    async def send(message: dict):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), json.loads(sent[1]["body"])["detail"]


def chunk(body: bytes, more_body: bool = True) -> dict:
    return {"type": "http.request", "body": body, "more_body": more_body}


REQUEST = json.dumps({"texts": ["no wind"], "src_lang": "zh", "tgt_lang": "bo"}).encode()
LEFT = {"type": "http.disconnect"}


@with_learner
def test_a_connection_with_an_unread_body_is_closed(exported):
    app = create_app(exported, Limits(body_bytes=100), threads=1)
    for path, status in [("/translate", 413), ("/health", 405), ("/nothing", 404)]:
        code, headers, _ = call(app, chunk(b" " * 101), path=path)
        assert (code, headers.get(b"connection")) == (status, b"close")
    code, headers, _ = call(app, chunk(b" " * 101, more_body=False))
    assert code == 413 and b"connection" not in headers


@with_learner
def test_a_body_that_does_not_arrive_is_named(exported):
    app = create_app(exported, Limits(seconds=0.1), threads=1)
    for messages in [(), (chunk(b"{"),)]:
        code, headers, detail = call(app, *messages)
        assert (code, headers[b"connection"]) == (504, b"close")
        assert detail == "The body did not arrive within 0.1 seconds. Send the whole body."


@with_learner
@pytest.mark.parametrize("messages", [(chunk(b"{"), LEFT), (chunk(REQUEST, more_body=False), LEFT)])
def test_a_client_that_left_has_its_own_status_in_the_metrics(exported, messages):
    app = create_app(exported, threads=1)
    # The model does not run here, so the texts wait.
    assert call(app, *messages)[0] == 499
    metrics = TestClient(app).get("/metrics").text
    assert 'xlm_swcm_request_seconds_count{status="499"} 1.0' in metrics and 'status="200"' not in metrics
    assert "xlm_swcm_waiting_texts 0.0" in metrics


@with_learner
def test_a_bug_has_status_500_in_the_metrics(exported, monkeypatch):
    def fail(self, *args, **options):
        raise KeyError("a bug")

    monkeypatch.setattr(ExportedModel, "generate_texts", fail)
    with TestClient(create_app(exported, threads=1), raise_server_exceptions=False) as client:
        assert translate(client, ["no wind"]).status_code == 500
        assert 'xlm_swcm_request_seconds_count{status="500"} 1.0' in client.get("/metrics").text


class SlowModel:
    """A model that waits for `go` before its first batch, and refuses the text "bad"."""

    def __init__(self):
        self.go, self.batches = threading.Event(), []
        self.registry = prometheus_client.CollectorRegistry()

    def generate_texts(self, texts: list[str], **options) -> list[Answer]:
        self.go.wait(10)
        self.batches.append(texts)
        if "bad" in texts:
            raise ValueError("bad text")
        return [Answer([Output(f"{text} {options['tgt_lang']}")], [], []) for text in texts]


def run_batcher(model: SlowModel, requests: list[tuple], **limits) -> list:
    """
    Send requests of texts, language and whether the client is gone, while the model is busy with the first one.

    Return the translations of each request, or its error.
    """

    async def run() -> list:
        batcher = Batcher(model, Limits(**limits), model.registry)
        worker = asyncio.create_task(batcher.run())
        tasks = []
        for texts, language, gone in requests:
            tasks.append(asyncio.create_task(send(batcher, texts, language, gone)))
            await asyncio.sleep(0.02)
        model.go.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        worker.cancel()
        assert batcher.count_waiting() == 0
        return answers

    async def send(batcher, texts, language, gone):
        async def receive():
            await asyncio.sleep(0 if gone else 10)
            return LEFT

        async with asyncio.timeout(limits.get("seconds", 10)):
            answers = await await_with_client(batcher.translate(texts, {"tgt_lang": language}), receive)
            return [answer.outputs[0].text for answer in answers]

    return asyncio.run(run())


class TestBatches:
    def test_requests_that_wait_share_a_batch_if_their_options_are_equal(self):
        model = SlowModel()
        requests = [(["a"], "bo", False), (["b", "c"], "bo", False), (["d"], "kk", False), (["e"], "bo", False)]
        assert run_batcher(model, requests) == [["a bo"], ["b bo", "c bo"], ["d kk"], ["e bo"]]
        assert model.batches == [["a"], ["b", "c", "e"], ["d"]]

    def test_a_batch_has_a_limit(self):
        model = SlowModel()
        run_batcher(model, [([letter], "bo", False) for letter in "abcdef"], batch_texts=2)
        assert model.batches == [["a"], ["b", "c"], ["d", "e"], ["f"]]

    def test_a_bad_text_fails_alone(self):
        model = SlowModel()
        answers = run_batcher(model, [([text], "bo", False) for text in ("a", "b", "bad", "c")])
        assert isinstance(answers[2], ValueError) and answers[:2] + answers[3:] == [["a bo"], ["b bo"], ["c bo"]]
        # The metrics count each text once.
        assert model.registry.get_sample_value("xlm_swcm_batch_texts_sum") == 4

    def test_texts_of_a_client_that_left_do_not_wait(self):
        model = SlowModel()
        requests = [(["a"], "bo", False), (["b"], "bo", True), (["c"], "bo", False)]
        a, b, c = run_batcher(model, requests, waiting_texts=1)
        assert (a, b.status_code, c) == (["a bo"], 499, ["c bo"])
        assert model.batches == [["a"], ["c"]]

    def test_a_batch_ends_when_nobody_waits_for_it(self):
        class EndlessModel(SlowModel):
            def generate_texts(self, texts: list[str], is_wanted, **options) -> list[Answer]:
                while "endless" in texts and is_wanted():
                    time.sleep(0.01)
                return super().generate_texts(texts, **options)

        endless, b = run_batcher(EndlessModel(), [(["endless"], "bo", True), (["b"], "bo", False)])
        assert (endless.status_code, b) == (499, ["b bo"])

    def test_too_many_texts_are_refused_at_once(self):
        answers = run_batcher(SlowModel(), [([letter], "bo", False) for letter in "abcd"], waiting_texts=2)
        assert answers[:3] == [["a bo"], ["b bo"], ["c bo"]] and isinstance(answers[3], OverloadError)


@with_learner
def test_a_request_has_a_time_limit(exported, monkeypatch):
    model = SlowModel()
    with TestClient(create_app(exported, Limits(seconds=0.1), threads=1)) as client:
        monkeypatch.setattr(
            ExportedModel, "generate_texts", lambda self, *args, **options: model.generate_texts(*args, **options)
        )
        response = translate(client, ["no wind"])
        assert response.status_code == 504
        assert response.json()["detail"] == (
            "The request took more than 0.1 seconds. Send fewer or shorter texts, or try again later."
        )
        model.go.set()
        assert translate(client, ["no wind"]).json()["translations"] == ["no wind bo"]


def read_address(server: subprocess.Popen) -> str:
    """Return the address that the server prints."""
    lines = iter(server.stderr.readline, "")
    return next(found[0] for line in lines if (found := re.search(r"http://[\d.]+:\d+", line)))


@with_learner
def test_the_command_of_the_image_serves_the_folder(exported):
    dockerfile = (ROOT / "examples" / "Dockerfile").read_text()
    command = json.loads(dockerfile.splitlines()[-1].removeprefix("CMD "))
    command = [Path(sys.executable).with_name(command[0]), *command[1:-1], "0"]
    server = subprocess.Popen(command, cwd=exported, stderr=subprocess.PIPE, text=True)
    try:
        with urlopen(f"{read_address(server)}/health") as health:
            assert json.load(health)["languages"]
    finally:
        server.kill()


@with_learner
def test_the_command_serves_until_an_interruption(exported):
    command = [os.path.join(os.path.dirname(sys.executable), "xlm-swcm"), "serve", exported, "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        address = read_address(server)
        with urlopen(f"{address}/health") as health:
            assert json.load(health)["status"] == "ok"
        taken = CliRunner().invoke(main, [*map(str, command[1:-1]), address.rpartition(":")[2]])
        assert taken.exit_code == 1 and "Address already in use). Choose another --host or --port." in taken.stderr
        server.send_signal(signal.SIGINT)
        assert server.wait(20) == 0
        assert server.stderr.read() == ""
    finally:
        server.kill()


BUSY_COMMAND = """
import time
from modeling_xlm_swcm.cli import main
from modeling_xlm_swcm.export.xlm_swcm_runtime import ExportedModel
from modeling_xlm_swcm.serving import command

command.GRACE_SECONDS = 1
ExportedModel.generate_texts = lambda *args, **options: time.sleep(60)
main()
"""


def post(address: str) -> tuple[int, str]:
    """Send texts to a server. Return the status and the detail of the error."""
    try:
        urlopen(Request(f"{address}/translate", REQUEST, {"Content-Type": "application/json"}))
    except HTTPError as error:
        return error.code, json.load(error)["detail"]


def wait_for_metric(address: str, line: str):
    for _ in range(200):
        with urlopen(f"{address}/metrics") as metrics:
            if line in metrics.read().decode():
                return
        time.sleep(0.05)
    pytest.fail(f"No line {line} in the metrics.")


@with_learner
@pytest.mark.parametrize(
    ("signals", "code"),
    [([signal.SIGINT], 0), ([signal.SIGINT] * 2, 0), ([signal.SIGTERM], -signal.SIGTERM)],
    ids=["Ctrl-C", "Ctrl-C twice", "SIGTERM"],
)
def test_a_busy_server_refuses_its_requests_and_ends(exported, tmp_path, signals, code):
    # The command treats Ctrl-C as its own only if the program has its name.
    program = tmp_path / "xlm-swcm"
    program.write_text(BUSY_COMMAND)
    server = subprocess.Popen(
        [sys.executable, program, "serve", exported, "--port", "0"], stderr=subprocess.PIPE, text=True
    )
    try:
        address = read_address(server)
        with ThreadPoolExecutor() as clients:
            answers = [clients.submit(post, address)]
            wait_for_metric(address, "xlm_swcm_batch_texts_count 1.0")
            answers.append(clients.submit(post, address))
            wait_for_metric(address, "xlm_swcm_waiting_texts 1.0")
            for number in signals:
                server.send_signal(number)
                time.sleep(0.2)
            message = (503, "The server stops. Send the request again later.")
            assert [answer.result(20) for answer in answers] == [message, message]
        assert server.wait(20) == code
        assert "Traceback" not in server.stderr.read()
    finally:
        server.kill()
