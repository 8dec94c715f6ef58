"""The control line: a shell on a guest's second console, behind a unix socket or a terminal that only we can open.

It is a terminal in the guest: lines of at most 4095 bytes go in, and what comes out is mixed with whatever it cares to
send. So an answer is only what ends in a line with a nonce, and everything is read within a limit of bytes and of time.
"""

from __future__ import annotations

import asyncio
import asyncio.streams
import contextlib
import fcntl
import os
import re
import secrets
import termios
import tty
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fleetbox.backends.base import timeout_scale
from fleetbox.backends.vmm.runfiles import control_lock
from fleetbox.errors import MachineError

OUTPUT_LIMIT_BYTES = 64 * 1024
_LINE_LIMIT_BYTES = 4095
_PROBE_S = 2.0  # how long a shell is waited for before it is asked again
_INTERRUPT = b"\x03"
_TURN_S = 10.0  # how long one user waits for another
_TERMINAL = os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC


class ControlLine:
    """One connection to a control line. Every method raises MachineError when the line is gone or too much comes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._seen = b""

    async def send(self, lines: bytes) -> None:
        """Send lines as they are; raises ValueError for one that a terminal would cut."""
        if not lines.endswith(b"\n") or max(map(len, lines.split(b"\n"))) >= _LINE_LIMIT_BYTES:
            raise ValueError("the control line takes whole lines under 4 KiB")
        try:
            self._writer.write(lines)
            await self._writer.drain()
        except OSError as e:
            raise _gone(str(e)) from e

    async def expect(self, answer: re.Pattern[bytes], limit_bytes: int = OUTPUT_LIMIT_BYTES) -> re.Match[bytes]:
        """Wait for `answer` in what the guest sends; `match.string[:match.start()]` is what came before it."""
        while not (match := answer.search(self._seen)):
            if len(self._seen) > limit_bytes:
                raise MachineError("the guest's control line does not stop sending", why=excerpt(self._seen))
            try:
                more = await self._reader.read(4096)
            except OSError as e:
                raise _gone(str(e)) from e
            if not more:
                raise _gone("the machine has closed it")
            self._seen += more.replace(b"\r", b"")
        self._seen = self._seen[match.end() :]
        return match

    async def wake(self) -> None:
        """Bring the line to a fresh prompt without echo, whatever was on it: half a line, an open quote, a program."""
        # The interrupt empties the terminal's input, perhaps also what comes right behind it: nothing does.
        await self._write_now(_INTERRUPT)
        limit_s = _PROBE_S
        while True:
            await asyncio.sleep(0.02)
            try:
                async with asyncio.timeout(limit_s):
                    return await self._probe()
            except TimeoutError:
                limit_s *= 2  # on a busy host the next interrupt must not always come before the answer
                await self._write_now(_INTERRUPT)

    async def _write_now(self, data: bytes) -> None:
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError as e:
            raise _gone(str(e)) from e

    async def _probe(self) -> None:
        nonce = secrets.token_hex(16)
        # In two halves: the terminal's echo of the question must not look like the answer.
        await self.send(f"\nstty -echo; printf '%s%s\\n' {nonce[:16]} {nonce[16:]}\n".encode())
        await self.expect(re.compile(nonce.encode() + b"\n"))

    async def run(self, script: str, limit_bytes: int = OUTPUT_LIMIT_BYTES) -> str:
        """Run a script of the shell (its standard input empty) and return its output.

        Raises MachineError when it fails; the caller limits the time.
        """
        nonce = secrets.token_hex(16)
        end = f"printf '\\n%s%s:%d\\n' {nonce[:16]} {nonce[16:]} $?"
        begin = f"printf '%s%s\\n' {nonce[16:]} {nonce[:16]}"
        await self.send(f"{begin}\n{{\n{script}\n}} </dev/null 2>&1\n{end}\n".encode())
        await self.expect(re.compile(f"{nonce[16:]}{nonce[:16]}\n".encode()))
        match = await self.expect(re.compile(b"\n" + nonce.encode() + rb":(\d{1,3})\n"), limit_bytes)
        output = match.string[: match.start()].decode(errors="replace")
        if match[1] != b"0":
            raise MachineError("a command on the guest's control line failed", why=excerpt(output.encode()))
        return output


@asynccontextmanager
async def open_line(path: Path) -> AsyncIterator[ControlLine]:
    """Open a machine's control line, under its lock: one user at a time, of whom `fleetbox console` may be another.

    Raises MachineError when nobody is at its other end, or somebody else keeps using it.
    """
    async with _locked(control_lock(path)):
        try:
            terminal = path.is_char_device()
            reader, writer = await (_open_terminal(path) if terminal else asyncio.open_unix_connection(path))
        except OSError as e:
            raise _gone(e.strerror or str(e)) from e
        try:
            yield ControlLine(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@asynccontextmanager
async def _locked(lock: Path) -> AsyncIterator[None]:
    try:
        lock.with_suffix("").stat()  # whose line is gone gets no lock file again
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise _gone(e.strerror or str(e)) from e
    try:
        try:
            async with asyncio.timeout(_TURN_S * timeout_scale()):
                while not _take(fd):  # noqa: ASYNC110 - no event tells when a lock is free
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise _gone("somebody else uses it, such as `fleetbox console`") from None
        yield
    finally:
        os.close(fd)


def _take(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def _open_terminal(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A terminal as a stream, raw: what the guest sends is not echoed back to it, what it sent before is lost."""
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as opened:
        read_end = opened.enter_context(os.fdopen(os.open(path, _TERMINAL), "rb", buffering=0))
        write_end = opened.enter_context(os.fdopen(os.open(path, _TERMINAL), "wb", buffering=0))
        tty.setraw(read_end.fileno(), termios.TCSANOW)
        termios.tcflush(read_end.fileno(), termios.TCIFLUSH)
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        reading, _ = await loop.connect_read_pipe(lambda: protocol, read_end)
        opened.callback(reading.close)
        writing, flow = await loop.connect_write_pipe(lambda: _WithReader(reading), write_end)
        opened.pop_all()  # the transports close them
    return reader, asyncio.StreamWriter(writing, flow, reader, loop)


class _WithReader(asyncio.streams.FlowControlMixin):
    """The writer's protocol: with it, the reading end is closed as well."""

    def __init__(self, reading: asyncio.ReadTransport) -> None:
        super().__init__()
        self._reading = reading
        self._closed = asyncio.get_running_loop().create_future()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._reading.close()
        if not self._closed.done():
            self._closed.set_result(None)

    def _get_close_waiter(self, stream: asyncio.StreamWriter) -> asyncio.Future[None]:
        return self._closed


def _gone(why: str) -> MachineError:
    return MachineError("the guest's control line cannot be used", why=why)


def excerpt(output: bytes) -> str:
    """The last words of what a guest sent, made harmless."""
    lines = [line for line in output.decode(errors="replace").splitlines() if line.strip()]
    text = lines[-1] if lines else "it said nothing"
    return "".join(c if c.isprintable() else "?" for c in text[-200:])
