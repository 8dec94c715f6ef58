"""`fleetbox logs`: the serial console's file, and what is added to it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from fleetbox.errors import NotFoundError
from fleetbox.member import Member
from fleetbox.records import LIVE_STATES, MemberState
from fleetbox.refs import resolve_member
from fleetbox_cli.options import Ref
from fleetbox_cli.render import Output, printable, write_line
from fleetbox_cli.settings import Settings
from fleetbox_cli.verb import verb

POLL_S = 0.2
BLOCK_BYTES = 1 << 16


@verb("""
    fleetbox logs node-1
    fleetbox logs node-1 --tail 50 -f
""")
def logs(
    settings: Settings,
    ref: Ref,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the member stops.")] = False,
    tail: Annotated[int | None, typer.Option("--tail", metavar="N", min=0, help="Only the last N lines.")] = None,
) -> Output | None:
    """Show a member's serial console since its last start.

    On a terminal, control characters that the guest printed are taken out.
    """
    member = resolve_member(ref, cluster=settings.scope)
    path = member.serial_log
    if not follow and not path.exists():
        raise NotFoundError(f"{member.ref} has no console output yet", hint=f"`fleetbox start {member.ref}` starts it")
    start = _tail_offset(path, tail) if tail is not None else 0
    blocks = _follow(member, path, start) if follow else _read(path, start)
    if not settings.json:
        _write(blocks)
        return None
    if follow:
        for line in _lines(blocks):
            write_line({"event": "line", "text": line})
        return Output("log", {"ref": member.ref, "path": str(path)})
    return Output("log", {"ref": member.ref, "path": str(path), "lines": list(_lines(blocks))})


def _write(blocks: Iterator[bytes]) -> None:
    if not sys.stdout.isatty():
        for block in blocks:
            sys.stdout.buffer.write(block)
            sys.stdout.buffer.flush()
        return
    for line in _lines(blocks):
        sys.stdout.write(f"{printable(line)}\n")
        sys.stdout.flush()


def _lines(blocks: Iterator[bytes]) -> Iterator[str]:
    rest = b""
    for block in blocks:
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            yield line.rstrip(b"\r").decode(errors="replace")
    if rest:
        yield rest.decode(errors="replace")


def _read(path: Path, offset: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(offset)
        while block := file.read(BLOCK_BYTES):
            yield block


def _tail_offset(path: Path, count: int) -> int:
    """Where the last `count` lines begin; the file is read from its end."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        end = position = file.seek(0, os.SEEK_END)
        if count == 0:
            return end
        left = count
        while position > 0:
            size = min(BLOCK_BYTES, position)
            position -= size
            file.seek(position)
            block = file.read(size)
            at = len(block) - 1 if position + size == end and block.endswith(b"\n") else len(block)
            while (at := block.rfind(b"\n", 0, at)) >= 0:
                left -= 1
                if left == 0:
                    return position + at + 1
    return 0


def _follow(member: Member, path: Path, offset: int) -> Iterator[bytes]:
    """What the file holds and gets, until the member no longer lives. A new start empties the file."""
    while True:
        lives = _lives(member)  # asked before reading, so nothing written before the end is missed
        if path.exists():
            if path.stat().st_size < offset:
                offset = 0
            for block in _read(path, offset):
                offset += len(block)
                yield block
        if not lives:
            return
        time.sleep(POLL_S)


def _lives(member: Member) -> bool:
    try:
        return member.state in LIVE_STATES | {MemberState.CREATING}
    except NotFoundError:
        return False
