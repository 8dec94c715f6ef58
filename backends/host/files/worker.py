"""Blocking file and network work in threads that a cancelled coroutine can stop, and the progress that they report."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from fleetbox.wire import Event, Progress

T = TypeVar("T")
OnEvent = Callable[[Event], None]

_INTERVAL_S = 0.1
_GRACE_S = 2.0


class Stopped(Exception):
    """Raised in a worker whose caller does not want its work any more."""


class Stop:
    """A worker asks this between its steps; `waker` may hold what interrupts the step that blocks right now."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.waker: Callable[[], object] | None = None

    def check(self) -> None:
        if self._event.is_set():
            raise Stopped

    def sleep(self, seconds: float) -> None:
        """Sleep, but not past the stop."""
        self._event.wait(seconds)
        self.check()

    def set(self) -> None:
        self._event.set()
        waker = self.waker
        if waker is not None:
            with contextlib.suppress(Exception):  # whatever it interrupts may have ended meanwhile
                waker()


async def run(function: Callable[[Stop], T]) -> T:
    """Call `function(stop)` in a thread of its own and return its result.

    Cancelled, the thread is told to stop and waited for a moment. One that is stuck where nothing interrupts it (a name
    being resolved) is left behind: it is a daemon, and ends at its next `stop.check()` without having done anything
    more.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    stop = Stop()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # None only where T is None

    def work() -> None:
        result, error = None, None
        try:
            result = function(stop)
        except BaseException as e:  # handed to the waiting coroutine
            error = e
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(settle, result, error)

    thread = threading.Thread(target=work, name="files", daemon=True)
    thread.start()
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait({future}, timeout=_GRACE_S)
        if future.done() and not future.cancelled():
            future.exception()  # it is ours now, and nobody else's
        raise


class Meter:
    """Reports how far a step has come, from any thread, at most ten times a second."""

    def __init__(self, on_event: OnEvent, step: str, message: str, unit: str = "bytes") -> None:
        self._loop = asyncio.get_running_loop()
        self._on_event = on_event
        self._step, self._message, self._unit = step, message, unit
        self._last = 0.0

    def update(self, current: float, total: float, message: str = "") -> None:
        now = time.monotonic()
        if now - self._last < _INTERVAL_S:
            return
        self._last = now
        event = Progress(
            step=self._step,
            state="update",
            message=message or self._message,
            current=current,
            total=total,
            unit=self._unit,
            at=time.time(),
        )
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
            self._loop.call_soon_threadsafe(self._on_event, event)


@contextlib.contextmanager
def step(on_event: OnEvent, name: str, message: str) -> Iterator[None]:
    """Report the beginning and the end, good or bad, of a step."""

    def report(state: str) -> None:
        on_event(Progress(step=name, state=state, message=message, at=time.time()))

    report("begin")
    try:
        yield
    except BaseException:
        report("failed")
        raise
    report("done")
