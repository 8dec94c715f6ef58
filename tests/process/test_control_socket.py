"""The control socket: to its owner alone, one protocol, and no request that can hurt it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import fleetbox
from fleetbox import paths, wire
from fleetbox.control import ControlSocket
from fleetbox.errors import NotFoundError, ProtocolError, UsageError

HEADERS = f"Host: x\r\n{wire.PROTOCOL_HEADER}: {wire.PROTOCOL}\r\nConnection: close\r\n"


def say(path: Path, data: bytes) -> tuple[int, bytes]:
    """Send raw bytes to the socket: status and body of the answer, (0, b"") when it hangs up."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(path))
        answer = b""
        with contextlib.suppress(BrokenPipeError):  # it need not read what it refuses
            client.sendall(data)
        with contextlib.suppress(ConnectionResetError):
            while block := client.recv(65536):
                answer += block
    if not answer:
        return 0, b""
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def get(path: str, headers: str = HEADERS) -> bytes:
    return f"GET {path} HTTP/1.1\r\n{headers}\r\n".encode()


def post(path: str, body: bytes) -> bytes:
    return f"POST {path} HTTP/1.1\r\n{HEADERS}Content-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.fixture
def holder_socket(home: Path) -> Path:
    fleetbox.up("web")
    return paths.holder_socket("web")


def test_files_of_a_holder_are_its_owners_alone(holder_socket: Path) -> None:
    assert holder_socket.stat().st_mode & 0o777 == 0o600
    assert holder_socket.parent.stat().st_mode & 0o777 == 0o700
    for path in paths.cluster_state_dir("web").iterdir():
        assert path.stat().st_mode & 0o077 == 0, path
    assert (paths.keys_dir() / "id_ed25519").stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_another_uid_is_refused_even_when_it_reaches_the_socket(holder_socket: Path, home: Path) -> None:
    asking = (
        "import os, socket, sys\nos.setgid(65534); os.setuid(65534)\n"
        "client = socket.socket(socket.AF_UNIX); client.settimeout(20)\n"
        "try: client.connect(sys.argv[1])\nexcept PermissionError: sys.exit('no way to the socket')\n"
        f"try: client.sendall({get('/v1/ping')!r}); answer = client.recv(100)\n"
        "except (BrokenPipeError, ConnectionResetError): answer = b''\n"
        "sys.exit('answered' if answer else 'hung up on')\n"
    )

    def ask() -> str:
        argv = [sys.executable, "-c", asking, str(holder_socket)]
        return subprocess.run(argv, capture_output=True, text=True, check=False).stderr.strip()

    assert ask() == "no way to the socket"
    for path in (*holder_socket.relative_to(home).parents, holder_socket.relative_to(home)):
        (home / path).chmod(0o777)
    assert ask() == "hung up on"
    assert say(holder_socket, get("/v1/ping"))[0] == 200


def test_a_client_of_another_version_is_told(holder_socket: Path) -> None:
    for headers in (
        f"Host: x\r\n{wire.PROTOCOL_HEADER}: 999\r\nConnection: close\r\n",
        "Host: x\r\nConnection: close\r\n",
    ):
        status, body = say(holder_socket, get("/v1/status", headers))
        assert status == 426
        assert json.loads(body)["code"] == ProtocolError.code


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b'{"members": "three"}',
        b'{"unknown": 1}',
        b"\xff\xfe",
        b'{"spec": {"image": 7}}',
        b"null",
        b"9" * 70000,
    ],
)
def test_requests_that_make_no_sense_are_usage_errors(holder_socket: Path, body: bytes) -> None:
    status, answer = say(holder_socket, post("/v1/ops/up", body))
    assert status == 400
    assert json.loads(answer)["code"] == UsageError.code


def test_other_rubbish_is_answered_and_survived(holder_socket: Path) -> None:
    assert say(holder_socket, b"\x00\x01\x02\r\n\r\n")[0] == 400
    assert say(holder_socket, get("/nowhere"))[0] == 404
    assert say(holder_socket, get("/v1/ops/up"))[0] == 405
    status, answer = say(holder_socket, post("/v1/ops/explode", b"{}"))
    assert (status, json.loads(answer)["code"]) == (404, NotFoundError.code)
    assert say(holder_socket, post("/v1/ops/nobody/cancel", b""))[0] == 404
    assert say(holder_socket, post("/v1/ops/up", b" " * (2 << 20)))[0] in (0, 400)
    assert ControlSocket(holder_socket).get("/v1/ping", wire.Ping).cluster == "web"


def test_what_a_client_could_have_checked_is_checked_again(holder_socket: Path) -> None:
    """A request is not trusted for having come through our own client."""
    control = ControlSocket(holder_socket)
    with pytest.raises(UsageError):
        control.run("add", wire.AddRequest(names=("../../etc",)))
    with pytest.raises(UsageError):
        control.run("add", wire.AddRequest(names=("-oProxyCommand=x",)))
    with pytest.raises(UsageError):
        control.run("add", wire.AddRequest(spec=wire.SpecChange(cpus=-1)))
    with pytest.raises(UsageError):
        control.run("add", wire.AddRequest(spec=wire.SpecChange(fixtures=(fleetbox.Fixture("/etc", "/srv/../../x"),))))
    assert len(fleetbox.Cluster("web").members) == 1
