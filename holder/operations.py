"""Operations under way: each a task of its own, streaming events to whoever follows it.

An operation ends when its work does, when its client goes away, or when it is cancelled; in each case it first undoes
what it had not finished. It is cancelled at most once, so that nothing interrupts the undoing.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec

from fleetbox.errors import FleetboxError, HostError, OperationInterrupted, PartialError
from fleetbox.faultpoint import reach
from fleetbox.names import new_id
from fleetbox.wire import Error, Event, Progress, Result, Started

log = logging.getLogger(__name__)

T = TypeVar("T")

Emit = Callable[[Event], None]
Work = Callable[[Emit], Awaitable[Any]]

KEEPALIVE_S = 15.0
BACKLOG_MAX = 200


def log_event(event: Event) -> None:
    """Where events go while no operation is under way."""
    log.info("%s", event)


_HOST_REFUSES = {
    errno.ENOSPC: ("the disk is full", "free some space and try again"),
    errno.EDQUOT: ("this user's disk quota is used up", "free some space and try again"),
    errno.EROFS: ("the file system is read-only", "remount it, or set FLEETBOX_HOME to another folder"),
    errno.EMFILE: ("too many files are open in this process", "raise its limit: ulimit -n"),
    errno.ENFILE: ("too many files are open on this host", "raise fs.file-max"),
    errno.ENOMEM: ("the host is out of memory", "free some memory and try again"),
}


def unforeseen(what: str, error: BaseException) -> FleetboxError:
    """The error of a failure that nothing on its way has put into words: the host's refusal, or a bug."""
    if isinstance(error, MemoryError):
        error = OSError(errno.ENOMEM, "")
    if isinstance(error, OSError) and error.errno:
        why, hint = _HOST_REFUSES.get(error.errno, (error.strerror or str(error), "see `fleetbox doctor`"))
        return HostError(f"{what} failed", why=f"{error.filename}: {why}" if error.filename else why, hint=hint)
    return FleetboxError(
        f"{what} failed for a reason that fleetbox did not foresee",
        why=f"{type(error).__name__}: {error}",
        hint="holder.log has the traceback; please report it",
    )


class Operation:
    """One long operation. `lines` is its stream; the work begins at once. `listener` hears every event besides."""

    def __init__(self, name: str, work: Work) -> None:
        self.id = new_id()
        self.name = name
        self.listener: Emit | None = None
        self._queue: asyncio.Queue[Event | None] = asyncio.Queue()
        self._cancelled = False
        self.task = asyncio.create_task(self._run(work), name=f"{name} {self.id}")

    async def _run(self, work: Work) -> None:
        self.emit(Started(self.id))
        log.info("%s begins (%s)", self.name, self.id)
        try:
            reach("operation.begin")
            end: Event = Result(await work(self.emit))
            reach("operation.done")
            log.info("%s is done (%s)", self.name, self.id)
        except asyncio.CancelledError:
            log.info("%s was interrupted and is undone (%s)", self.name, self.id)
            end = Error(
                OperationInterrupted(f"{self.name} was interrupted", hint="what was not finished is undone").to_wire()
            )
        except FleetboxError as e:
            log.warning("%s failed (%s): %s", self.name, self.id, e)
            end = Error(e.to_wire())
        except Exception as e:
            log.exception("%s failed (%s)", self.name, self.id)
            end = Error(unforeseen(self.name, e).to_wire())
        self.emit(end)
        self._queue.put_nowait(None)

    def emit(self, event: Event) -> None:
        """Send an event to the client. One that does not read misses how far steps have come, and nothing else."""
        if self.listener is not None:
            self.listener(event)
        if self._queue.qsize() < BACKLOG_MAX or not (isinstance(event, Progress) and event.state == "update"):
            self._queue.put_nowait(event)

    def cancel(self) -> None:
        """Ask the operation to undo itself; repeating it changes nothing."""
        if not self._cancelled:
            self._cancelled = True
            reach("operation.cancel")
            self.task.cancel()

    async def lines(self) -> AsyncIterator[bytes]:
        """The events as JSON lines, with a blank line when there is nothing to say for `KEEPALIVE_S`."""
        while True:
            try:
                async with asyncio.timeout(KEEPALIVE_S):
                    event = await self._queue.get()
            except TimeoutError:
                yield b"\n"
                continue
            if event is None:
                return
            yield msgspec.json.encode(event) + b"\n"


class Steps:
    """Reports the steps of one member, or with an empty name those of the whole."""

    def __init__(self, emit: Emit, member: str = "") -> None:
        self._emit = emit
        self._member = member

    @contextmanager
    def step(self, name: str, message: str = "") -> Any:
        """Emit `begin`, then `done`, or `failed` when the block raises."""
        self._say(name, "begin", message)
        try:
            yield
        except BaseException:
            self._say(name, "failed", message)
            raise
        self._say(name, "done", message)

    def _say(self, step: str, state: str, message: str) -> None:
        self._emit(Progress(step=step, state=state, member=self._member, message=message, at=time.time()))


async def all_of(work: Mapping[str, Awaitable[None]], wanted: str) -> None:
    """Do all of it side by side; a failure stops no other. Raises the only failure, or PartialError naming each."""
    results = await asyncio.gather(*work.values(), return_exceptions=True)
    failures: dict[str, FleetboxError] = {}
    for name, result in zip(work, results, strict=True):
        if isinstance(result, FleetboxError):
            failures[name] = result
        elif isinstance(result, BaseException):
            log.error("%s failed", name, exc_info=result)
            failures[name] = unforeseen(name, result)
    if not failures:
        return
    if len(work) == 1:
        raise next(iter(failures.values()))
    raise PartialError(
        f"{len(failures)} of {len(work)} members could not be {wanted}",
        failures,
        hint="the others are done; repeat the command for the rest",
    )


async def together(*work: Coroutine[Any, Any, T]) -> list[T]:
    """Do all of it side by side and return the results in order.

    The first failure cancels the rest and is raised once all of it has ended: half of it is of no use to anybody.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except BaseExceptionGroup as e:
        raise e.exceptions[0] from None
    return [task.result() for task in tasks]


async def uninterrupted(work: Coroutine[Any, Any, T]) -> T:
    """Do what must be finished once it is begun: whoever cancels meanwhile waits for it, and it is done."""
    task = asyncio.ensure_future(work)
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            assert caller is not None
            caller.uncancel()
    return task.result()


async def in_thread(function: Callable[..., T], *args: object) -> T:
    """Do blocking work on files in a thread. Whoever is cancelled waits for it: it cannot be stopped, and what it makes
    must be there when it is undone.
    """
    work = asyncio.ensure_future(asyncio.to_thread(function, *args))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait({work})
        raise
