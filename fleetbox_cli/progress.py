"""How an operation's events are shown: a live display, plain lines, JSON lines, or not at all."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fleetbox.wire import Event, Notice, Progress
from fleetbox_cli.render import printable, write_line
from fleetbox_cli.settings import Settings, is_terminal

OnEvent = Callable[[Event], None]


@contextmanager
def progress(settings: Settings) -> Iterator[OnEvent]:
    """The `on_event` for an operation, on standard error except for JSON lines, which are part of the result."""
    if settings.json:
        yield write_line
    elif settings.quiet:
        yield lambda event: None
    elif is_terminal(sys.stderr):
        from fleetbox_cli.display import Display

        with Display() as display:
            yield display.on_event
    else:
        yield PlainLines()


class PlainLines:
    """A line when a step begins and one when it ends, for logs and pipes."""

    def __init__(self) -> None:
        self._begun: dict[tuple[str, str], float] = {}

    def __call__(self, event: Event) -> None:
        if isinstance(event, Notice):
            self._write(event.member, event.message)
        elif isinstance(event, Progress):
            self._progress(event)

    def _progress(self, event: Progress) -> None:
        key = event.member, event.step
        message = f" ({event.message})" if event.message else ""
        if event.state == "begin":
            self._begun[key] = time.monotonic()
            self._write(event.member, f"{event.step} …{message}")
        elif event.state in ("done", "failed"):
            begun = self._begun.pop(key, None)
            took = f" in {time.monotonic() - begun:.1f} s" if begun is not None else ""
            self._write(event.member, f"{event.step} {event.state}{took}{message}")

    def _write(self, member: str, text: str) -> None:
        line = f"{member}: {text}" if member else text
        sys.stderr.write(f"{printable(line)}\n")
        sys.stderr.flush()
