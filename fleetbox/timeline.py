"""Where the time of each member's last boot or clone went, step by step, from the cluster's event log."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable

import msgspec

from fleetbox.events import LoggedEvent

_ENDING = frozenset({"stop", "destroy"})
_BAR = "█"


class Span(msgspec.Struct, frozen=True):
    """A step: seconds from the operation's begin. `state` is `done`, `failed`, or `unfinished`: nobody saw its end."""

    step: str
    begin_s: float
    end_s: float
    state: str

    @property
    def seconds(self) -> float:
        return self.end_s - self.begin_s


class Row(msgspec.Struct, frozen=True):
    """The steps of a member, or with an empty `member` those of the operation as a whole, in order of their begin."""

    member: str
    spans: tuple[Span, ...]


class Operation(msgspec.Struct, frozen=True):
    """An operation that brought members up: `name` (up, add, start, …), Unix seconds of its begin, and its rows.

    `state` is `done`, `failed`, `interrupted`, or `unfinished` while it goes on or when its holder died in it.
    """

    name: str
    id: str
    begun_at: float
    seconds: float
    state: str
    rows: tuple[Row, ...]


class Timeline(msgspec.Struct, frozen=True):
    """The operations of which some member's last boot or clone was a part, in order of time."""

    cluster: str
    operations: tuple[Operation, ...]

    def text(self, width: int = 100) -> str:
        """Bars for a terminal of `width` columns."""
        if not self.operations:
            return f"no boot or clone of {self.cluster} is in its event log\n"
        return "\n".join(_text(operation, width) for operation in self.operations)

    def svg(self) -> str:
        """A picture: a row per member, a colored bar per step, on the seconds of each operation."""
        from fleetbox.drawing import draw

        return draw(self)


def timeline(cluster: str, events: Iterable[LoggedEvent]) -> Timeline:
    """The timeline in a cluster's events. Members that are gone have none."""
    found: dict[str, list[LoggedEvent]] = {}
    last: dict[str, str] = {}
    for event in events:
        if event.event == "member" and event.state == "removed":
            last.pop(event.member, None)
        if event.operation:
            found.setdefault(event.operation, []).append(event)
            if event.event == "progress" and event.member and event.step not in _ENDING:
                last[event.member] = event.operation
    wanted = {operation: {m for m, o in last.items() if o == operation} for operation in last.values()}
    made = [_operation(found[operation], members) for operation, members in wanted.items()]
    return Timeline(cluster, tuple(sorted(made, key=lambda operation: operation.begun_at)))


def _operation(events: list[LoggedEvent], members: set[str]) -> Operation:
    begun_at, latest = events[0].at, max(event.at for event in events)
    name, state = "", "unfinished"
    open_: dict[tuple[str, str], float] = {}
    spans: dict[str, list[Span]] = {"": [], **{member: [] for member in sorted(members)}}

    def end(member: str, step: str, at: float, how: str) -> None:
        begin = open_.pop((member, step), at)
        spans[member].append(Span(step, begin - begun_at, at - begun_at, how))

    for event in events:
        if event.event == "operation":
            name, state = event.step, state if event.state == "begin" else event.state
        elif event.event == "progress" and event.member in spans:
            if event.state == "begin":
                open_[event.member, event.step] = event.at
            else:
                end(event.member, event.step, event.at, event.state)
    for member, step in list(open_):
        end(member, step, latest, "unfinished")
    rows = (Row(member, tuple(sorted(found, key=lambda s: s.begin_s))) for member, found in spans.items() if found)
    return Operation(name, events[0].operation, begun_at, latest - begun_at, state, tuple(rows))


def _text(operation: Operation, width: int) -> str:
    at = dt.datetime.fromtimestamp(operation.begun_at).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    names = [row.member or "(all)" for row in operation.rows]
    steps = [span.step for row in operation.rows for span in row.spans]
    left, middle = max(map(len, names), default=0), max(map(len, steps), default=0)
    room = max(10, width - left - middle - 15)
    scale = room / max(operation.seconds, 1e-9)
    lines = [f"{operation.name}  {at}  {operation.state} in {operation.seconds:.1f} s"]
    for name, row in zip(names, operation.rows, strict=True):
        for number, span in enumerate(row.spans):
            begin = min(room - 1, int(span.begin_s * scale))
            length = max(1, min(room - begin, round(span.seconds * scale)))
            bar = f"{' ' * begin}{_BAR * length}".ljust(room)
            mark = "" if span.state == "done" else f"  {span.state}"
            head = name if number == 0 else ""
            lines.append(f"  {head:{left}}  {span.step:{middle}}  {bar} {span.seconds:6.2f} s{mark}")
    return "\n".join(lines) + "\n"
