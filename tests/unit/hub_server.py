"""A stand-in for the hubs: the parts of their interfaces that fetching uses, on a local port, with faults on demand."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "5" * 40


class Hub:
    """What is on the stand-in, and what it was asked.

    Attributes:
        address: where it listens.
        files: ``repository → {path: content}``.
        break_after: file names whose download breaks off after so many bytes, until taken out.
        asked: requests as ``METHOD path``, with the range where one was asked for.
        refuse: status that every request gets, or 0.
    """

    def __init__(self) -> None:
        self.address = ""
        self.files: dict[str, dict[str, bytes]] = {}
        self.break_after: dict[str, int] = {}
        self.asked: list[str] = []
        self.refuse = 0


@contextmanager
def running() -> Iterator[Hub]:
    """A stand-in that answers while the block runs."""
    hub = Hub()

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    state: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        url = urlsplit(self.path)
        path, query = unquote(url.path).strip("/"), parse_qs(url.query)
        ranged = self.headers.get("Range")
        self.state.asked.append(f"{self.command} {path}{' ' + ranged if ranged else ''}")
        if self.state.refuse:
            self._json({"error": "refused", "Message": "refused"}, self.state.refuse)
            return
        for name, files in self.state.files.items():
            if name in path:
                self._repository(name, files, path, query)
                return
        self._json({"error": "Repository not found", "Code": 404, "Message": "not found"}, 404)

    def _repository(self, name: str, files: dict[str, bytes], path: str, query: dict[str, list[str]]) -> None:
        if "/resolve/" in path:
            self._file(files, path.partition("/resolve/")[2].partition("/")[2])
        elif "FilePath" in query:
            self._file(files, query["FilePath"][0])
        elif "/tree/" in path or path.endswith("/repo/files") or path.endswith("/repo/tree"):
            self._listing(files, legacy="/repo/" in path)
        elif path.startswith("api/v1/"):
            self._json({"Code": 200, "Success": True, "Data": {"Name": name, "RevisionMap": {}}})
        else:
            self._json({"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]})

    def _listing(self, files: dict[str, bytes], *, legacy: bool) -> None:
        if legacy:
            entries = [
                {
                    "Name": file.rpartition("/")[2],
                    "Path": file,
                    "Type": "blob",
                    "Size": len(content),
                    "Revision": COMMIT,
                    "Sha256": hashlib.sha256(content).hexdigest(),
                }
                for file, content in files.items()
            ]
            self._json({"Code": 200, "Success": True, "Data": {"Files": entries}})
            return
        self._json(
            [
                {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for file, content in files.items()
            ]
        )

    def _file(self, files: dict[str, bytes], file: str) -> None:
        if file not in files:
            self._json({"error": "Entry not found"}, 404)
            return
        content = files[file]
        first = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        body = content[first:]
        self.send_response(206 if first else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(body)))
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        limit = self.state.break_after.get(file)
        if limit is not None and len(body) > limit:
            self.wfile.write(body[:limit])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(body)

    def _json(self, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
