"""A web server on the loopback that behaves, cuts, lies, or says nothing."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Origin(ThreadingHTTPServer):
    """Serves `body`; `cuts` holds after how many bytes each of the next answers breaks off."""

    daemon_threads = True

    def __init__(self, body: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body = body
        self.etag = '"one"'
        self.ranges = True
        self.cuts: list[int] = []
        self.status = 0
        self.requests: list[str | None] = []
        self.hold = threading.Event()
        self.hold_after = -1
        self.url = f"http://127.0.0.1:{self.server_port}/disk.raw"


class Handler(BaseHTTPRequestHandler):
    server: Origin

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass

    def do_GET(self) -> None:
        origin = self.server
        wanted = self.headers.get("Range")
        origin.requests.append(wanted)
        if origin.status:
            self.send_error(origin.status)
            return
        start = 0
        if wanted and origin.ranges and self.headers.get("If-Range") == origin.etag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(origin.body):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(origin.body) - 1}/{len(origin.body)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(origin.body) - start))
        self.send_header("ETag", origin.etag)
        self.end_headers()
        data = origin.body[start:]
        if origin.hold_after >= 0:
            self.wfile.write(data[: origin.hold_after])
            self.wfile.flush()
            origin.hold.wait()
            data = data[origin.hold_after :]
        cut = origin.cuts.pop(0) if origin.cuts else len(data)
        with contextlib.suppress(OSError):
            self.wfile.write(data[:cut])
        self.close_connection = True


@contextlib.contextmanager
def serving(body: bytes) -> Iterator[Origin]:
    """A server of `body`."""
    server = Origin(body)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.hold.set()
        server.shutdown()
        server.server_close()
