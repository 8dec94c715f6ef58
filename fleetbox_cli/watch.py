"""`fleetbox status --watch`: the members as they are now, and what each uses.

Records are read again when the cluster's event log says that something changed; statistics come from its holder, and
two of them make the rates.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Self

import msgspec

from fleetbox.cluster import Cluster
from fleetbox.errors import HolderError, NotFoundError
from fleetbox.events import REMOVED, EventReader
from fleetbox.sizes import format_size
from fleetbox.usage import Statistics
from fleetbox.wire import ClusterStatistics
from fleetbox_cli.render import Output, Table, age, write_line
from fleetbox_cli.settings import Settings, is_terminal
from fleetbox_cli.views import ClusterView, cluster_view


class Usage(msgspec.Struct, frozen=True):
    """What a member uses: `cpu_percent` of one core, bytes, and bytes a second. None: not known (yet)."""

    cpu_percent: float | None = None
    memory_bytes: int | None = None
    disk_read_rate: float | None = None
    disk_write_rate: float | None = None
    network_receive_rate: float | None = None
    network_send_rate: float | None = None


class MemberSample(msgspec.Struct, frozen=True):
    """A member at one moment. `up_s` is how long it has run, 0 when it does not."""

    name: str
    state: str
    ip: str
    up_s: float
    usage: Usage


class Sample(msgspec.Struct, frozen=True, tag_field="event", tag="sample"):
    """A cluster at one moment (`at`, Unix seconds)."""

    at: float
    cluster: str
    holder_running: bool
    members: list[MemberSample]


def rates(before: ClusterStatistics | None, now: ClusterStatistics) -> dict[str, Usage]:
    """What each member uses, from two readings of its counters; with one there is only its memory.

    Counters that went down are those of a new machine.
    """
    return {name: _usage(before, now.at_s, name, counted) for name, counted in now.members.items()}


def _usage(before: ClusterStatistics | None, at_s: float, name: str, counted: Statistics) -> Usage:
    earlier = before.members.get(name) if before else None
    if before is None or earlier is None or at_s <= before.at_s or counted.cpu_seconds < earlier.cpu_seconds:
        return Usage(memory_bytes=counted.memory_bytes)
    seconds = at_s - before.at_s

    def rate(now: int, then: int) -> float:
        return max(0, now - then) / seconds

    return Usage(
        cpu_percent=100 * (counted.cpu_seconds - earlier.cpu_seconds) / seconds,
        memory_bytes=counted.memory_bytes,
        disk_read_rate=rate(counted.disk_read_bytes, earlier.disk_read_bytes),
        disk_write_rate=rate(counted.disk_written_bytes, earlier.disk_written_bytes),
        network_receive_rate=rate(counted.network_received_bytes, earlier.network_received_bytes),
        network_send_rate=rate(counted.network_sent_bytes, earlier.network_sent_bytes),
    )


class Watch:
    """Watches a cluster until it is removed; a context manager."""

    def __init__(self, cluster: Cluster, interval_s: float) -> None:
        self._cluster = cluster
        self._interval_s = interval_s
        self._reader = EventReader(cluster.name)
        self._before: ClusterStatistics | None = None
        self._usage: dict[str, Usage] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    def samples(self) -> Iterator[tuple[ClusterView, Sample]]:
        """The cluster now, then after every interval and every change, until it is removed."""
        due = time.monotonic()
        while True:
            removed = any(e.event == "cluster" and e.state == REMOVED for e in self._reader.read())
            try:
                view = cluster_view(self._cluster.record)
            except NotFoundError:
                return
            if removed and not view.members:
                return
            if time.monotonic() >= due:
                due = time.monotonic() + self._interval_s
                self._measure()
            yield view, self._sample(view)
            while (left := due - time.monotonic()) > 0:
                if self._reader.wait(left) and self._changed():
                    break

    def _changed(self) -> bool:
        """Whether there is news: the log's folder holds other files, too, and the first wait returns at once."""
        last = self._reader.last
        for _ in self._reader.read():
            pass
        return self._reader.last != last or self._reader.gone

    def _measure(self) -> None:
        try:
            now = self._cluster.statistics()
        except HolderError:
            now = ClusterStatistics(time.monotonic(), {})  # it ends just now
        self._usage = rates(self._before, now)
        self._before = now

    def _sample(self, view: ClusterView) -> Sample:
        now = time.time()
        members = [
            MemberSample(
                name=m.name,
                state=m.state,
                ip=m.ip,
                up_s=max(0.0, now - m.started_at) if m.state == "running" and m.started_at else 0.0,
                usage=self._usage.get(m.name, Usage()) if m.state != "stopped" else Usage(),
            )
            for m in view.members
        ]
        return Sample(now, view.name, view.holder_running, members)


def table(sample: Sample) -> Table:
    """The members, a row each."""
    columns = ("MEMBER", "STATE", "ADDRESS", "UP", "CPU", "MEMORY", "DISK R", "DISK W", "NET RX", "NET TX")
    rows = []
    for m in sample.members:
        used = m.usage
        rows.append(
            (
                *(m.name, m.state, m.ip, age(m.up_s) if m.up_s else ""),
                "" if used.cpu_percent is None else f"{used.cpu_percent:.0f}%",
                "" if used.memory_bytes is None else format_size(used.memory_bytes),
                *map(
                    _per_second,
                    (used.disk_read_rate, used.disk_write_rate, used.network_receive_rate, used.network_send_rate),
                ),
            )
        )
    return Table(columns, tuple(rows))


def _per_second(rate: float | None) -> str:
    return "" if rate is None else f"{format_size(round(rate))}/s"


def watch(cluster: Cluster, interval_s: float, settings: Settings) -> Output:
    """Show it until Ctrl-C or the cluster's end: live on a terminal, else one table after the other."""
    with Watch(cluster, interval_s) as watching, contextlib.suppress(KeyboardInterrupt):
        if settings.json:
            for _, sample in watching.samples():
                write_line(sample)
        elif is_terminal(sys.stdout):
            _live(watching)
        else:
            for _, sample in watching.samples():
                sys.stdout.write("".join(f"{line}\n" for line in [*table(sample).lines(), ""]))
                sys.stdout.flush()
    return Output("watch", {"cluster": cluster.name})


def _live(watching: Watch) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False)
    with Live(console=console, auto_refresh=False) as live:
        for view, sample in watching.samples():
            holder = f"holder {view.holder_pid}" if view.holder_running else "no holder"
            accelerator = f" ({view.accelerator})" if view.accelerator else ""
            clock = time.strftime("%H:%M:%S", time.localtime(sample.at))
            head = f"{view.name}  {view.backend}{accelerator}  {view.subnet}  {holder}  {clock}"
            lines = table(sample).lines()
            room = max(1, console.height - 3)
            more = [f"… and {len(lines) - room} more"] if len(lines) > room else []
            shown = Text("\n".join([head, "", *lines[:room], *more]), no_wrap=True, overflow="ellipsis")
            shown.stylize("bold", 0, len(view.name))
            live.update(shown, refresh=True)
