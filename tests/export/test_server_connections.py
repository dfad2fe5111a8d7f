"""Clients see the answer to a body that is not read, and a server without the command stops in order."""

import http.client
import json
import re
import socket
import threading
import time
from pathlib import Path

import pytest
import uvicorn

from modeling_xlm_swcm.export import xlm_swcm_server
from modeling_xlm_swcm.export.xlm_swcm_server import Limits, create_app


ROOT = Path(__file__).parents[2]

with_learner = pytest.mark.parametrize(
    "learner", [dict(weight_sharing="init", lm_head_transform=True)], indirect=True, ids=["init"]
)


@pytest.fixture
def port(exported):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        app = create_app(exported, Limits(body_bytes=1000), threads=1)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, args=[[listener]])
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join()


def send_slowly(body: bytes):
    for start in range(0, len(body), 20_000):
        time.sleep(0.02)
        yield body[start : start + 20_000]


@with_learner
@pytest.mark.parametrize("path", ["/translate", "/nothing"])
@pytest.mark.parametrize(("size", "pace"), [(8_000_000, bytes), (200_000, send_slowly)], ids=["fast", "slow"])
def test_a_client_sees_the_answer_to_a_body_that_is_not_read(port, path, size, pace):
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    headers = {"Content-Type": "application/json", "Content-Length": str(size)}
    client.request("POST", path, pace(b"x" * size), headers)
    response = client.getresponse()
    assert response.status == (413 if path == "/translate" else 404)
    assert json.load(response)["detail"]


@with_learner
def test_an_endless_body_ends(port, monkeypatch):
    monkeypatch.setattr(xlm_swcm_server, "LINGER_SECONDS", 0.2)
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(b"POST /translate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n")
        client.sendall(b"Transfer-Encoding: chunked\r\n\r\n3e8\r\n" + b"x" * 1000 + b"\r\n1\r\nx\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 413")
        with pytest.raises(ConnectionError):
            while True:
                client.sendall(b"3e8\r\n" + b"x" * 1000 + b"\r\n")


@with_learner
def test_a_length_of_zero_keeps_the_connection(port):
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    for _ in range(2):
        client.request("GET", "/health", headers={"Content-Length": "0"})
        response = client.getresponse()
        assert response.status == 200 and response.read() and response.getheader("connection") is None


@pytest.mark.parametrize(
    "name", ["examples/Dockerfile", "docs/guides/serve.md", "modeling_xlm_swcm/export/xlm_swcm_server.py"]
)
def test_each_command_of_uvicorn_refuses_requests_when_it_stops(name):
    commands = re.findall(r'"?uvicorn\W+--factory.*', (ROOT / name).read_text(encoding="utf-8"))
    assert commands and all(re.search(r"--timeout-graceful-shutdown\W+5\b", command) for command in commands)
