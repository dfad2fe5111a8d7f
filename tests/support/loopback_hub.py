"""A Hub on 127.0.0.1: the part of the HTTP interface that huggingface_hub and Transformers use, in memory.

Models and Spaces, without Xet: a client sets HF_ENDPOINT and HF_HUB_DISABLE_XET before it imports huggingface_hub.
Weights are uploaded as LFS objects (whole or in parts), and a commit is one step, as on the real Hub.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


Files = dict[str, bytes]
# The token WRITE may write the repositories of the user of the Hub.
READ, WRITE = "hf_may_read", "hf_may_write"
LFS_SUFFIXES = (".safetensors", ".bin")


@dataclass(frozen=True)
class Commit:
    files: Files
    message: str = "Initial commit"
    parent: str | None = None

    @property
    def oid(self) -> str:
        content = [(name, hashlib.sha1(data).hexdigest()) for name, data in sorted(self.files.items())]
        return hashlib.sha1(json.dumps([content, self.message, self.parent]).encode()).hexdigest()


@dataclass
class Repository:
    refs: dict[str, Commit] = field(default_factory=lambda: {"main": Commit({})})
    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)

    def __post_init__(self):
        for commit in self.refs.values():
            self.commits[commit.oid] = commit

    def resolve(self, revision: str) -> Commit | None:
        return self.refs.get(revision) or self.commits.get(revision)

    def move(self, ref: str, commit: Commit):
        self.commits[commit.oid] = self.refs[ref] = commit

    @property
    def files(self) -> Files:
        return self.refs["main"].files


@dataclass
class Failure:
    """
    Failure of the next `times` requests with a method and path that match `pattern`.

    `status`: status of the answer. `drop`: close the connection after half of the body. `wait`: seconds to wait before
    the answer. `hold`: do not answer until the event is set.
    """

    pattern: str
    times: int = 10**9
    status: int | None = None
    message: str = "Internal error, on purpose"
    drop: bool = False
    wait: float = 0
    hold: threading.Event | None = None
    seen: threading.Event = field(default_factory=threading.Event)


class Hub(ThreadingHTTPServer):
    """
    Attributes:
        user: Owner of the repositories that a client may write, and of new repositories.
        repositories: Repositories by id. The id of a Space starts with spaces/.
        objects: Uploaded LFS objects by sha256. They are not always committed.
        part_size: Larger objects are uploaded in parts of this size.
        quota: Maximum size of all LFS objects in bytes.
        requests: Method, path with query, and headers of each request.
    """

    daemon_threads = True
    # number of connections that can wait
    request_queue_size = 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        # Large files are on another host, as on the real Hub.
        self.storage = f"http://localhost:{self.server_port}/lfs"
        self.lock = threading.RLock()
        self.user = "someone"
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.part_size = 10**9
        self.quota = 10**12
        self.requests: list[tuple[str, str, Message]] = []
        self.failures: list[Failure] = []

    def add(self, repo_id: str, folder: Path, ref: str = "main", **options) -> Repository:
        repository = self.repositories.setdefault(repo_id, Repository(**options))
        repository.move(ref, Commit({path.name: path.read_bytes() for path in folder.iterdir()}))
        return repository

    def fail(self, pattern: str, **how) -> Failure:
        self.failures.append(Failure(pattern, **how))
        return self.failures[-1]

    def failure_of(self, request: str) -> Failure | None:
        with self.lock:
            for failure in self.failures:
                if failure.times and re.search(failure.pattern, request):
                    failure.times -= 1
                    return failure

    def count(self, pattern: str) -> int:
        return sum(bool(re.search(pattern, f"{method} {path}")) for method, path, _ in self.requests)

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment of a client process, without a token and a cache."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1,localhost",
        }

    def handle_error(self, request, client_address):
        pass  # a client that was killed


class Refusal(Exception):
    def __init__(self, status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None):
        self.status = status
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}) | (headers or {})


class Dropped(Exception):
    pass


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def handle_request(self):
        hub, request = self.server, f"{self.command} {self.path}"
        hub.requests.append((self.command, self.path, self.headers))
        failure = hub.failure_of(request)
        try:
            if failure is not None:
                failure.seen.set()
                time.sleep(failure.wait)
                if failure.hold is not None:
                    failure.hold.wait()
            body = self.read_body(half=failure is not None and failure.drop)
            if failure is not None and failure.status is not None:
                raise Refusal(failure.status, failure.message)
            url = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            for pattern, name in ROUTES:
                match = re.fullmatch(pattern, f"{self.command.replace('HEAD', 'GET')} {url.path}")
                if match:
                    arguments = {name: unquote(value) for name, value in match.groupdict().items() if value}
                    if arguments.pop("space", None):
                        arguments["repo"] = f"spaces/{arguments['repo']}"
                    return getattr(self, name)(body=body, query=query, **arguments)
            raise Refusal(404, f"Not found: {request}")
        except Refusal as refusal:
            self.answer(refusal.status, json.dumps({"error": refusal.headers["X-Error-Message"]}), refusal.headers)
        except Dropped:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def read_body(self, half: bool) -> bytes:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length // 2 if half else length)
        if half:
            raise Dropped
        if len(body) < length:
            raise Dropped  # the client has gone
        return body

    def answer(self, status: int, content: bytes | str | dict | list = b"", headers: dict | None = None):
        if not isinstance(content, bytes):
            content = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": len(content)} | (headers or {})).items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_):
        pass

    # who asks, and for what

    def token(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        if token not in (None, READ, WRITE):
            raise Refusal(401, "Invalid credentials in Authorization header")
        return token

    def readable(self, repo: str) -> Repository:
        repository = self.server.repositories.get(repo)
        if repository is None or (repository.private and self.token() != WRITE):
            raise Refusal(401 if self.token() is None else 404, "Repository not found", "RepoNotFound")
        return repository

    def require_write(self, repo: str):
        if self.token() is None:
            raise Refusal(401, "Invalid username or password.")
        if self.token() == READ or not repo.removeprefix("spaces/").startswith(f"{self.server.user}/"):
            raise Refusal(403, f"You don't have the rights to write to {repo}.")

    def commit_of(self, repo: str, revision: str) -> Commit:
        commit = self.readable(repo).resolve(revision)
        if commit is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # repositories

    def whoami(self, **_):
        if self.token() is None:
            raise Refusal(401, "Invalid username or password.")
        self.answer(200, {"type": "user", "name": self.server.user, "orgs": [], "auth": {"type": "access_token"}})

    def create(self, body, **_):
        request = json.loads(body)
        repo = f"{request.get('organization') or self.server.user}/{request['name']}"
        if request.get("type") == "space":
            if request.get("sdk") != "gradio":
                raise Refusal(400, "The sdk of a Space is missing")
            repo = f"spaces/{repo}"
        self.require_write(repo)
        with self.server.lock:
            known = repo in self.server.repositories
            if not known:
                self.server.repositories[repo] = Repository(private=request.get("visibility") == "private")
        self.answer(409 if known else 200, {"url": f"{self.server.endpoint}/{repo}", "id": repo})

    def create_branch(self, body, repo, revision, **_):
        self.require_write(repo)
        start = self.commit_of(repo, json.loads(body or b"{}").get("startingPoint", "main"))
        repository = self.readable(repo)
        if revision in repository.refs:
            raise Refusal(409, "Reference already exists")
        repository.move(revision, start)
        self.answer(200, {})

    def info(self, repo, query, revision="main", **_):
        commit, repository = self.commit_of(repo, revision), self.readable(repo)
        siblings = [{"rfilename": name} for name in sorted(commit.files)]
        content = {"id": repo, "sha": commit.oid, "siblings": siblings}
        self.answer(200, content | {"private": repository.private, "gated": repository.gated, "tags": []})

    def references(self, repo, **_):
        def list_refs(kind: str) -> list[dict]:
            return [
                {"name": name, "ref": name if kind == "pr" else f"refs/heads/{name}", "targetCommit": commit.oid}
                for name, commit in self.readable(repo).refs.items()
                if name.startswith("refs/pr/") == (kind == "pr")
            ]

        self.answer(
            200, {"branches": list_refs("branch"), "converts": [], "tags": [], "pullRequests": list_refs("pr")}
        )

    def tree(self, repo, revision, path="", **_):
        commit = self.commit_of(repo, revision)
        if path:
            raise Refusal(404, f"{path} does not exist", "EntryNotFound", {"X-Repo-Commit": commit.oid})
        self.answer(200, [describe(name, data) for name, data in sorted(commit.files.items())])

    # downloads

    def resolve(self, repo, revision, path, **_):
        repository, commit = self.readable(repo), self.commit_of(repo, revision)
        headers = {"X-Repo-Commit": commit.oid}
        if repository.gated and self.token() != WRITE:
            status = 401 if self.token() is None else 403
            raise Refusal(status, f"Access to model {repo} is restricted.", "GatedRepo", headers)
        if path not in commit.files:
            raise Refusal(404, "Entry not found", "EntryNotFound", headers)
        data = commit.files[path]
        if not is_lfs(path):
            return self.send_file(data, headers | {"ETag": f'"{blob_oid(data)}"'})
        oid = hashlib.sha256(data).hexdigest()
        self.server.objects[oid] = data
        linked = {"X-Linked-Size": len(data), "X-Linked-ETag": f'"{oid}"'}
        self.answer(302, headers=headers | linked | {"Location": f"{self.server.storage}/{oid}"})

    def download(self, oid, **_):
        self.send_file(self.server.objects[oid], {"ETag": f'"{oid}"'})

    def send_file(self, data: bytes, headers: dict):
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if span is None:
            return self.answer(200, data, headers | {"Accept-Ranges": "bytes"})
        start, end = int(span[1]), min(int(span[2] or len(data)), len(data) - 1)
        self.answer(206, data[start : end + 1], headers | {"Content-Range": f"bytes {start}-{end}/{len(data)}"})

    # uploads

    def validate(self, body, **_):
        card = json.loads(body)["content"]
        if not card.startswith("---\n"):
            return self.answer(200, {"errors": [], "warnings": [{"message": "empty or missing yaml metadata"}]})
        self.answer(200, {"errors": [], "warnings": []})

    def preupload(self, body, query, repo, revision, **_):
        if "create_pr" not in query:
            self.require_write(repo)
        files = self.commit_of(repo, revision).files
        answers = []
        for file in json.loads(body)["files"]:
            mode = {"uploadMode": "lfs" if is_lfs(file["path"]) else "regular", "shouldIgnore": False}
            known = files.get(file["path"])
            oid = (
                {}
                if known is None
                else {"oid": describe(file["path"], known).get("lfs", {}).get("oid", blob_oid(known))}
            )
            answers.append({"path": file["path"]} | mode | oid)
        self.answer(200, {"files": answers})

    def lfs_batch(self, body, repo, **_):
        if self.token() is None:
            raise Refusal(401, "Invalid username or password.")
        request, hub = json.loads(body), self.server
        total = sum(map(len, hub.objects.values())) + sum(
            wanted["size"] for wanted in request["objects"] if wanted["oid"] not in hub.objects
        )
        if total > hub.quota:
            raise Refusal(403, "Storage limit reached, please upgrade your plan to increase your storage limit")
        answers = []
        for wanted in request["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            answer = {"oid": oid, "size": size}
            if oid not in hub.objects:
                href, header = f"{hub.storage}/{oid}", {}
                if size > hub.part_size:
                    count = -(-size // hub.part_size)
                    header = {f"{number:05}": f"{href}?part={number}" for number in range(1, count + 1)}
                    header["chunk_size"] = str(hub.part_size)
                    href = f"{href}/complete"
                verify = f"{hub.endpoint}/{repo}.git/info/lfs/objects/verify"
                answer["actions"] = {"upload": {"href": href, "header": header}, "verify": {"href": verify}}
            answers.append(answer)
        self.answer(200, {"transfer": "basic", "objects": answers}, {"Content-Type": "application/vnd.git-lfs+json"})

    def upload(self, body, query, oid, **_):
        with self.server.lock:
            if "part" in query:
                self.server.parts.setdefault(oid, {})[int(query["part"])] = body
            elif hashlib.sha256(body).hexdigest() != oid:
                raise Refusal(400, "The content does not have the announced sha256")
            else:
                self.server.objects[oid] = body
        self.answer(200, headers={"ETag": f'"{hashlib.md5(body).hexdigest()}"'})

    def complete(self, body, oid, **_):
        with self.server.lock:
            parts = self.server.parts.get(oid, {})
            wanted = [(part["partNumber"], part["etag"]) for part in json.loads(body)["parts"]]
            if wanted != [(number, f'"{hashlib.md5(parts[number]).hexdigest()}"') for number in sorted(parts)]:
                raise Refusal(400, "The parts are not those that were uploaded")
            data = b"".join(parts[number] for number in sorted(parts))
            if hashlib.sha256(data).hexdigest() != oid:
                raise Refusal(400, "The content does not have the announced sha256")
            self.server.objects[oid] = data
        self.answer(200, {})

    def verify(self, body, **_):
        request = json.loads(body)
        if len(self.server.objects.get(request["oid"], b"")) != request["size"]:
            raise Refusal(404, "The object was not uploaded")
        self.answer(200, {})

    def commit(self, body, query, repo, revision, **_):
        if "create_pr" not in query:
            self.require_write(repo)
        elif self.token() is None:
            raise Refusal(401, "Invalid username or password.")
        lines = [json.loads(line) for line in body.splitlines()]
        header = lines[0]["value"]
        with self.server.lock:
            repository, parent = self.readable(repo), self.commit_of(repo, revision)
            if "create_pr" not in query and header.get("parentCommit", parent.oid) != parent.oid:
                raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            files = dict(parent.files)
            for line in lines[1:]:
                kind, value = line["key"], line["value"]
                if kind == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif kind == "lfsFile":
                    if value["oid"] not in self.server.objects:
                        raise Refusal(400, f"The LFS object of {value['path']} was not uploaded")
                    files[value["path"]] = self.server.objects[value["oid"]]
                elif kind == "deletedFile":
                    if files.pop(value["path"], None) is None:
                        raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
                else:
                    raise Refusal(400, f"Unknown operation {kind}")
            commit = Commit(files, header["summary"], parent.oid)
            answer = {"commitUrl": f"{self.server.endpoint}/{repo}/commit/{commit.oid}", "commitOid": commit.oid}
            if "create_pr" in query:
                number = 1 + sum(name.startswith("refs/pr/") for name in repository.refs)
                revision = f"refs/pr/{number}"
                answer["pullRequestUrl"] = f"{self.server.endpoint}/{repo}/discussions/{number}"
            repository.move(revision, commit)
        self.answer(200, answer)


REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
KIND = r"(models|datasets|(?P<space>spaces))"
REVISION = r"(?P<revision>[^/]+)"
OID = r"(?P<oid>[0-9a-f]{64})"
ROUTES = [
    (r"GET /api/whoami-v2", "whoami"),
    (r"POST /api/validate-yaml", "validate"),
    (r"POST /api/repos/create", "create"),
    (rf"GET /api/{KIND}/{REPO}(/revision/{REVISION})?", "info"),
    (rf"GET /api/models/{REPO}/refs", "references"),
    (rf"GET /api/{KIND}/{REPO}/tree/{REVISION}(/(?P<path>.+))?", "tree"),
    (rf"POST /api/models/{REPO}/branch/{REVISION}", "create_branch"),
    (rf"POST /api/{KIND}/{REPO}/preupload/{REVISION}", "preupload"),
    (rf"POST /api/{KIND}/{REPO}/commit/{REVISION}", "commit"),
    (rf"GET (/datasets|(?P<space>/spaces))?/{REPO}/resolve/{REVISION}/(?P<path>.+)", "resolve"),
    (rf"POST /{REPO}\.git/info/lfs/objects/batch", "lfs_batch"),
    (rf"POST /{REPO}\.git/info/lfs/objects/verify", "verify"),
    (rf"GET /lfs/{OID}", "download"),
    (rf"PUT /lfs/{OID}", "upload"),
    (rf"POST /lfs/{OID}/complete", "complete"),
]


def is_lfs(path: str) -> bool:
    return path.endswith(LFS_SUFFIXES)


def blob_oid(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def describe(path: str, data: bytes) -> dict:
    """Return the entry of a file in a repository tree."""
    entry = {"type": "file", "path": path, "oid": blob_oid(data), "size": len(data)}
    if is_lfs(path):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry


@contextlib.contextmanager
def loopback_hub() -> Iterator[Hub]:
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()
