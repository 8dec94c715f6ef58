"""The control line's client, against a scripted guest and against a real shell on a terminal."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from fleetbox.errors import MachineError
from fleetbox.holder.warm import control
from fleetbox.holder.warm.control import OUTPUT_LIMIT_BYTES, ControlLine, open_line


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A socket's path must be short."""
    with tempfile.TemporaryDirectory(prefix="fb-") as folder:
        yield Path(folder)


Guest = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def line_to(guest: Guest) -> AsyncIterator[ControlLine]:
    """A control line whose other end is a coroutine."""
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    guest_reader, guest_writer = await asyncio.open_connection(sock=theirs)
    task = asyncio.create_task(guest(guest_reader, guest_writer))
    try:
        yield ControlLine(reader, writer)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        writer.close()
        guest_writer.close()


def halves(command: bytes) -> bytes:
    """What the `printf` of a question prints: its two halves together."""
    match = re.search(rb"([0-9a-f]{16}) ([0-9a-f]{16})", command)
    assert match
    return match[1] + match[2]


async def question(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Read one `run`: its beginning and ending markers."""
    begin = halves(await reader.readuntil(b"printf '%s%s\\n' ") + await reader.readline())
    end = halves(await reader.readuntil(b"2>&1\n") + await reader.readline())
    return begin, end


def test_output_is_what_stands_between_the_markers() -> None:
    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        begin, end = await question(reader)
        for piece in (b"noise before " + begin, b"\r\nhel", b"lo\r\n\r\n" + end[:7], end[7:] + b":", b"0\r\n"):
            writer.write(piece)
            await asyncio.sleep(0.01)

    async def main() -> str:
        async with line_to(guest) as line:
            return await line.run("echo hello")

    assert asyncio.run(main()) == "hello\n"


def test_an_echo_of_the_question_is_no_answer() -> None:
    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen = b""
        while b"$?\n" not in seen:
            more = await reader.read(100)
            writer.write(more.replace(b"\n", b"\r\n"))
            seen += more
        markers = re.findall(rb"([0-9a-f]{16} [0-9a-f]{16})", seen)
        writer.write(halves(markers[0]) + b"\nreal\n" + b"\n" + halves(markers[1]) + b":0\n")

    async def main() -> str:
        async with line_to(guest) as line:
            return await line.run("echo real")

    assert asyncio.run(main()) == "real\n"


def test_a_marker_of_somebody_else_is_only_output() -> None:
    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        begin, end = await question(reader)
        writer.write(begin + b"\n\n" + b"0" * 32 + b":0\n" + end + b":0 \n\n" + end + b":9999\n\n" + end + b":3\n")

    async def main() -> None:
        async with line_to(guest) as line:
            await line.run("false")

    with pytest.raises(MachineError, match="failed") as caught:
        asyncio.run(main())
    assert caught.value.why.endswith(":9999")


def test_a_guest_that_does_not_stop_sending_is_cut_off() -> None:
    sent = 0

    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readline()
        while True:
            writer.write(b"\x1b[2J" * 1024)
            sent += 4096
            await writer.drain()

    async def main() -> None:
        async with line_to(guest) as line:
            await line.run("yes")

    with pytest.raises(MachineError, match="does not stop") as caught:
        asyncio.run(main())
    assert caught.value.why.isprintable()
    assert sent < 64 * OUTPUT_LIMIT_BYTES  # what lies in the sockets' buffers included


def test_a_line_that_closes_in_the_middle_is_an_error() -> None:
    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        begin, _ = await question(reader)
        writer.write(begin + b"\nhalf")
        writer.close()

    async def main() -> None:
        async with line_to(guest) as line:
            await line.run("true")

    with pytest.raises(MachineError, match="cannot be used"):
        asyncio.run(main())


def test_a_guest_that_says_nothing_is_left_by_a_time_limit() -> None:
    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        async with line_to(guest) as line, asyncio.timeout(0.2):
            await line.run("true")

    with pytest.raises(TimeoutError):
        asyncio.run(main())


def test_wake_asks_again_when_its_question_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleetbox.holder.warm.control._PROBE_S", 0.1)

    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"printf")
        await reader.readuntil(b"\n")
        writer.write(halves(await reader.readuntil(b"printf") + await reader.readline()) + b"\n")

    async def main() -> None:
        async with line_to(guest) as line, asyncio.timeout(30):
            await line.wake()

    asyncio.run(main())


def test_lines_that_a_terminal_would_cut_are_refused() -> None:
    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def main(lines: bytes) -> None:
        async with line_to(guest) as line:
            await line.send(lines)

    asyncio.run(main(b"x" * 4094 + b"\n"))
    for lines in (b"x" * 4095 + b"\n", b"no end"):
        with pytest.raises(ValueError, match="4 KiB"):
            asyncio.run(main(lines))


def test_a_socket_where_nobody_listens_is_an_error(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_line(tmp_path / "none.ctl"):
            pass

    with pytest.raises(MachineError, match="cannot be used"):
        asyncio.run(main())


@asynccontextmanager
async def behind_a_terminal(folder: Path) -> AsyncIterator[Path]:
    """The same behind a terminal of its own, as a hypervisor with a pseudo-terminal for its guest has it."""
    outer, terminal = os.openpty()
    loop = asyncio.get_running_loop()
    async with shell(folder) as inner:
        reader, writer = await asyncio.open_unix_connection(inner)

        async def from_guest() -> None:
            while data := await reader.read(4096):
                await asyncio.to_thread(os.write, outer, data)

        relay = asyncio.create_task(from_guest())
        loop.add_reader(outer, lambda: writer.write(os.read(outer, 4096)))
        path = folder / "link.ctl"
        path.symlink_to(os.ttyname(terminal))
        try:
            yield path
        finally:
            loop.remove_reader(outer)
            relay.cancel()
            writer.close()
            os.close(terminal)
            os.close(outer)


@asynccontextmanager
async def shell(folder: Path) -> AsyncIterator[Path]:
    """The socket of a real interactive shell on a terminal, echo on, as agetty starts it."""
    main, terminal = os.openpty()
    child = subprocess.Popen(
        ["setsid", "--ctty", "/bin/sh"],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env={"PATH": os.environ["PATH"], "TERM": "dumb", "PS1": "", "PS2": "", "HISTFILE": "/dev/null"},
    )
    os.close(terminal)
    # Before it is up, an interrupt would end it.
    os.write(main, b"printf '%s%s\\n' u p\n")
    while b"up" not in os.read(main, 4096):
        pass
    loop = asyncio.get_running_loop()

    connected: list[asyncio.StreamWriter] = []

    def forward() -> None:
        try:
            said = os.read(main, 4096)
        except OSError:  # the shell has ended
            loop.remove_reader(main)
        else:
            if connected:
                connected[-1].write(said)

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.append(writer)
        while data := await reader.read(4096):
            await asyncio.to_thread(os.write, main, data)
        connected.remove(writer)
        writer.close()

    loop.add_reader(main, forward)
    server = await asyncio.start_unix_server(relay, folder / "ctl")
    try:
        yield folder / "ctl"
    finally:
        server.close()
        loop.remove_reader(main)
        child.kill()
        child.wait()
        os.close(main)


LEFT_BEHIND = {
    "nothing": b"",
    "half a line": b"echo half",
    "an open quote": b"echo 'open\n",
    "an open brace": b"{ echo\n",
    "a running program": b"sleep 1000\n",
    "a program that reads": b"cat >/dev/null\nx\n",
    "a long line": b"x" * 8000,
    "control characters": bytes(c for c in range(32) if c not in (4, 26, 28)),
}


@pytest.mark.parametrize("kind", [shell, behind_a_terminal], ids=["socket", "terminal"])
@pytest.mark.parametrize("left", LEFT_BEHIND.values(), ids=LEFT_BEHIND.keys())
def test_wake_recovers_a_real_shell_from_what_was_left_on_the_line(
    short_folder: Path, left: bytes, kind: Callable[[Path], AbstractAsyncContextManager[Path]]
) -> None:
    async def main() -> str:
        async with kind(short_folder) as path:
            async with open_line(path) as line:
                line._writer.write(left)
                await line._writer.drain()
            async with open_line(path) as line, asyncio.timeout(60):
                await line.wake()
                return await line.run("echo one\nread x || echo two")

    assert asyncio.run(main()) == "one\ntwo\n"


@pytest.mark.parametrize("kind", [shell, behind_a_terminal], ids=["socket", "terminal"])
def test_a_real_shell_reports_failure_and_goes_on(
    short_folder: Path, kind: Callable[[Path], AbstractAsyncContextManager[Path]]
) -> None:
    async def main() -> str:
        async with kind(short_folder) as path, open_line(path) as line, asyncio.timeout(60):
            await line.wake()
            with pytest.raises(MachineError) as caught:
                await line.run("echo to standard error >&2; (exit 3)")
            assert caught.value.why == "to standard error"
            script = "cat <<'END'\n" + "y" * 3000 + "\nEND"
            assert (await line.run(script)).strip() == "y" * 3000
            return await line.run("for i in $(seq 1000); do echo $i; done")

    assert asyncio.run(main()).split() == [str(i) for i in range(1, 1001)]


def test_one_user_at_a_time_and_the_next_waits_for_it(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with shell(short_folder) as path:
            lock = path.with_name("ctl.lock")
            lock.touch()
            with lock.open() as other:
                fcntl.flock(other, fcntl.LOCK_EX)
                waiting = asyncio.create_task(used(path))
                await asyncio.sleep(0.2)
                assert not waiting.done()
                monkeypatch.setattr(control, "_TURN_S", 0.01)
                with pytest.raises(MachineError, match="somebody else"):
                    await used(path)
            await waiting

    async def used(path: Path) -> None:
        async with open_line(path) as line:
            await line.wake()

    asyncio.run(main())


def test_what_is_gone_gets_no_lock_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_line(tmp_path / "none.ctl"):
            pass

    with pytest.raises(MachineError):
        asyncio.run(main())
    assert list(tmp_path.iterdir()) == []
