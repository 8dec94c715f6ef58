"""A blocking QMP client for the simulators: commands one after the other on a connected socket; events are dropped."""

from __future__ import annotations

import json
import socket
import threading
from typing import Any


class QMPFailed(Exception):
    """QEMU refused a command, or is gone."""


class QMP:
    """The monitor of the QEMU that stands behind a simulated machine."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._file = connected.makefile("rb")
        self._turn = threading.Lock()
        self._greeted = False

    def execute(self, command: str, arguments: dict[str, Any] | None = None, fd: int | None = None) -> Any:
        """Run a command, with a descriptor for `getfd`, and return its answer. Raises QMPFailed."""
        with self._turn:
            if not self._greeted:
                self._read()  # the greeting
                self._greeted = True
                self._ask("qmp_capabilities", None, None)
            return self._ask(command, arguments, fd)

    def _ask(self, command: str, arguments: dict[str, Any] | None, fd: int | None) -> Any:
        request: dict[str, Any] = {"execute": command}
        if arguments is not None:
            request["arguments"] = arguments
        try:
            socket.send_fds(self._socket, [json.dumps(request).encode() + b"\n"], [] if fd is None else [fd])
        except OSError as e:
            raise QMPFailed(f"{command}: {e}") from e
        while True:
            answer = self._read()
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise QMPFailed(f"{command}: {answer['error']['desc']}")

    def _read(self) -> dict[str, Any]:
        try:
            line = self._file.readline()
        except OSError as e:
            raise QMPFailed(str(e)) from e
        if not line:
            raise QMPFailed("QEMU has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer
