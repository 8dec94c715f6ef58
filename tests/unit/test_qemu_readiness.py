"""What tells that a machine is up: its serial log's lines and its SSH server's greeting."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Self

import pytest

from fleetbox.backends.base import timeout_scale
from fleetbox.backends.host import reach
from fleetbox.backends.host.thread import HostThread
from fleetbox.backends.vmm import serial
from fleetbox.errors import MachineError

LIMIT_S = 20 * timeout_scale()

DEBIAN_12 = """\
[    0.000000] Linux version 6.1.0-49-cloud-amd64
[    0.036000] tsc: Detected 2442.919 MHz processor
[    0.134023] ..TIMER: vector=0x30 apic1=0 pin1=2 apic2=-1 pin2=-1
[    0.470982] smp: Brought up 1 node, 2 CPUs
"""


@pytest.mark.parametrize(
    "line",
    [
        "[    0.470982] smp: Brought up 1 node, 2 CPUs",
        "[    0.100000] x86: Booted up 1 node, 2 CPUs",  # until 4.x
        "[    0.846482] clocksource: Switched to clocksource hpet",
        "[    2.048950] Run /init as init process",
        "Welcome to \x1b[1mDebian GNU/Linux 12 (bookworm)\x1b[0m!",  # a quiet kernel
        "debian login: ",
    ],
)
def test_calibration_is_over_at(line: str) -> None:
    assert serial.CALIBRATED.search(line.encode())


def test_calibration_is_not_over_before() -> None:
    before = DEBIAN_12.rpartition("[    0.470982]")[0]
    assert not serial.CALIBRATED.search(before.encode())


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(LIMIT_S):
            await test()

    asyncio.run(limited())


def test_a_line_is_found_however_it_is_written(tmp_path: Path) -> None:
    log = tmp_path / "serial.log"

    async def test() -> None:
        waiting = asyncio.create_task(serial.wait_for(log, serial.CALIBRATED, interval_s=0.001))
        await asyncio.sleep(0.01)
        with log.open("ab", buffering=0) as file:
            file.write(b"x" * 200_000)
            for byte in b"[ 0.4] smp: Brought up 1 node":
                assert not waiting.done()
                file.write(bytes([byte]))
                await asyncio.sleep(0.002)
                if b"smp: Brought up" in log.read_bytes()[-40:]:
                    break
            await waiting

    run(test)


def test_a_new_start_begins_with_an_empty_private_log(tmp_path: Path) -> None:
    log = tmp_path / "serial.log"
    serial.prepare(log, keep=False)
    assert log.stat().st_mode & 0o777 == 0o600
    log.write_text("earlier")
    serial.prepare(log, keep=True)
    assert log.read_text() == "earlier"
    serial.prepare(log, keep=False)
    assert log.read_bytes() == b""


class Server:
    """A TCP server on the loopback that answers each connection by the next of `answers`, then by the last."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.port = 0

    async def __aenter__(self) -> Self:
        self.server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def _answer(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])
        await writer.drain()
        writer.close()

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        await self.server.wait_closed()


@pytest.fixture
def host() -> HostThread:
    return HostThread()


def test_an_ssh_greeting_is_ready(host: HostThread) -> None:
    async def test() -> None:
        async with Server(b"", b"SSH-2.0-OpenSSH_9.2p1\r\n") as server:  # the first is cut: sshd was just starting
            await reach.wait_for_ssh(host, "127.0.0.1", LIMIT_S, port=server.port)

    run(test)


@pytest.mark.parametrize(
    ("answer", "why"), [(b"HTTP/1.1 400\r\n", "is not an SSH server"), (b"", "closes them at once")]
)
def test_another_answer_is_not_and_is_told(host: HostThread, answer: bytes, why: str) -> None:
    async def test() -> None:
        async with Server(answer) as server:
            with pytest.raises(MachineError, match=why):
                await reach.wait_for_ssh(host, "127.0.0.1", 0.3, port=server.port)

    run(test)


def test_nobody_listening_is_told(host: HostThread) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

        async def test() -> None:
            with pytest.raises(MachineError, match=f"nothing listens on port {port}"):
                await reach.wait_for_ssh(host, "127.0.0.1", 0.3, port=port)

        run(test)


def test_a_server_that_begins_late_is_found(host: HostThread) -> None:
    async def test() -> None:
        with socket.socket() as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
            waiting = asyncio.create_task(reach.wait_for_ssh(host, "127.0.0.1", LIMIT_S, port=port))
            await asyncio.sleep(0.1)
            assert not waiting.done()
            free.listen()
            free.setblocking(False)
            connection, _ = await asyncio.get_running_loop().sock_accept(free)
            with connection:
                await asyncio.get_running_loop().sock_sendall(connection, b"SSH-2.0-x\r\n")
                await waiting

    run(test)
