"""Measure `xlm-swcm serve` for one client and for many clients at the same time.

    python benchmarks/server.py --folder FOLDER --input zh.txt --source_lang zh --target_lang kk [--clients 32]

FOLDER is an exported model. Each request has one line of the input. First, one client sends requests one after the
other. Then many clients send requests at the same time. Then the same clients send requests while other clients send
rubbish and close their connections. The script prints requests per second and latencies, and writes
outputs/benchmarks/server.json.
"""

import http.client
import json
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from itertools import cycle, islice
from pathlib import Path

from measuring import describe_machine
from rich.console import Console
from rich.table import Table

from modeling_xlm_swcm.training.files import write_json
from modeling_xlm_swcm.training.parser import ScriptParser


OUTPUT = Path("outputs/benchmarks/server.json")
RUBBISH = (b"{", b"\xff\xfe", b"[" * 50_000, b'{"texts": "no list"}', b" " * 200_000)


@dataclass
class ServerArguments:
    folder: Path = field(metadata={"help": "Folder that `xlm-swcm export` wrote."})
    input: Path = field(metadata={"help": "Text file with one source text per line."})
    source_lang: str = field(metadata={"help": "Language code of the sources."})
    target_lang: str = field(metadata={"help": "Language code of the translations."})
    clients: int = field(default=32, metadata={"help": "Number of clients that send requests at the same time."})
    requests: int = field(default=640, metadata={"help": "Number of requests of all clients."})


def post(address: tuple[str, int], body: bytes) -> tuple[int, bytes, float]:
    """Return status, body and seconds of a request on a new connection."""
    start = time.perf_counter()
    connection = http.client.HTTPConnection(*address, timeout=120)
    try:
        connection.request("POST", "/translate", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read(), time.perf_counter() - start
    finally:
        connection.close()


def send_all(address: tuple[str, int], bodies: list[bytes], clients: int) -> dict:
    """Send all requests from a number of clients. Return rate, latencies, statuses and answers."""
    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        results = list(pool.map(lambda body: post(address, body), bodies))
    seconds = time.perf_counter() - start
    latencies = sorted(latency for _, _, latency in results)
    return {
        "clients": clients,
        "requests": len(bodies),
        "errors": sum(status != 200 for status, _, _ in results),
        "requests_per_second": len(bodies) / seconds,
        "median_seconds": statistics.median(latencies),
        "p95_seconds": latencies[int(0.95 * len(latencies))],
        "answers": [answer.decode() for _, answer, _ in results],
    }


def disturb(address: tuple[str, int], bodies: list[bytes], seconds: float):
    """Send rubbish, and requests whose connection is closed before the answer."""
    rng, end = random.Random(0), time.perf_counter() + seconds
    while time.perf_counter() < end:
        body = rng.choice([*RUBBISH, *bodies[:5]])
        head = f"POST /translate HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        try:
            with socket.create_connection(address, timeout=5) as connection:
                connection.sendall(head.encode() + body[: rng.choice([len(body), len(body) // 2])])
                time.sleep(0.02)
        except OSError:
            # The server refuses bodies that are too large and closes the connection.
            pass


def measure(args: ServerArguments) -> dict[str, dict]:
    """Start the server and measure it."""
    lines = [line for line in args.input.read_text(encoding="utf-8").splitlines() if line.strip()]
    options = {"src_lang": args.source_lang, "tgt_lang": args.target_lang}
    texts = list(islice(cycle(lines), args.requests))
    bodies = [json.dumps({"texts": [text]} | options).encode() for text in texts]
    command = [Path(sys.executable).with_name("xlm-swcm"), "serve", args.folder, "--port", "0"]
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    # The file also takes the messages of the server about rubbish. A pipe that nobody reads would fill up.
    with OUTPUT.with_suffix(".log").open("w+") as log:
        server = subprocess.Popen(command, stderr=log)
        try:
            return send_loads(wait_for_address(server, Path(log.name)), bodies, args.clients)
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(30)


def wait_for_address(server: subprocess.Popen, log: Path) -> tuple[str, int]:
    """Return host and port of the server as soon as it has printed them."""
    while server.poll() is None:
        if found := re.search(r"http://([\d.]+):(\d+)", log.read_text()):
            return found[1], int(found[2])
        time.sleep(0.1)
    sys.exit(log.read_text())


def send_loads(address: tuple[str, int], bodies: list[bytes], clients: int) -> dict[str, dict]:
    """Return the results for one client, for many clients, and for many clients beside bad ones."""
    send_all(address, bodies[:clients], clients)
    runs = {"one at a time": send_all(address, bodies[: max(1, len(bodies) // 4)], 1)}
    runs["together"] = send_all(address, bodies, clients)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(disturb, address, bodies, len(bodies) / runs["together"]["requests_per_second"])
        runs["together, with rubbish and killed clients"] = send_all(address, bodies, clients)
    return runs


def main():
    (args,) = ScriptParser(ServerArguments).parse_args_into_dataclasses()
    runs = measure(args)
    alone, *others = (run.pop("answers") for run in runs.values())
    same = sum(answer == others[0][number] for number, answer in enumerate(alone)) / len(alone)
    table = Table("load", "clients", "requests", "errors", "requests/s", "median s", "95 % s")
    for name, run in runs.items():
        numbers = (run["requests_per_second"], run["median_seconds"], run["p95_seconds"])
        table.add_row(
            name, *(str(run[key]) for key in ("clients", "requests", "errors")), *(f"{n:.2f}" for n in numbers)
        )
    console = Console()
    console.print(table)
    faster = runs["together"]["requests_per_second"] / runs["one at a time"]["requests_per_second"]
    console.print(f"Together: {faster:.1f} times the requests per second. Same answers: {same:.1%}.")
    write_json(OUTPUT, {"date": str(date.today()), "machine": describe_machine(), "same_answers": same, "runs": runs})


if __name__ == "__main__":
    main()
