"""Connections into a private network: handed over by the holder, to Python, to OpenSSH and to a local port."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fleetbox import fdpass
from fleetbox.backends.host import namespaces
from fleetbox.backends.host.isolation import isolate
from fleetbox.backends.host.network import links
from fleetbox.backends.host.thread import HostThread
from fleetbox.errors import ConflictError
from fleetbox.forward import Forward
from fleetbox.holder.dial import DialServer
from fleetbox.holder.server import bind

LIMIT_S = 60.0


class Inside:
    """A holder's host thread in a network of its own, with a server on its loopback, and the dial socket before it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.host = HostThread("host", isolate(()))
        assert self.host.isolation is not None
        self.host.call(self.host.isolation.enter)
        self.host.call(links.loopback_up)
        self.namespace = self.host.call(namespaces.network_inode)
        self._server = self.host.call(lambda: socket.create_server(("127.0.0.1", 0)))
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._answer, daemon=True).start()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._end = asyncio.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()))
        self._thread.start()
        assert self._ready.wait(LIMIT_S)

    def _answer(self) -> None:
        """Greets, then says everything twice."""
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._echo, args=(connection,), daemon=True).start()

    @staticmethod
    def _echo(connection: socket.socket) -> None:
        with connection, contextlib.suppress(ConnectionError):
            connection.sendall(b"hello\n")
            while data := connection.recv(1 << 16):
                connection.sendall(data * 2)

    async def _serve(self) -> None:
        server = DialServer(bind(self.path), self.host)
        self._ready.set()
        await self._end.wait()
        await server.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()
        self._loop.close()
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.host.close()


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Inside]:
    with closing(Inside(tmp_path / "dial.sock")) as made:
        yield made


pytestmark = pytest.mark.netns


def test_a_connection_is_made_inside_and_handed_over(inside: Inside) -> None:
    with socket.socket(fileno=fdpass.dial(str(inside.path), "127.0.0.1", inside.port)) as connection:
        assert connection.recv(99) == b"hello\n"
        connection.sendall(b"ab")
        assert connection.recv(99) == b"abab"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", inside.port), 5)  # the same address outside


def test_what_cannot_be_reached_is_the_systems_own_error(inside: Inside, tmp_path: Path) -> None:
    with pytest.raises(ConnectionRefusedError):
        fdpass.dial(str(inside.path), "127.0.0.1", 1)
    with pytest.raises(OSError, match="unreachable") as caught:
        fdpass.dial(str(inside.path), "203.0.113.77", 22)
    assert caught.value.errno == errno.ENETUNREACH
    with pytest.raises(fdpass.HolderGone):
        fdpass.dial(str(tmp_path / "none.sock"), "127.0.0.1", 22)


NONSENSE = [
    b"nonsense\n",
    b'{"host": "localhost", "port": 22}\n',
    b'{"host": "127.0.0.1", "port": 99999999}\n',
    b'{"host": "127.0.0.1", "port": -1}\n',
    b'{"else": 1}\n',
    b"{}\n",
    b"\xff\xfe\n",
    b"\n",
    b"x" * 100_000,
]


