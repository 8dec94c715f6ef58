"""Following a long operation: events to the caller, Ctrl-C to the operation, its result or error back."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any

import msgspec

from fleetbox.errors import HolderError, OperationInterrupted
from fleetbox.shapes import UNDECODABLE
from fleetbox.wire import AnyEvent, Error, Event, Notice, Result, Started

OnEvent = Callable[[Event], None]

_decoder = msgspec.json.Decoder(AnyEvent)


def follow(lines: Iterable[bytes], on_event: OnEvent | None, cancel: Callable[[], None]) -> Any:
    """Read an operation's JSON lines to their end and return its result.

    Events go to `on_event`. The first Ctrl-C or SIGTERM calls `cancel` and goes on reading, as the other side now
    undoes what it had not finished; the second leaves at once. Signals are caught in the main thread only.

    Raises the operation's own error, OperationInterrupted, and HolderError when the stream ends without an answer.
    """
    emit = on_event or (lambda event: None)
    with _signals_cancel(cancel, emit):
        for line in lines:
            if not line.strip():
                continue
            try:
                event = _decoder.decode(line)
            except UNDECODABLE as e:
                raise HolderError("the holder sent what this version does not understand", why=str(e)) from e
            match event:
                case Result():
                    return event.value
                case Error():
                    raise event.exception()
                case Started():
                    pass
                case _:
                    emit(event)
    raise HolderError(
        "the holder ended in the middle of the operation",
        hint="the next command repairs what it left; its log says why",
    )


@contextlib.contextmanager
def _signals_cancel(cancel: Callable[[], None], emit: OnEvent) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise OperationInterrupted(
                "left without waiting", hint="the holder is still undoing; see `fleetbox status`"
            )
        asked = True
        emit(Notice("stopping, undoing what was not finished… (again to leave at once)"))
        cancel()

    # A handler that does not raise lets the read go on (PEP 475).
    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
