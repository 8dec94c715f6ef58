"""The live progress display on a terminal: a row per member, a bar for what can be measured."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from fleetbox.sizes import format_size
from fleetbox.wire import Event, Notice, Progress
from fleetbox_cli.render import printable

BOOT_STEPS = ("image", "disk", "network", "boot", "address", "ssh")
"""The way of a member to readiness; while it is on the way, the steps still ahead are shown dimmed."""

MARKS = {"done": ("✓", "green"), "failed": ("✗", "bold red"), "ahead": ("·", "dim")}
SPARE_LINES = 3


@dataclass
class Step:
    """A step of one row. `begun` and `ended` are monotonic seconds."""

    begun: float
    state: str = "begin"
    ended: float = 0.0
    current: float = 0.0
    total: float = 0.0
    unit: str = ""
    message: str = ""
    first: tuple[float, float] | None = None
    """When the first measure came, and what it was: a resumed download does not begin at 0."""

    def rate(self, now: float) -> float:
        """Units per second since the first measure."""
        at, amount = self.first or (now, self.current)
        return (self.current - amount) / max(0.1, now - at)

    def seconds(self, now: float) -> float:
        return (self.ended or now) - self.begun


@dataclass
class Row:
    """What is known of a member, or of the operation as a whole (empty name)."""

    name: str
    steps: dict[str, Step] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        return any(s.state == "failed" for s in self.steps.values())

    @property
    def active(self) -> Step | None:
        """The step that goes on now: the last that began and has not ended."""
        return next((s for s in reversed(self.steps.values()) if not s.ended), None)

    def seconds(self, now: float) -> float:
        """From the first step's begin to the last one's end, or to now."""
        begun = min(s.begun for s in self.steps.values())
        return (now if self.active else max(s.ended for s in self.steps.values())) - begun


class Display:
    """A context manager that shows events on standard error while the operation runs.

    It is gone after success, as the result follows; after a failure it stays and shows how far each member came.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._rows: dict[str, Row] = {}
        self._spinner = Spinner("dots", style="cyan")
        self._console = console or Console(stderr=True, highlight=False)
        self._live = Live(console=self._console, get_renderable=self.render, refresh_per_second=8, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._live.transient = kind is None
        self._live.stop()

    def on_event(self, event: Event) -> None:
        """Take an event in; drawing happens in rich's own thread."""
        if isinstance(event, Notice):
            name = f"{event.member}: " if event.member else ""
            self._console.print(Text(printable(f"{name}{event.message}"), style="yellow"))
        elif isinstance(event, Progress):
            self._progress(event)

    def _progress(self, event: Progress) -> None:
        now = time.monotonic()
        rows = dict(self._rows)  # the drawing thread iterates over the old one
        row = rows.setdefault(event.member, Row(printable(event.member)))
        steps = dict(row.steps)
        step = steps.get(event.step)
        if step is None or (step.ended and event.state in ("begin", "update")):
            step = Step(now)
        steps[event.step] = Step(
            step.begun,
            event.state,
            now if event.state in ("done", "failed") else 0.0,
            event.current or step.current,
            event.total or step.total,
            event.unit or step.unit,
            printable(event.message) or step.message,
            step.first or ((now, event.current) if event.state == "update" else None),
        )
        rows[event.member] = Row(row.name, steps)
        self._rows = rows

    def render(self) -> RenderableType:
        """The display as it is now."""
        now = time.monotonic()
        rows = list(self._rows.values())
        # What goes on or went wrong comes first when not everything fits.
        room = max(3, self._console.height - SPARE_LINES)
        hidden = 0
        if len(rows) > room:
            kept = sorted(rows, key=lambda r: (not r.failed, r.active is None))[:room]
            hidden = len(rows) - len(kept)
            rows = [r for r in rows if r in kept]
        table = Table.grid(padding=(0, 1))
        for row in rows:
            table.add_row(
                self._mark(row),
                Text(row.name, style="bold"),
                self._steps(row, now),
                Text(f"{row.seconds(now):.0f}s", style="dim"),
                self._measure(row, now),
            )
        return Group(table, Text(f"… and {hidden} more", style="dim")) if hidden else table

    def _mark(self, row: Row) -> RenderableType:
        if row.failed:
            return Text(*MARKS["failed"])
        return self._spinner if row.active else Text(*MARKS["done"])

    @staticmethod
    def _steps(row: Row, now: float) -> Text:
        text = Text()
        last = max((BOOT_STEPS.index(s) for s in row.steps if s in BOOT_STEPS), default=len(BOOT_STEPS))
        for name in [*row.steps, *(BOOT_STEPS[last + 1 :] if row.name and row.active else ())]:
            step = row.steps.get(name)
            state = step.state if step else "ahead"
            if state in MARKS:
                mark, style = MARKS[state]
                text.append(f"{name} {mark}  ", style=style)
            else:
                assert step is not None
                text.append(f"{name} {step.seconds(now):.0f}s  ", style="cyan")
        return text

    @staticmethod
    def _measure(row: Row, now: float) -> RenderableType:
        step = row.active
        if step is None:
            return Text("")
        if not step.total:
            done = format_size(step.current) if step.unit == "bytes" and step.current else ""
            return Text(f"{done} {step.message}".strip(), style="dim", no_wrap=True, overflow="ellipsis")
        share = f"{100 * step.current / step.total:.0f}%"
        if step.unit == "bytes":
            rate = format_size(step.rate(now))
            share = f"{format_size(step.current)} of {format_size(step.total)} {share} {rate}/s"
        measure = Table.grid(padding=(0, 1))
        measure.add_row(ProgressBar(total=step.total, completed=step.current, width=24), Text(share))
        return measure
