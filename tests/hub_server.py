"""A small hub on this machine: the answers that huggingface_hub asks for, and the accidents that happen to them."""

import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef" * 2 + "01234567"


def blob_hash(data: bytes) -> str:
    """Git's hash of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Hub:
    """What the server holds, does and saw.

    Attributes:
        repo: id of its only repository.
        files: content by name; what is longer than 1000 bytes is in LFS.
        card: metadata of the model card.
        damaged: names of files of which a byte is flipped on the way.
        cut: name -> number of bytes after which the connection breaks, once.
        slow: names of files that stop in the middle, until they are `released`.
        short: name -> number of bytes after which every answer breaks.
        whole: names of files of which no part can be asked for.
        etags: name -> the ETag in place of the hash.
        heads: name -> what more, or other, is said of a file.
        refused: name -> statuses of the next answers.
        moved: name -> where a redirect leads; `elsewhere` is a host that has all files.
        answer: changes the object that describes the repository.
        requests: method, path and range of every request.
        tokens: host and authorization of every request.
        sent_bytes: name -> bytes of content that were sent.
    """

    repo: str
    files: dict[str, bytes]
    card: dict[str, Any] | None = None
    damaged: set[str] = field(default_factory=set[str])
    cut: dict[str, int] = field(default_factory=dict[str, int])
    slow: set[str] = field(default_factory=set[str])
    short: dict[str, int] = field(default_factory=dict[str, int])
    whole: set[str] = field(default_factory=set[str])
    etags: dict[str, str] = field(default_factory=dict[str, str])
    heads: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])
    refused: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    moved: dict[str, str] = field(default_factory=dict[str, str])
    answer: Any = None
    requests: list[tuple[str, str, str | None]] = field(default_factory=list[tuple[str, str, str | None]])
    tokens: list[tuple[str, str | None]] = field(default_factory=list[tuple[str, str | None]])
    sent_bytes: Counter[str] = field(default_factory=Counter[str])
    endpoint: str = ""
    released: threading.Event = field(default_factory=threading.Event)

    def etag(self, name: str) -> str:
        """The hash by which the hub knows a file."""
        data = self.files[name]
        return hashlib.sha256(data).hexdigest() if len(data) > 1000 else blob_hash(data)

    def elsewhere(self, name: str) -> str:
        """The address of a file at another host."""
        return f"{self.endpoint.replace('127.0.0.1', 'localhost')}/elsewhere/{name}"

    def address(self, name: str) -> str:
        """The address of a file here."""
        return f"{self.endpoint}/{self.repo}/resolve/{COMMIT}/{name}"

    def description(self) -> dict[str, Any]:
        """The answer of /api/models/ID?blobs=true."""
        siblings: list[dict[str, Any]] = []
        for name, data in self.files.items():
            sibling: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": blob_hash(data)}
            if len(data) > 1000:
                sibling["lfs"] = {"size": len(data), "sha256": self.etag(name), "pointerSize": 130}
            siblings.append(sibling)
        about = {"_id": "1", "id": self.repo, "modelId": self.repo, "sha": COMMIT, "private": False, "tags": []}
        found = {**about, "siblings": siblings, "cardData": self.card}
        return self.answer(found) if self.answer else found

    def sent(self, method: str = "GET") -> list[str]:
        """The files that were asked for, in order."""
        found = [re.search(r"/resolve/[^/]+/(.*)", path) for kind, path, _ in self.requests if kind == method]
        return [match[1] for match in found if match]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path, self.headers.get("Range")))
        hub.tokens.append((self.headers["Host"].split(":")[0], self.headers.get("Authorization")))
        api = re.fullmatch(rf"/api/models/{re.escape(hub.repo)}(?:/revision/(.+))?", path)
        resolve = re.fullmatch(rf"/{re.escape(hub.repo)}/resolve/([^/]+)/(.+)", path)
        if api is not None and api[1] in (None, "main", COMMIT):
            return self._send(200, json.dumps(hub.description()).encode(), {"Content-Type": "application/json"})
        if resolve is not None and resolve[1] in ("main", COMMIT) and resolve[2] in hub.files:
            return self._file(resolve[2], hub.moved.get(resolve[2]))
        if path.startswith("/elsewhere/"):
            return self._file(path.removeprefix("/elsewhere/"), None)
        known = hub.repo in path
        return self._send(404, b"", {"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"})

    def _file(self, name: str, location: str | None) -> None:
        hub, data = self.hub, self.hub.files[name]
        total, linked = len(data), hub.etag(name)
        etag = f'"{hub.etags.get(name, linked)}"'
        headers = {"ETag": etag, "X-Repo-Commit": COMMIT, "X-Linked-Size": str(total), **hub.heads.get(name, {})}
        if refused := hub.refused.get(name):
            return self._send(refused.pop(0), b"", {})
        if location is not None:
            return self._send(302, b"", {**headers, "X-Linked-ETag": f'"{linked}"', "Location": location})
        if name in hub.damaged:
            data = data[:-1] + bytes([data[-1] ^ 1])
        wanted = self.headers.get("Range")
        if wanted is None or name in hub.whole or self.headers.get("If-Range", etag) != etag:
            return self._send(200, data, headers, name)
        start = int(wanted.removeprefix("bytes=").split("-")[0])
        if start >= total:
            return self._send(416, b"", headers)
        return self._send(206, data[start:], {"Content-Range": f"bytes {start}-{total - 1}/{total}", **headers}, name)

    def _send(self, status: int, data: bytes, headers: dict[str, str], name: str = "") -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            if value:
                self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        length = self.hub.cut.pop(name, self.hub.short.get(name))
        if name in self.hub.slow:
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.hub.sent_bytes[name] += len(data) // 2
            self.hub.released.wait(60)
            data = data[len(data) // 2 :]
        if name:
            self.hub.sent_bytes[name] += len(data[:length])
        self.wfile.write(data[:length])
        if length is not None or "Content-Length" in headers:
            self.wfile.flush()
            time.sleep(0.05)
            self.close_connection = True


@contextmanager
def serving(hub: Hub) -> Generator[Hub]:
    """Run the server while the block runs."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        hub.released.set()
        server.shutdown()
        thread.join()
