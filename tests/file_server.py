"""A server of one file on the loopback address, which misbehaves as it is told and remembers what it was asked."""

from __future__ import annotations

import contextlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer:
    """content: the file. cuts: for each coming GET, after how many bytes the connection breaks; none left: whole.

    ranges, tag, length: whether it knows Range, sends an ETag and a Content-Length. status: answered instead of the
    file, to the methods in `refuses`. gate: a GET sends what comes after its first `free` bytes once this is set.
    asked: set when those are sent. paths: of every request; gets: the headers of every GET; sent: (first byte, bytes).
    """

    def __init__(self, content: bytes):
        self.content = content
        self.ranges = self.tag = self.length = True
        self.status, self.refuses = 200, ("HEAD", "GET")
        self.cuts: list[int] = []
        self.free = 0
        self.gate = threading.Event()
        self.gate.set()
        self.asked = threading.Event()
        self.paths: list[str] = []
        self.gets: list[dict[str, str]] = []
        self.sent: list[tuple[int, int]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"served": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def etag(self) -> str:
        return f'"{hash(self.content)}"'

    def close(self) -> None:
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    served: FileServer

    def do_HEAD(self) -> None:
        self._begin(0)

    def do_GET(self) -> None:
        served = self.served
        served.gets.append(dict(self.headers.items()))
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")) if served.ranges else None
        if self.headers.get("If-Range", served.etag) != served.etag:
            asked = None
        first = int(asked[1]) if asked else 0
        if self._begin(first, partial=asked is not None):
            cut = served.cuts.pop(0) if served.cuts else len(served.content)
            body = served.content[first : first + cut]
            served.sent.append((first, len(body)))
            self.wfile.write(body[: served.free])
            served.asked.set()
            served.gate.wait()
            with contextlib.suppress(ConnectionError):  # who asked has left
                self.wfile.write(body[served.free :])

    def _begin(self, first: int, *, partial: bool = False) -> bool:
        """Status line and headers; whether bytes follow."""
        served, size = self.served, len(self.served.content)
        served.paths.append(self.path)
        status = 200 if not partial else 416 if first >= size else 206
        if served.status != 200 and self.command in served.refuses:
            status = served.status
        self.send_response(status)
        if status == 416:
            self.send_header("Content-Range", f"bytes */{size}")
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{size - 1}/{size}")
        if served.length:
            self.send_header("Content-Length", str(size - first if status in (200, 206) else 0))
        if served.tag:
            self.send_header("ETag", served.etag)
        self.end_headers()
        return status in (200, 206)

    def log_message(self, format: str, *args: object) -> None:
        pass