@pytest.mark.parametrize("request_line", NONSENSE, ids=range(len(NONSENSE)))
def test_requests_that_make_no_sense_are_refused_and_harm_nobody(inside: Inside, request_line: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
        control.settimeout(LIMIT_S)
        control.connect(str(inside.path))
        try:
            control.sendall(request_line)
            answer, descriptors, _, _ = socket.recv_fds(control, 4096, 2)
        except (BrokenPipeError, ConnectionResetError):  # hung up on, before it had said all
            answer, descriptors = b'{"error"', []
    assert descriptors == []
    assert b'"error"' in answer
    os.close(fdpass.dial(str(inside.path), "127.0.0.1", inside.port))


def test_other_users_are_hung_up_on(inside: Inside) -> None:
    inside.path.chmod(0o666)
    inside.path.parent.chmod(0o755)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresuid(54321, 54321, 54321)
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
                control.settimeout(LIMIT_S)
                try:
                    control.connect(str(inside.path))
                except PermissionError:  # a folder above is root's alone: as good
                    os.write(write, b"refused")
                    os._exit(0)
                control.sendall(b'{"namespaces": true}\n')
                try:
                    answer, descriptors, _, _ = socket.recv_fds(control, 4096, 2)
                except ConnectionResetError:
                    answer, descriptors = b"", []
                os.write(write, b"refused" if not answer and not descriptors else b"served")
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        assert pipe.read() == b"refused"
    os.waitpid(child, 0)


def test_the_namespaces_are_handed_out(inside: Inside) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
        control.connect(str(inside.path))
        control.sendall(b'{"namespaces": true}\n')
        _, descriptors, _, _ = socket.recv_fds(control, 4096, 2)
    assert [os.fstat(descriptor).st_ino for descriptor in descriptors] == [inside.namespace]
    for descriptor in descriptors:
        os.close(descriptor)


def test_openssh_gets_its_connection_over_standard_output(inside: Inside) -> None:
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    argv = [sys.executable, "-ISE", fdpass.__file__, str(inside.path), "127.0.0.1", str(inside.port)]
    with ours:
        with its:
            subprocess.run(argv, stdout=its, check=True, timeout=LIMIT_S)
        _, [descriptor], _, _ = socket.recv_fds(ours, 1, 1)
    with socket.socket(fileno=descriptor) as connection:
        assert connection.recv(99) == b"hello\n"


def test_the_proxy_says_what_is_wrong_or_becomes_its_fallback(inside: Inside, tmp_path: Path) -> None:
    script = [sys.executable, "-ISE", fdpass.__file__]
    refused = subprocess.run([*script, str(inside.path), "127.0.0.1", "1"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "127.0.0.1 port 1 cannot be reached: Connection refused" in refused.stderr
    gone = [*script, str(tmp_path / "none.sock"), "127.0.0.1", "22"]
    assert "does not answer" in subprocess.run(gone, capture_output=True, text=True, check=False).stderr
    fallback = subprocess.run([*gone, "/bin/echo", "started"], capture_output=True, text=True, check=True)
    assert fallback.stdout == "started\n"


def test_a_local_port_carries_connections_both_ways(inside: Inside) -> None:
    def connect() -> socket.socket:
        return socket.socket(fileno=fdpass.dial(str(inside.path), "127.0.0.1", inside.port))

    with Forward(connect) as forward:
        connections = [socket.create_connection(("127.0.0.1", forward.port), LIMIT_S) for _ in range(5)]
        for number, connection in enumerate(connections):
            with connection, connection.makefile("rwb") as stream:
                assert stream.readline() == b"hello\n"
                stream.write(f"{number}\n".encode())
                stream.flush()
                assert stream.readline() + stream.readline() == f"{number}\n{number}\n".encode()
                connection.shutdown(socket.SHUT_WR)
                assert stream.read() == b""
        with pytest.raises(ConflictError, match="cannot be used"):
            Forward(connect, forward.port)
        open_one = socket.create_connection(("127.0.0.1", forward.port), LIMIT_S)
        assert open_one.recv(99) == b"hello\n"
    assert open_one.recv(99) == b""  # it ended with the port
    open_one.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", forward.port), LIMIT_S)
    forward.close()


def test_a_port_that_leads_nowhere_resets_its_connections(inside: Inside) -> None:
    def connect() -> socket.socket:
        return socket.socket(fileno=fdpass.dial(str(inside.path), "127.0.0.1", 1))

    with (
        Forward(connect) as forward,
        socket.create_connection(("127.0.0.1", forward.port), LIMIT_S) as connection,
        pytest.raises(ConnectionResetError),
    ):
        connection.recv(1)
