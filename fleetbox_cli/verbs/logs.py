"""`fleetbox logs`: the serial console's file, and what is added to it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from fleetbox import seriallog
from fleetbox.errors import NotFoundError
from fleetbox.refs import resolve_member
from fleetbox_cli.options import Ref
from fleetbox_cli.render import Output, printable, write_line
from fleetbox_cli.settings import Settings
from fleetbox_cli.verb import verb


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
    blocks = seriallog.follow(member, start) if follow else seriallog.read(path, start)
    if not settings.json:
        _write(blocks)
        return None
    if follow:
        for line in seriallog.lines(blocks):
            write_line({"event": "line", "text": line})
        return Output("log", {"ref": member.ref, "path": str(path)})
    return Output("log", {"ref": member.ref, "path": str(path), "lines": list(seriallog.lines(blocks))})


def _write(blocks: Iterator[bytes]) -> None:
    if not sys.stdout.isatty():
        for block in blocks:
            sys.stdout.buffer.write(block)
            sys.stdout.buffer.flush()
        return
    for line in seriallog.lines(blocks):
        sys.stdout.write(f"{printable(line)}\n")
        sys.stdout.flush()


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
            size = min(seriallog.BLOCK_BYTES, position)
            position -= size
            file.seek(position)
            block = file.read(size)
            at = len(block) - 1 if position + size == end and block.endswith(b"\n") else len(block)
            while (at := block.rfind(b"\n", 0, at)) >= 0:
                left -= 1
                if left == 0:
                    return position + at + 1
    return 0
