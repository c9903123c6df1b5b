"""A Hub on the loopback device, enough of one for an unmodified `huggingface_hub`.

Repositories live in memory; every commit is kept. A client orders faults with `POST /fail`: see `LoopbackHub.fail`.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_writer"
READER = "hf_reader"
KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}
# The real Hub's default .gitattributes.
LARGE = re.compile(r"\.(safetensors|arrow|parquet|onnx|bin|npz)$")

Files = dict[str, bytes]


@dataclass
class Commit:
    """One commit of a repository."""

    sha: str
    files: Files
    message: str
    changed: list[str]


@dataclass
class Repo:
    """A repository with one branch; the newest commit comes last."""

    private: bool
    commits: list[Commit] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Files, message: str, changed: list[str]) -> Commit:
        digest = hashlib.sha1(repr((len(self.commits), message, sorted(files))).encode())
        for name in sorted(files):
            digest.update(files[name])
        self.commits.append(Commit(digest.hexdigest(), files, message, changed))
        return self.commits[-1]

    def find(self, revision: str) -> Commit | None:
        if revision in ("main", "HEAD"):
            return self.commits[-1]
        revision = self.tags.get(revision, revision)
        return next((commit for commit in self.commits if commit.sha == revision), None)


class LoopbackHub:
    """The server; a context manager.

    Attributes:
        repos: Repositories by kind and name, such as `("model", "mstr/refiner-6lang")`.
        requests: Method and path of everything that was asked for.
        url: Where it listens.
    """

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.requests: list[str] = []
        self.large: dict[str, bytes] = {}
        self._faults: list[list[Any]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.hub = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fail(self, pattern: str, status: int, times: int = 1, after: bool = False) -> None:
        """Answers the next requests whose "METHOD path" matches with a status.

        Args:
            pattern: Regular expression.
            status: The status; 0 cuts the connection.
            times: How many requests fail.
            after: Whether the request is carried out all the same, so that only its answer is lost.
        """
        self._faults.append([re.compile(pattern), status, times, after])

    def fault(self, request: str) -> tuple[int, bool] | None:
        """Takes the fault for a request, if there is one."""
        for fault in self._faults:
            if fault[2] and fault[0].search(request):
                fault[2] -= 1
                return fault[1], fault[3]
        return None


class _Answer(Exception):
    """Ends a request with an error."""

    def __init__(self, status: int, message: str, code: str = "", **body: Any):
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, body


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> LoopbackHub:
        return self.server.hub  # type: ignore[attr-defined]

    def log_message(self, *_: Any) -> None:
        pass

    def _serve(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        request = f"{self.command} {path}"
        self.hub.requests.append(request)
        fault = self.hub.fault(request)
        if fault and not fault[1]:
            return self._break(fault[0])
        self.lost = fault[0] if fault else None
        try:
            for pattern, action in _ROUTES:
                if match := re.fullmatch(pattern, request):
                    return action(self, **match.groupdict())
            raise _Answer(404, f"the loopback Hub has no {request}")
        except _Answer as answer:
            headers = {"X-Error-Message": answer.message}
            if answer.code:
                headers["X-Error-Code"] = answer.code
            self._send({"error": answer.message, **answer.body}, answer.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _break(self, status: int) -> None:
        if status:
            self._send({"error": "out of order"}, status, broken=True)
        else:
            self.close_connection = True
            self.connection.close()

    def _send(
        self, content: Any, status: int = 200, headers: dict[str, str] | None = None, broken: bool = False
    ) -> None:
        if not broken and self.lost is not None:
            return self._break(self.lost)
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self) -> dict[str, Any]:
        return json.loads(self.body)

    def _writer(self) -> None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in (TOKEN, READER):
            raise _Answer(401, "Invalid credentials in Authorization header")
        if token == READER:
            raise _Answer(403, "You don't have the rights to write to this repository")

    def _repo(self, kinds: str, name: str) -> Repo:
        repo = self.hub.repos.get((KINDS[kinds], name))
        signed = self.headers.get("Authorization", "").removeprefix("Bearer ") in (TOKEN, READER)
        if repo is None or (repo.private and not signed):
            # The real Hub does not tell strangers what exists.
            raise _Answer(404 if signed else 401, "Repository not found", "RepoNotFound")
        return repo

    def _commit_of(self, repo: Repo, revision: str) -> Commit:
        commit = repo.find(revision)
        if commit is None:
            raise _Answer(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def fail(self) -> None:
        self.hub.fail(**self._json())
        self._send({})

    # Accounts and repositories.

    def whoami(self) -> None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in (TOKEN, READER):
            raise _Answer(401, "Invalid credentials in Authorization header")
        self._send({"type": "user", "name": "mstr", "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def create(self) -> None:
        self._writer()
        wanted = self._json()
        kind = wanted.get("type") or "model"
        name = "/".join(filter(None, [wanted.get("organization") or "mstr", wanted["name"]]))
        prefix = "" if kind == "model" else f"{kind}s/"
        url = f"{self.hub.url}/{prefix}{name}"
        if (kind, name) in self.hub.repos:
            raise _Answer(409, "You already created this repo", url=url)
        private = wanted.get("private") or wanted.get("visibility") == "private"
        repo = self.hub.repos[kind, name] = Repo(bool(private))
        repo.commit({".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit", [".gitattributes"])
        self._send({"url": url, "name": name, "id": name})

    def validate_yaml(self) -> None:
        """Checks the metadata of a card as the Hub does, as far as these cards use them."""
        wanted = self._json()
        match = re.match(r"---\n(.*?)\n---", wanted["content"], re.DOTALL)
        errors = []
        data = yaml.safe_load(match[1]) if match else {}
        for key, kind in (("license", str), ("language", list), ("tags", list), ("widget", list)):
            if key in data and not isinstance(data[key], kind):
                errors.append({"message": f'"{key}" must be a {kind.__name__}'})
        for lang in data.get("language", []):
            if not re.fullmatch(r"[a-z]{2,3}|multilingual|code", lang):
                errors.append({"message": f'"language" {lang} is no ISO 639 code'})
        for entry in data.get("widget", []):
            if not entry.get("src", "").startswith("https://"):
                errors.append({"message": '"widget" src must be a URL'})
        for model in data.get("model-index", []):
            for result in model["results"]:
                if {"task", "dataset", "metrics"} - result.keys() or not {"name", "type"} <= result["dataset"].keys():
                    errors.append({"message": '"model-index" result is incomplete'})
        if wanted["repoType"] == "space" and "sdk" not in data:
            errors.append({"message": '"sdk" is required'})
        self._send({"errors": errors, "warnings": []}, 400 if errors else 200)

    def info(self, kinds: str, name: str, revision: str = "main") -> None:
        repo = self._repo(kinds, name)
        commit = self._commit_of(repo, revision)
        self._send(
            {
                "id": name,
                "modelId": name,
                "sha": commit.sha,
                "private": repo.private,
                "tags": [],
                "siblings": [{"rfilename": path} for path in sorted(commit.files)],
            }
        )

    def refs(self, kinds: str, name: str) -> None:
        repo = self._repo(kinds, name)
        main = {"name": "main", "ref": "refs/heads/main", "targetCommit": repo.commits[-1].sha}
        tags = [{"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": sha} for tag, sha in repo.tags.items()]
        self._send({"branches": [main], "tags": tags, "converts": []})

    def tag(self, kinds: str, name: str, revision: str) -> None:
        self._writer()
        repo = self._repo(kinds, name)
        repo.tags[self._json()["tag"]] = self._commit_of(repo, revision).sha
        self._send({})

    def tree(self, kinds: str, name: str, revision: str, folder: str | None = None) -> None:
        commit = self._commit_of(self._repo(kinds, name), revision)
        prefix = f"{folder}/" if folder else ""
        inside = [path.removeprefix(prefix).split("/") for path in sorted(commit.files) if path.startswith(prefix)]
        if folder and not inside:
            raise _Answer(404, f"{folder} does not exist", "EntryNotFound")
        depth = None if "recursive=true" in self.path.lower() else 1
        # Folders are entries too.
        paths = {prefix + "/".join(parts[:end]) for parts in inside for end in range(1, len(parts) + 1)[:depth]}
        self._send([_entry(path, commit.files.get(path)) for path in sorted(paths)])

    def paths_info(self, kinds: str, name: str, revision: str) -> None:
        commit = self._commit_of(self._repo(kinds, name), revision)
        if self.headers.get("Content-Type") == "application/json":
            paths = self._json()["paths"]
        else:
            paths = re.findall(r"paths=([^&]*)", unquote(self.body.decode()))
        folders = {path.rsplit("/", end)[0] for path in commit.files for end in range(1, path.count("/") + 1)}
        self._send([_entry(path, commit.files.get(path)) for path in paths if path in commit.files.keys() | folders])

    # Uploads.

    def preupload(self, kinds: str, name: str, revision: str) -> None:
        self._writer()
        files = self._commit_of(self._repo(kinds, name), revision).files
        modes = []
        for wanted in self._json()["files"]:
            path = wanted["path"]
            mode = {"path": path, "uploadMode": "lfs" if LARGE.search(path) else "regular", "shouldIgnore": False}
            if path in files:
                mode["oid"] = _sha256(files[path]) if LARGE.search(path) else _git_oid(files[path])
            modes.append(mode)
        self._send({"files": modes})

    def lfs_batch(self, name: str) -> None:
        self._writer()
        objects = []
        for wanted in self._json()["objects"]:
            entry: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.large:
                entry["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}"}}
            objects.append(entry)
        self._send({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        if _sha256(self.body) != oid:
            raise _Answer(400, "content does not match its SHA-256")
        self.hub.large[oid] = self.body
        self._send({})

    def commit(self, kinds: str, name: str, revision: str) -> None:
        self._writer()
        repo = self._repo(kinds, name)
        head = self._commit_of(repo, revision)
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit") not in (None, head.sha):
            raise _Answer(412, "A commit has happened since. Please refresh and try again.")
        files, changed = dict(head.files), []
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                continue
            changed.append(value["path"])
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise _Answer(400, f"unknown operation {line['key']}")
        made = repo.commit(files, header["summary"], changed)
        prefix = "" if kinds == "models" else f"{kinds}/"
        url = f"{self.hub.url}/{prefix}{name}/commit/{made.sha}"
        self._send({"success": True, "commitOid": made.sha, "commitUrl": url, "hookOutput": ""})

    # Downloads.

    def resolve(self, name: str, revision: str, path: str, kinds: str | None = None) -> None:
        commit = self._commit_of(self._repo(kinds or "models", name), revision)
        if path not in commit.files:
            raise _Answer(404, "Entry not found", "EntryNotFound")
        content = commit.files[path]
        headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes", "ETag": f'"{_git_oid(content)}"'}
        if LARGE.search(path):
            etag = f'"{_sha256(content)}"'
            headers |= {"ETag": etag, "X-Linked-Etag": etag, "X-Linked-Size": str(len(content))}
        status = 200
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(match[1]), int(match[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{min(last, len(content) - 1)}/{len(content)}"
            content, status = content[first : last + 1], 206
        self._send(content, status, headers)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(path: str, content: bytes | None) -> dict[str, Any]:
    if content is None:
        return {"type": "directory", "path": path, "size": 0, "oid": _git_oid(path.encode())}
    entry = {"type": "file", "path": path, "size": len(content), "oid": _git_oid(content)}
    if LARGE.search(path):
        entry["lfs"] = {"oid": _sha256(content), "size": len(content), "pointerSize": 134}
    return entry


_NAME = r"(?P<name>[\w.-]+/[\w.-]+)"
_API = rf"/api/(?P<kinds>models|datasets|spaces)/{_NAME}"
_REVISION = r"/(?P<revision>[^/]+)"
_ROUTES = [
    (r"POST /fail", _Handler.fail),
    (r"GET /api/whoami-v2", _Handler.whoami),
    (r"POST /api/repos/create", _Handler.create),
    (r"POST /api/validate-yaml", _Handler.validate_yaml),
    (rf"GET {_API}", _Handler.info),
    (rf"GET {_API}/revision{_REVISION}", _Handler.info),
    (rf"GET {_API}/refs", _Handler.refs),
    (rf"POST {_API}/tag{_REVISION}", _Handler.tag),
    (rf"GET {_API}/tree{_REVISION}(/(?P<folder>.+))?", _Handler.tree),
    (rf"POST {_API}/paths-info{_REVISION}", _Handler.paths_info),
    (rf"POST {_API}/preupload{_REVISION}", _Handler.preupload),
    (rf"POST {_API}/commit{_REVISION}", _Handler.commit),
    (rf"POST /(datasets/|spaces/)?{_NAME}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (r"PUT /lfs/(?P<oid>[0-9a-f]{64})", _Handler.lfs_put),
    (rf"(GET|HEAD) /((?P<kinds>datasets|spaces)/)?{_NAME}/resolve{_REVISION}/(?P<path>.+)", _Handler.resolve),
]
