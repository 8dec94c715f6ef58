"""The fake guest's console: what is typed becomes lines that it is told, what it prints comes from its serial log.

A hypervisor keeps the console of its guest; a shell cannot, so here the holder does, and the next holder makes it anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from fleetbox.backends.base import Console

_LOOK_AGAIN_S = 0.02
_LAST_WORDS_S = 1.0
_LINE_LIMIT_BYTES = 4096


class FakeConsole:
    """A terminal in front of a guest that takes lines: it echoes what is typed, and Return sends the line."""

    def __init__(self, where: Console, serial_log: Path, tell: Callable[[str], bool]) -> None:
        self.where = where
        self._log = serial_log
        self._tell = tell
        self._open = ExitStack()
        self._users: set[asyncio.Task[None]] = set()
        self._ended = False

    async def open(self) -> None:
        """Listen; the files of an earlier holder's are taken over."""
        self._ended = False
        self.where.path.unlink(missing_ok=True)
        self.where.lock.touch(mode=0o600)
        self._open.callback(self.where.lock.unlink, missing_ok=True)
        self._open.callback(self.where.path.unlink, missing_ok=True)
        server = await asyncio.start_unix_server(self._serve, self.where.path)
        self.where.path.chmod(0o600)
        self._open.callback(server.close)

    async def close(self) -> None:
        """The machine has ended: remove the files; a user who is there sees its last words, then the end."""
        self._open.close()
        self._ended = True
        if self._users:
            await asyncio.wait(self._users, timeout=_LAST_WORDS_S)
        for user in self._users:
            user.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            log = self._log.open("rb")
        except OSError:
            writer.close()
            return
        log.seek(0, os.SEEK_END)  # before anything is typed: its answer is seen
        showing = asyncio.create_task(self._show(log, writer))
        self._users.add(showing)
        showing.add_done_callback(self._users.discard)
        showing.add_done_callback(lambda _: writer.close())
        try:
            typed = bytearray()
            while data := await reader.read(_LINE_LIMIT_BYTES):
                writer.write(data.replace(b"\r", b"\r\n"))
                typed += data.replace(b"\r", b"\n")
                while b"\n" in typed:
                    line, _, rest = typed.partition(b"\n")
                    typed = bytearray(rest)
                    self._tell(line.decode(errors="replace"))
                del typed[:-_LINE_LIMIT_BYTES]
        except OSError:
            pass  # the user has gone away
        finally:
            showing.cancel()

    async def _show(self, log: BinaryIO, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError), log:
            while True:
                if new := log.read(1 << 16):
                    writer.write(new.replace(b"\n", b"\r\n"))
                    await writer.drain()
                elif self._ended:
                    return
                else:
                    await asyncio.sleep(_LOOK_AGAIN_S)
