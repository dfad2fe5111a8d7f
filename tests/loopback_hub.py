"""The part of the Hub's HTTP interface that `from_pretrained` needs, on 127.0.0.1."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


Repositories = dict[str, dict[str, Path]]


def commit_of(folder: Path) -> str:
    return hashlib.sha1(str(folder).encode()).hexdigest()


class HubHandler(BaseHTTPRequestHandler):
    def do_GET(self):
        owner, name, *rest = self.path.partition("?")[0].removeprefix("/api/models").strip("/").split("/")
        branches = self.server.repositories.get(f"{owner}/{name}")
        if branches is None:
            return self.answer(404, error="RepoNotFound")
        # .../resolve/{revision}/{file} and /api/models/.../revision/{revision}; both take a commit as well
        revision = rest[1] if len(rest) > 1 else "main"
        folder = branches.get(revision) or next((f for f in branches.values() if commit_of(f) == revision), None)
        if folder is None:
            return self.answer(404, error="RevisionNotFound")
        headers = {"X-Repo-Commit": commit_of(folder)}
        if rest[:1] in ([], ["revision"]):
            return self.answer(200, json.dumps({"id": f"{owner}/{name}", "sha": commit_of(folder)}).encode(), headers)
        file = folder.joinpath(*rest[2:])
        if rest[0] != "resolve" or not file.is_file():
            return self.answer(404, headers=headers, error="EntryNotFound")
        content = file.read_bytes()
        self.answer(200, content, headers | {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'})

    do_HEAD = do_GET

    def answer(self, status: int, content: bytes = b"", headers: dict | None = None, error: str | None = None):
        self.send_response(status)
        headers = {"Content-Length": len(content)} | (headers or {}) | ({"X-Error-Code": error} if error else {})
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def loopback_hub(repositories: Repositories) -> Iterator[str]:
    """Serves folders as {repository: {branch: folder}}; yields the endpoint."""
    with ThreadingHTTPServer(("127.0.0.1", 0), HubHandler) as server:
        server.repositories = repositories
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
