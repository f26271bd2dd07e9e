"""
A Hub on loopback for the real client: repos with commits, branches, tags and pull requests, large files, accounts and
faults. Strict where the real one is, and without xet (set HF_HUB_DISABLE_XET=1).
"""

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

__all__ = ["SIGNATURE", "Fault", "HubServer"]

SIGNATURE = "whoever-has-this-may-write"  # of the URLs that large files are sent to

Files = dict[str, bytes]


@dataclass
class Fault:
    """
    What goes wrong with requests whose method and raw path match.

    Attributes:
        method, pattern (`str`): Regular expressions (the second is searched for in the path).
        what (`int`, `str` or `Callable`): A status; `"die"` without an answer, `"stall"` first, `"truncate"` it,
            `"garbage"` in place of JSON; or something to do just before the normal answer, given the handler.
        times (`int`, *optional*): How often; `None` for always.
        headers (`dict[str, str]`): More headers of a status.
    """

    method: str
    pattern: str
    what: int | str | Callable[["_Handler"], None]
    times: int | None = 1
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class _Repo:
    """Commits by their sha, oldest first in `log`; branches and pull requests in `heads`."""

    commits: dict[str, Files] = field(default_factory=dict)
    parents: dict[str, str | None] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    requests: list[dict[str, Any]] = field(default_factory=list)

    def commit(self, branch: str, files: Files, title: str = "", parent: str | None = None) -> str:
        parent = parent or self.heads.get(branch)
        listed = sorted((name, hashlib.sha1(content).hexdigest()) for name, content in files.items())
        sha = hashlib.sha1(repr((listed, parent, title, len(self.commits))).encode()).hexdigest()
        self.commits[sha], self.parents[sha], self.titles[sha] = files, parent, title
        self.heads[branch] = sha
        return sha


class HubServer:
    """
    Serves local folders as repos at one commit each, and repos that are written to.

    Args:
        models, datasets (`dict[str, Path]`): Repo id → folder, read anew at each request until somebody writes there.

    Attributes:
        repos (`dict`): (kind, id) → folder or repo.
        tokens (`dict[str, tuple[str, str]]`): Token → user and role ("read" or "write").
        settings (`dict[str, dict]`): Id → `private`, `gated`, `disabled`, `security`, `tags`, `base_models`, and what
            a Hub of somebody else's may do: `no_sha` in what it says of a repo, `relative_urls` of commits, `served`
            (file → other bytes than it lists), `compare` (the branch with which uploads are compared).
        quota (`int`, *optional*): Bytes of large files that are taken.
        faults (`list[Fault]`): What goes wrong.
        requests (`list[str]`): Method and path of each request.
        authorizations (`list[tuple]`): Method and path, and the Authorization header.
        uploads (`list[tuple[str, bytes]]`): Path and body of each request that has one.
    """

    def __init__(self, models: dict[str, Path], datasets: dict[str, Path] | None = None):
        self.reset()
        self.repos = {("models", name): folder for name, folder in models.items()}
        self.repos |= {("datasets", name): folder for name, folder in (datasets or {}).items()}
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def reset(self) -> None:
        """Forget everything."""
        self.repos: dict[tuple[str, str], Path | _Repo] = {}
        self.tokens: dict[str, tuple[str, str]] = {}
        self.settings: dict[str, dict[str, Any]] = {}
        self.large: dict[str, bytes] = {}
        self.quota: int | None = None
        self.stall_seconds = 2.0
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.authorizations: list[tuple[str, str | None]] = []
        self.uploads: list[tuple[str, bytes]] = []
        self.lock = threading.RLock()

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self._server.shutdown()
        self._server.server_close()

    @staticmethod
    def sha(kind: str, name: str) -> str:
        """The one commit of a folder: 40 hexadecimal digits."""
        return hashlib.sha1(f"{kind}/{name}".encode()).hexdigest()

    def files(self, kind: str, name: str) -> Files:
        """What the main branch holds."""
        return self.at(kind, name, "main")[1]

    def commit(self, name: str, files: Files, revision: str = "main", title: str = "a commit") -> str:
        """Write files to a model's branch, as somebody else might; the others stay."""
        with self.lock:
            repo = self.written("models", name)
            return repo.commit(revision, {**repo.commits.get(repo.heads.get(revision, ""), {}), **files}, title)

    def head(self, name: str, revision: str = "main") -> Files:
        """What a model's branch holds."""
        return self.at("models", name, revision)[1]

    def history(self, name: str, revision: str = "main") -> list[str]:
        """The commits of a model's branch, newest first."""
        repo = self.written("models", name)
        found, sha = [], repo.heads.get(revision)
        while sha is not None:
            found.append(sha)
            sha = repo.parents[sha]
        return found

    def pull_requests(self, name: str) -> list[dict[str, Any]]:
        """Title, description, revision and files of a model's pull requests."""
        repo = self.written("models", name)
        return [{**entry, "files": repo.commits[repo.heads[entry["revision"]]]} for entry in repo.requests]

    def written(self, kind: str, name: str) -> _Repo:
        """The repo as one that can be written to."""
        found = self.repos.get((kind, name))
        if isinstance(found, _Repo):
            return found
        repo = self.repos[kind, name] = _Repo()
        if found is not None:
            sha = self.sha(kind, name)
            repo.commits[sha], repo.parents[sha], repo.titles[sha] = _read(found), None, "first"
            repo.heads["main"] = sha
        return repo

    def at(self, kind: str, name: str, revision: str) -> tuple[str, Files]:
        """The commit that a revision stands for, and its files. A `KeyError` without one."""
        with self.lock:
            found = self.repos[kind, name]
            if isinstance(found, Path):
                sha = self.sha(kind, name)
                if revision not in ("main", sha):
                    raise KeyError(revision)
                return sha, _read(found)
            sha = found.heads.get(revision) or found.tags.get(revision) or revision
            return sha, found.commits[sha]


