"""The server translates like the runtime, shares batches between requests, and survives bad requests."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from urllib.request import urlopen

import prometheus_client
import pytest
from fastapi.testclient import TestClient
from support.learners import TEXTS
from typer.testing import CliRunner

from modeling_xlm_swcm.cli import main
from modeling_xlm_swcm.export.xlm_swcm_runtime import Answer, ExportedModel
from modeling_xlm_swcm.export.xlm_swcm_server import Batcher, Limits, OverloadError, create_app
from modeling_xlm_swcm.sentences_xlm_swcm import Output


ROOT = Path(__file__).parents[2]

with_learner = pytest.mark.parametrize(
    "learner", [dict(weight_sharing="init", lm_head_transform=True)], indirect=True, ids=["init"]
)


@pytest.fixture(scope="module")
def client(exported):
    limits = Limits(body_bytes=2000, waiting_texts=20, beams=4)
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
        ({"num_beams": 2, "num_return_sequences": 3}, 400, "num_return_sequences must be at most num_beams"),
        ({"max_new_tokens": 10**6}, 400, "max_new_tokens must be a whole number from 1 to"),
        ({"texts": ["a"] * 21}, 413, r"A request has at most 20 texts \(got 21\)."),
        ({"texts": ["a" * 2000]}, 413, "The body has more than 2000 bytes. Send fewer or shorter texts."),
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
@pytest.mark.parametrize("content", [b"rubbish", b"\xff\xfe", b"[" * 1500, [b" " * 1500] * 3])
@pytest.mark.parametrize("headers", [{}, {"content-type": "application/json"}])
def test_rubbish_is_refused(client, content, headers):
    response = client.post(
        "/translate", content=iter(content) if isinstance(content, list) else content, headers=headers
    )
    assert response.status_code in (400, 413, 422) and response.json()["detail"]


@with_learner
@pytest.mark.parametrize("headers", [{}, {"content-type": "application/x-www-form-urlencoded"}])
def test_a_body_without_its_type_is_explained(client, headers):
    response = client.post("/translate", content=b'{"texts": ["no wind"], "src_lang": "zh"}', headers=headers)
    assert response.status_code == 422
    assert (
        response.json()["detail"] == "The body must be JSON. Send it with the header Content-Type: application/json."
    )


@with_learner
def test_health_and_metrics(client):
    assert client.get("/health").json() == {"status": "ok", "languages": ["zh", "kk", "bo"]}
    translate(client, ["no wind"] * 2)
    metrics = client.get("/metrics").text
    assert re.search(r"xlm_swcm_batch_texts_sum [1-9]", metrics)
    assert re.search(r'xlm_swcm_request_seconds_count\{status="200"\} [1-9]', metrics)
    assert client.get("/openapi.json").json()["paths"].keys() == {"/translate", "/health", "/metrics"}


@with_learner
def test_a_server_that_cannot_translate_is_not_healthy(exported, monkeypatch):
    def fail(self):
        raise RuntimeError("a bug")

    monkeypatch.setattr(Batcher, "_take_batch", fail)
    with TestClient(create_app(exported, Limits(seconds=0.1), threads=1)) as client:
        assert translate(client, ["no wind"]).status_code == 504
        assert client.get("/health").status_code == 503


class SlowModel:
    """A model that waits for `go` before its first batch, and refuses the text "bad"."""

    def __init__(self):
        self.go, self.batches = threading.Event(), []

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
        batcher = Batcher(model, Limits(**limits), prometheus_client.CollectorRegistry())
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
        async def is_gone():
            return gone

        async with asyncio.timeout(limits.get("seconds", 10)):
            answers = await batcher.translate(texts, {"tgt_lang": language}, is_gone)
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
        answers = run_batcher(SlowModel(), [([text], "bo", False) for text in ("a", "b", "bad", "c")])
        assert isinstance(answers[2], ValueError) and answers[:2] + answers[3:] == [["a bo"], ["b bo"], ["c bo"]]

    def test_texts_of_a_client_that_left_are_not_translated(self):
        model = SlowModel()
        run_batcher(model, [(["a"], "bo", False), (["b"], "bo", True), (["c"], "bo", False)])
        assert model.batches == [["a"], ["c"]]

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
        assert response.json()["detail"] == "The request took more than 0.1 seconds. Send fewer or shorter texts."
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
