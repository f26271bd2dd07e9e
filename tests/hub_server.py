"""A Hub on loopback, as far as downloading goes: the real client asks it for infos, trees and files over HTTP."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

__all__ = ["HubServer"]


class HubServer:
    """
    Serves local folders as repos at one commit each.

    Args:
        models, datasets (`dict[str, Path]`): Repo id → folder.

    Attributes:
        requests (`list[str]`): Method and path of each request, for tests to look at.
    """

    def __init__(self, models: dict[str, Path], datasets: dict[str, Path] | None = None):
        self.repos = {("models", name): folder for name, folder in models.items()}
        self.repos |= {("datasets", name): folder for name, folder in (datasets or {}).items()}
        self.requests: list[str] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self._server.shutdown()
        self._server.server_close()

    @staticmethod
    def sha(kind: str, name: str) -> str:
        """The commit of a repo: 40 hexadecimal digits."""
        return hashlib.sha1(f"{kind}/{name}".encode()).hexdigest()

    def files(self, kind: str, name: str) -> dict[str, bytes]:
        folder = self.repos[kind, name]
        return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append(f"{self.command} {self.path}")
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/api/"):
            kind, namespace, name, *rest = [*path.split("/")[2:], "", ""]
            if (kind, f"{namespace}/{name}") in self.hub.repos:
                return self._api(kind, f"{namespace}/{name}", [part for part in rest if part], body)
        elif "/resolve/" in path:
            repo, _, file = path.partition("/resolve/")
            kind, name = ("datasets", repo[10:]) if repo.startswith("/datasets/") else ("models", repo[1:])
            if (kind, name) in self.hub.repos:
                return self._file(kind, name, *file.split("/", 1))
        return self._error(404, "RepoNotFound")

    def _api(self, kind: str, name: str, rest: list[str], body: bytes) -> None:
        files, sha = self.hub.files(kind, name), self.hub.sha(kind, name)
        if len(rest) > 1 and rest[1] not in ("main", sha):
            return self._error(404, "RevisionNotFound")
        if not rest or rest[0] == "revision":
            siblings = [{"rfilename": file, "size": len(content)} for file, content in files.items()]
            info = {"id": name, "modelId": name, "sha": sha, "private": False, "gated": False, "disabled": False}
            return self._json({**info, "siblings": siblings, "tags": [], "downloads": 0, "likes": 0})
        entries = [
            {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for file, content in files.items()
        ]
        if rest[0] == "tree":
            folder = "/".join(rest[2:])
            return self._json([entry for entry in entries if entry["path"].startswith(folder)])
        if rest[0] == "paths-info":
            wanted = parse_qs(body.decode()).get("paths", [])
            return self._json([entry for entry in entries if entry["path"] in wanted])
        return self._error(404, "EntryNotFound")

    def _file(self, kind: str, name: str, revision: str, file: str) -> None:
        sha, content = self.hub.sha(kind, name), self.hub.files(kind, name).get(file)
        if revision not in ("main", sha):
            return self._error(404, "RevisionNotFound")
        if content is None:
            return self._error(404, "EntryNotFound", {"X-Repo-Commit": sha})
        return self._answer(200, content, {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'})

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self._answer(status, b"", {"X-Error-Code": code, "X-Error-Message": code, **(headers or {})})

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        start, end = 0, len(content)
        if status == 200 and (asked := self.headers.get("Range", "")).startswith("bytes="):
            first, _, last = asked[6:].partition("-")
            start, end, status = int(first or 0), int(last) + 1 if last else end, 206
            headers = {**headers, "Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content[start:end]))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[start:end])
