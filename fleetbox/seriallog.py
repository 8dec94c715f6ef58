"""Reading a member's serial log: what it holds, and what is added to it. A new start of the member empties it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fleetbox.errors import NotFoundError
from fleetbox.inotify import FileWatch
from fleetbox.records import LIVE_STATES, MemberState

if TYPE_CHECKING:
    from fleetbox.member import Member

LOOK_S = 0.5
BLOCK_BYTES = 1 << 16
LINE_BYTES_MAX = 1 << 16
"""A longer line is cut: a guest may never end its own."""


def read(path: Path, offset: int = 0) -> Iterator[bytes]:
    """What the file holds from `offset` (bytes) on."""
    with path.open("rb") as file:
        file.seek(offset)
        while block := file.read(BLOCK_BYTES):
            yield block


def follow(member: Member, offset: int = 0) -> Iterator[bytes]:
    """What the member's log holds from `offset` on and gets, until the member no longer lives."""
    path = member.serial_log
    while True:
        lives = _lives(member)  # asked before reading, so nothing written before the end is missed
        with contextlib.ExitStack() as stack:
            changes: FileWatch | None = None
            with contextlib.suppress(OSError):  # it is not there yet, or this user watches too many files
                changes = stack.enter_context(contextlib.closing(FileWatch(path)))
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_size < offset:
                    offset = 0
                for block in read(path, offset):
                    offset += len(block)
                    yield block
            if not lives:
                return
            if changes is not None:
                changes.wait(LOOK_S)
            else:
                time.sleep(LOOK_S)


def lines(blocks: Iterator[bytes]) -> Iterator[str]:
    """The lines of blocks, without their ends; what is left in the end is one as well."""
    rest = b""
    for block in blocks:
        *whole, rest = (rest + block).split(b"\n")
        if len(rest) > LINE_BYTES_MAX:
            whole, rest = [*whole, rest], b""
        for line in whole:
            yield line.rstrip(b"\r").decode(errors="replace")
    if rest:
        yield rest.decode(errors="replace")


def _lives(member: Member) -> bool:
    try:
        return member.state in LIVE_STATES | {MemberState.CREATING}
    except NotFoundError:
        return False
