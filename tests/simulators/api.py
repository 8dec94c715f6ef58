"""A hypervisor's REST API on a unix socket, each request checked before it is served."""

from __future__ import annotations

import json
import os
import socketserver
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.simulators.description import Description
from tests.simulators.faults import Faults
from tests.simulators.process import Machine

# Method and path to the fields that a body may have; None for a request without one.
Table = Mapping[tuple[str, str], frozenset[str] | None]


class Refused(Exception):
    """The API's answer to a request that cannot be done: `status`, and words from the outermost to the cause."""

    def __init__(self, status: int, *words: str) -> None:
        super().__init__(*words)
        self.status = status
        self.words = words


class Server(socketserver.ThreadingUnixStreamServer):
    """Serves `do(method, path, body)`, one request at a time; `error_body` says errors as the real program does."""

    daemon_threads = True

    def __init__(
        self,
        path: str,
        table: Table,
        description: Description | None,
        faults: Faults,
        machine: Machine,
        do: Callable[[str, str, Any], Any],
        error_body: Callable[[tuple[str, ...]], Any],
    ) -> None:
        super().__init__(path, _Handler)
        self.table = table
        self.description = description
        self.faults = faults
        self.machine = machine
        self.do = do
        self.error_body = error_body
        self.turn = threading.Lock()

    def checked(self, method: str, path: str, data: bytes) -> Any:
        """The body of a request that the real program would take. Raises Refused."""
        if (method, path) not in self.table:
            raise Refused(404, f"{method} {path} is not in the project's table of requests")
        fields = self.table[method, path]
        try:
            body = json.loads(data) if data else None
        except ValueError as e:
            raise Refused(400, "Failed to deserialize JSON", str(e)) from e
        if fields is None and body is not None:
            raise Refused(400, f"{method} {path} takes no body")
        if fields is not None:
            if not isinstance(body, dict):
                raise Refused(400, f"{method} {path} needs an object")
            if unknown := body.keys() - fields:
                raise Refused(400, f"{method} {path}: not in the project's table: {', '.join(sorted(unknown))}")
        if self.description is not None:
            problem = self.description.objection(method, path, body)
            if problem:
                raise Refused(400, "Failed to deserialize JSON", problem)
        return body


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        pass

    def do_GET(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def do_PATCH(self) -> None:
        self._serve()

    def _serve(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server = self.server
        with server.turn:
            fault = server.faults.at(self.path.rpartition("/")[2])
            if fault == "exit":
                server.machine.end(1, "thread 'vmm' panicked")
            if fault == "silent":
                time.sleep(3600)
            if fault == "garbage":
                self.wfile.write(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
                self.close_connection = True
                return
            try:
                body = server.checked(self.command, self.path, data)
                if fault.isdigit():
                    raise Refused(int(fault), "a fault that the test asked for")
                if fault == "busy":
                    raise Refused(500, "Error from API", "memory is still being restored on demand")
                answer = server.do(self.command, self.path, body)
            except Refused as e:
                print(f"API: {self.command} {self.path} refused: {': '.join(e.words)}", flush=True)
                self._answer(e.status, server.error_body(e.words))
            except Exception as e:
                print(f"API: {self.command} {self.path} failed: {e!r}", flush=True)
                self._answer(500, server.error_body(("Internal Server Error", repr(e))))
            else:
                self._answer(204 if answer is None else 200, answer)

    def _answer(self, status: int, body: Any) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        try:
            self.wfile.write(data)
        except OSError:
            os.write(2, b"API: the client has gone away\n")
