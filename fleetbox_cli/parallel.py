"""Several programs at once, their output collected or shown line by line under each one's name."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import BinaryIO

import msgspec

from fleetbox.errors import HostError

MOST_AT_ONCE = 32
LINE_LIMIT_BYTES = 1 << 16

Sink = Callable[[bytes], None]
Job = tuple[str, Sequence[str]]


class Outcome(msgspec.Struct, frozen=True):
    """How a command ended on one member; what it printed is only kept when it was collected."""

    ref: str
    exit_code: int
    stdout: str = ""
    stderr: str = ""


def collect(jobs: Sequence[Job], *, fail_fast: bool = False) -> list[Outcome]:
    """Run all jobs (name, argv) and return what they printed.

    With `fail_fast` the first that fails ends the others, which are then not among the outcomes.
    """

    async def one(name: str, argv: Sequence[str]) -> Outcome:
        out, err = bytearray(), bytearray()
        code = await _run(argv, out.extend, err.extend)
        return Outcome(name, code, out.decode(errors="replace"), err.decode(errors="replace"))

    return asyncio.run(_all(jobs, one, fail_fast=fail_fast))


def show(jobs: Sequence[Job], *, fail_fast: bool = False) -> list[Outcome]:
    """Run all jobs and write their lines as they come, `name | line`. `fail_fast` as for `collect`."""
    width = max(len(name) for name, _ in jobs)

    async def one(name: str, argv: Sequence[str]) -> Outcome:
        prefix = f"{name.ljust(width)} | ".encode()
        out, err = _Lines(prefix, sys.stdout.buffer), _Lines(prefix, sys.stderr.buffer)
        try:
            return Outcome(name, await _run(argv, out.write, err.write))
        finally:
            out.end()
            err.end()

    return asyncio.run(_all(jobs, one, fail_fast=fail_fast))


class _Lines:
    """Puts whole lines onto a stream, so that those of several programs do not mix."""

    def __init__(self, prefix: bytes, stream: BinaryIO) -> None:
        self._prefix = prefix
        self._stream = stream
        self._rest = b""

    def write(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LINE_LIMIT_BYTES:
            lines, self._rest = [*lines, self._rest], b""
        self._stream.write(b"".join(self._prefix + line + b"\n" for line in lines))
        self._stream.flush()

    def end(self) -> None:
        if self._rest:
            self.write(b"\n")


async def _all(
    jobs: Sequence[Job], one: Callable[[str, Sequence[str]], Coroutine[None, None, Outcome]], *, fail_fast: bool
) -> list[Outcome]:
    slots = asyncio.Semaphore(MOST_AT_ONCE)

    async def limited(job: Job) -> Outcome:
        async with slots:
            return await one(*job)

    tasks = [asyncio.create_task(limited(job)) for job in jobs]
    try:
        for ended in asyncio.as_completed(tasks):
            outcome = await ended
            if fail_fast and outcome.exit_code != 0:
                break
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [task.result() for task in tasks if not task.cancelled()]


async def _run(argv: Sequence[str], out: Sink, err: Sink) -> int:
    """The exit code of one program; it is ended when this is cancelled. Raises HostError when it is not installed."""
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, env=os.environ
        )
    except FileNotFoundError:
        raise HostError(
            f"there is no {argv[0]} on this host", hint="install openssh-client, or run `fleetbox doctor --fix`"
        ) from None
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        await asyncio.gather(_copy(process.stdout, out), _copy(process.stderr, err))
        code = await process.wait()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    return code if code >= 0 else 128 - code


async def _copy(stream: asyncio.StreamReader, sink: Sink) -> None:
    while data := await stream.read(LINE_LIMIT_BYTES):
        sink(data)