def _read(folder: Path) -> Files:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _is_large(name: str, size: int) -> bool:
    return size > 0 and (name.endswith((".safetensors", ".bin")) or size > 5_000_000)


class _Answer(Exception):
    """An error to answer with."""

    def __init__(self, status: int, code: str = "", message: str = "", **headers: str):
        self.status, self.headers = status, {"X-Error-Code": code, "X-Error-Message": message or code, **headers}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub, line = self.hub, f"{self.command} {self.path}"
        with hub.lock:
            hub.requests.append(line)
            hub.authorizations.append((line, self.headers.get("Authorization")))
            if body:
                hub.uploads.append((self.path, body))
            fault = next((f for f in hub.faults if self._matches(f)), None)
            if fault is not None and fault.times is not None:
                fault.times -= 1
        self.fault = fault.what if fault is not None else None
        try:
            if isinstance(self.fault, int):
                raise _Answer(self.fault, message=f"a fault of {self.fault}", **fault.headers)
            if self.fault in ("die", "stall"):
                time.sleep(hub.stall_seconds if self.fault == "stall" else 0)
                self.close_connection = True
                return
            if callable(self.fault):
                self.fault(self)
            self._route(body)
        except _Answer as error:
            self._send(error.status, b"", {name: value for name, value in error.headers.items() if value})

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _matches(self, fault: Fault) -> bool:
        if fault.times == 0 or not re.fullmatch(fault.method, self.command):
            return False
        return bool(re.search(fault.pattern, self.path))

    # ---- Who may do what

    def _user(self) -> tuple[str, str] | None:
        header = self.headers.get("Authorization")
        if not header:
            return None
        if header.removeprefix("Bearer ") not in self.hub.tokens:
            raise _Answer(401, message="Invalid credentials in Authorization header")
        return self.hub.tokens[header.removeprefix("Bearer ")]

    def _writer(self, name: str, pull_request: bool = False) -> str:
        user = self._user()
        if user is None:
            raise _Answer(401, message="Invalid username or password.")
        if user[1] != "write" or (not pull_request and name.split("/")[0] != user[0]):
            raise _Answer(403, message="You don't have the rights to write there")
        return user[0]

    def _readable(self, kind: str, name: str) -> dict[str, Any]:
        user, settings = self._user(), self.hub.settings.get(name, {})
        own = user is not None and user[0] == name.split("/")[0]
        if (kind, name) not in self.hub.repos or (settings.get("private") and not own):
            raise _Answer(404 if user else 401, "RepoNotFound", "Repository not found")
        return settings

    # ---- Where to

    def _route(self, body: bytes) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.split("/")[1:]]
        query = {key: value[0] for key, value in parse_qs(urlsplit(self.path).query).items()}
        if parts[0] == "large":
            return self._put(parts[1], body)
        if parts[0] == "api":
            if parts[1] == "whoami-v2":
                user = self._user()
                if user is None:
                    raise _Answer(401, message="Invalid credentials in Authorization header")
                role = {"accessToken": {"role": user[1]}}
                return self._json({"type": "user", "name": user[0], "fullname": user[0], "orgs": [], "auth": role})
            if parts[1:3] == ["repos", "create"]:
                return self._create(json.loads(body))
            if parts[1] == "validate-yaml":
                return self._validate(json.loads(body)["content"])
            if parts[1] in ("models", "datasets") and len(parts) >= 4:
                return self._api(parts[1], f"{parts[2]}/{parts[3]}", parts[4:], query, body)
        if parts[0] == "datasets" and parts[3:4] == ["resolve"]:
            return self._file("datasets", f"{parts[1]}/{parts[2]}", parts[4], "/".join(parts[5:]))
        if parts[2:3] == ["resolve"]:
            return self._file("models", f"{parts[0]}/{parts[1]}", parts[3], "/".join(parts[4:]))
        if parts[2:] == ["info", "lfs", "objects", "batch"]:
            return self._batch(f"{parts[0]}/{parts[1].removesuffix('.git')}", json.loads(body))
        raise _Answer(404, "RepoNotFound")

    def _api(self, kind: str, name: str, rest: list[str], query: dict[str, str], body: bytes) -> None:
        action, *rest = rest or ["revision", "main"]
        pull_request = query.get("create_pr") == "1"
        if action == "auth-check":
            self._readable(kind, name)
            if rest == ["write"]:
                self._writer(name)
            return self._json({})
        settings = self._readable(kind, name)
        try:
            if action == "revision":
                return self._info(kind, name, rest[0] if rest else "main", settings, query)
            if action == "tree":
                files = self.hub.at(kind, name, rest[0])[1]
                folder = "/".join(rest[1:])
                return self._json([_entry(n, c) for n, c in files.items() if n.startswith(folder)])
            if action == "paths-info":
                wanted = parse_qs(body.decode()).get("paths", [])
                files = self.hub.at(kind, name, rest[0])[1]
                return self._json([_entry(n, c) for n, c in files.items() if n in wanted])
            repo = self.hub.written(kind, name)
            if action == "refs":
                heads = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": s} for n, s in repo.heads.items()]
                tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": s} for n, s in repo.tags.items()]
                return self._json({"branches": heads, "tags": tags, "converts": []})
            if action == "commits":
                log = self.hub.history(name, rest[0])
                return self._json(
                    [
                        {"id": s, "title": repo.titles[s], "message": "", "date": _DATE, "authors": [{"user": "me"}]}
                        for s in log
                    ]
                )
            if action in ("branch", "tag"):
                self._writer(name)
                return self._point(repo, action, rest[0], json.loads(body or b"{}"))
            if action == "preupload":
                self._writer(name, pull_request or rest[0].startswith("refs/pr/"))
                branch = settings.get("compare", rest[0])
                return self._preupload(self.hub.at(kind, name, branch)[1], json.loads(body)["files"])
            if action == "commit":
                user = self._writer(name, pull_request or rest[0].startswith("refs/pr/"))
                return self._commit(repo, name, rest[0], pull_request, body, user)
        except KeyError as error:
            raise _Answer(404, "RevisionNotFound") from error
        raise _Answer(404, "EntryNotFound")

    # ---- Reading

    def _info(self, kind: str, name: str, revision: str, settings: dict[str, Any], query: dict[str, str]) -> None:
        sha, files = self.hub.at(kind, name, revision)
        info = {
            "id": name,
            "modelId": name,
            "sha": sha,
            "gated": settings.get("gated", False),
            "downloads": 0,
            "likes": 0,
        }
        info |= {"private": settings.get("private", False), "disabled": settings.get("disabled", False)}
        info["tags"] = settings.get("tags", [])
        if settings.get("no_sha"):
            del info["sha"]
        entries = [_entry(file, content) for file, content in files.items()]
        keys = ("size", "lfs") if "blobs" in query else ()
        info["siblings"] = [
            {"rfilename": e["path"], "blobId": e["oid"], **{k: e[k] for k in keys if k in e}} for e in entries
        ]
        if "securityStatus" in query and "security" in settings:
            info["securityRepoStatus"] = settings["security"]
        if query.get("expand") == "baseModels":
            info["baseModels"] = settings.get("base_models")
        self._json(info)

    def _file(self, kind: str, name: str, revision: str, file: str) -> None:
        settings = self._readable(kind, name)
        if settings.get("gated"):
            raise _Answer(403, "GatedRepo", "Access to this repo is restricted")
        if settings.get("disabled"):
            raise _Answer(403, message="Access to this resource is disabled.")
        try:
            sha, files = self.hub.at(kind, name, revision)
        except KeyError as error:
            raise _Answer(404, "RevisionNotFound") from error
        if file not in files:
            raise _Answer(404, "EntryNotFound", **{"X-Repo-Commit": sha})
        content, entry = settings.get("served", {}).get(file, files[file]), _entry(file, files[file])
        headers = {"X-Repo-Commit": sha, "ETag": f'"{entry["oid"]}"'}
        if "lfs" in entry:
            headers |= {"X-Linked-Etag": f'"{entry["lfs"]["oid"]}"', "X-Linked-Size": str(len(content))}
        self._send(200, content, headers)

    # ---- Writing

    def _create(self, asked: dict[str, Any]) -> None:
        user = self._user()
        name = f"{asked.get('organization') or (user[0] if user else '')}/{asked['name']}"
        self._writer(name)
        url = f"{self.hub.url}/{name}"
        if ("models", name) in self.hub.repos:
            return self._send(409, json.dumps({"url": url}).encode(), {"Content-Type": "application/json"})
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.hub.settings[name] = {**self.hub.settings.get(name, {}), "private": private}
        self.hub.commit(name, {".gitattributes": b"*.safetensors filter=lfs\n"}, title="initial commit")
        return self._json({"url": url})

    def _validate(self, content: str) -> None:
        errors = _yaml_errors(content)
        answer = json.dumps({"errors": [{"message": error} for error in errors], "warnings": []}).encode()
        self._send(400 if errors else 200, answer, {"Content-Type": "application/json"})

    def _point(self, repo: _Repo, action: str, name: str, asked: dict[str, Any]) -> None:
        there, name = (repo.heads, name) if action == "branch" else (repo.tags, asked.get("tag", name))
        if name in there:
            raise _Answer(409, message="Reference already exists")
        start = asked.get("startingPoint") or "main"
        there[name] = repo.heads.get(start, start)
        self._json({})

    def _preupload(self, present: Files, files: list[dict[str, Any]]) -> None:
        answer = []
        for file in files:
            large = _is_large(file["path"], file["size"])
            there = present.get(file["path"])
            entry = _entry(file["path"], there) if there is not None else None
            oid = entry and (entry["lfs"]["oid"] if "lfs" in entry else entry["oid"])
            mode = "lfs" if large else "regular"
            answer.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": answer})

    def _batch(self, name: str, asked: dict[str, Any]) -> None:
        self._readable("models", name)
        self._writer(name, pull_request=True)
        answer, large = [], self.hub.large
        for item in asked["objects"]:
            if item["oid"] not in large:
                if self.hub.quota is not None and item["size"] > self.hub.quota:
                    raise _Answer(403, message="Private repository storage limit reached")
                item["actions"] = {
                    "upload": {"href": f"{self.hub.url}/large/{item['oid']}?Signature={SIGNATURE}", "header": {}}
                }
            answer.append(item)
        self._json({"transfer": "basic", "objects": answer})

    def _put(self, oid: str, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise _Answer(400, message="other bytes than were announced")
        self.hub.large[oid] = body
        self._send(200, b"", {"ETag": f'"{oid}"'})

    def _commit(self, repo: _Repo, name: str, branch: str, pull_request: bool, body: bytes, user: str) -> None:
        entries = [json.loads(line) for line in body.splitlines() if line]
        header = next(entry["value"] for entry in entries if entry["key"] == "header")
        with self.hub.lock:
            head = repo.heads[branch]
            if header.get("parentCommit") not in (None, head):
                raise _Answer(412, message="A commit has happened since. Please refresh and try again.")
            files = dict(repo.commits[head])
            for entry in entries:
                key, value = entry["key"], entry["value"]
                if key == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif key == "lfsFile":
                    files[value["path"]] = self.hub.large[value["oid"]]
                elif key == "deletedFile":
                    del files[value["path"]]
                elif key == "deletedFolder":
                    files = {n: c for n, c in files.items() if not n.startswith(value["path"].rstrip("/") + "/")}
            answer = {}
            if pull_request:
                number = len(repo.requests) + 1
                branch = f"refs/pr/{number}"
                opened = {"title": header["summary"], "description": header.get("description", ""), "author": user}
                repo.requests.append({**opened, "revision": branch})
                answer["pullRequestUrl"] = f"{self.hub.url}/{name}/discussions/{number}"
            sha = repo.commit(branch, files, header["summary"], parent=head)
        origin = "" if self.hub.settings.get(name, {}).get("relative_urls") else self.hub.url
        self._json({**answer, "commitOid": sha, "commitUrl": f"{origin}/{name}/commit/{sha}", "success": True})

    # ---- Answering

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        if self.fault == "garbage" and status < 300:
            content = b"<html>a captive portal</html>"
        start, end = 0, len(content)
        if status == 200 and (asked := self.headers.get("Range", "")).startswith("bytes="):
            first, _, last = asked[6:].partition("-")
            start, end, status = int(first or 0), int(last) + 1 if last else end, 206
            headers = {**headers, "Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}
        content = content[start:end]
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault == "truncate":
            content, self.close_connection = content[: len(content) // 2], True
        self.wfile.write(content)


_DATE = "2026-01-01T00:00:00.000Z"


def _entry(name: str, content: bytes) -> dict[str, Any]:
    """A file as the tree lists it: with its git hash, and the SHA-256 of a large one."""
    oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry = {"type": "file", "path": name, "size": len(content), "oid": oid}
    if _is_large(name, len(content)):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        entry["lfs"]["sha256"] = entry["lfs"]["oid"]
    return entry


def _yaml_errors(card: str) -> list[str]:
    """What the Hub would not take of a card's YAML."""
    block = re.match(r"\s*---\r?\n(.*?)\r?\n---", card, re.DOTALL)
    if not block:
        return []
    try:
        metadata = yaml.safe_load(block[1]) or {}
    except yaml.YAMLError as error:
        return [f"not YAML: {error}"]
    if not isinstance(metadata, dict):
        return ["metadata is no mapping"]
    errors = []
    for key in ("license", "pipeline_tag", "library_name", "base_model_relation"):
        if not isinstance(metadata.get(key, ""), str):
            errors.append(f"{key} must be a string")
    for key in ("base_model", "tags", "datasets", "metrics", "language"):
        values = metadata.get(key, [])
        values = values if isinstance(values, list) else [values]
        if not all(isinstance(value, str) for value in values):
            errors.append(f"{key} must be a string or a list of them")
    if metadata.get("base_model_relation", "merge") not in ("adapter", "merge", "quantized", "finetune"):
        errors.append("base_model_relation is none that is known")
    try:
        for model in metadata.get("model-index", []):
            assert isinstance(model["name"], str)
            for result in model["results"]:
                assert all(isinstance(result[k]["type"], str) for k in ("task", "dataset"))
                assert isinstance(result["dataset"]["name"], str)
                assert all(isinstance(metric["type"], str) and "value" in metric for metric in result["metrics"])
    except (AssertionError, KeyError, TypeError, AttributeError) as error:
        errors.append(f"model-index has another form: {error!r}")
    return errors
