"""The control line: a shell on a guest's second serial port, reached through a unix socket that only we can open.

It is a terminal: lines of at most 4095 bytes go in, and what comes out is mixed with whatever the guest cares to send.
So an answer is only what ends in a line with a nonce, and everything is read within a limit of bytes and of time.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fleetbox.errors import MachineError

OUTPUT_LIMIT_BYTES = 64 * 1024
_LINE_LIMIT_BYTES = 4095
_PROBE_S = 2.0  # how long a shell is waited for before it is asked again
_INTERRUPT = b"\x03"


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
        while True:
            await asyncio.sleep(0.02)
            try:
                async with asyncio.timeout(_PROBE_S):
                    return await self._probe()
            except TimeoutError:
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
async def open_line(socket: Path) -> AsyncIterator[ControlLine]:
    """Connect to a machine's control line. Raises MachineError when nobody listens there."""
    try:
        reader, writer = await asyncio.open_unix_connection(socket)
    except OSError as e:
        raise _gone(e.strerror or str(e)) from e
    try:
        yield ControlLine(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _gone(why: str) -> MachineError:
    return MachineError("the guest's control line cannot be used", why=why)


def excerpt(output: bytes) -> str:
    """The last words of what a guest sent, made harmless."""
    lines = [line for line in output.decode(errors="replace").splitlines() if line.strip()]
    text = lines[-1] if lines else "it said nothing"
    return "".join(c if c.isprintable() else "?" for c in text[-200:])
