"""The warm path: clones of a template, and a whole cluster back in time, against one cold boot of the same image.

All in one run, in a network namespace of its own. Ready is an authenticated command over strict host keys that answers
with the member's new name. `REPEATS=3` takes the best of three of each warm step.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from _measure import home, seconds, table, verdict

import fleetbox
from fleetbox import records, snapshots, templates
from fleetbox.wire import Event, Notice
from tests.netns import TestNet
from tests.vm.conftest import cached_image, share_images

REPEATS = int(os.environ.get("REPEATS", "2"))
MEMBERS = 3
MEMORY_BYTES = 512 << 20
REST_S = 15.0  # a new clone has a little more to do some seconds after it is ready
SIXTEEN = (4, 8, 16)


def main() -> None:
    """Measure and print the tables."""
    images = cached_image()
    with TestNet() as net:
        net.enter()
        with home() as where:
            share_images(images, where)
            clones()
    fake()


class Banners:
    """When each member's SSH server first says its banner, watched from beside."""

    def __init__(self, cluster: str, names: Sequence[str]) -> None:
        self._cluster = cluster
        self.seen: dict[str, float] = {}
        self._began = time.monotonic()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._watch, args=(name,)) for name in names]
        for thread in self._threads:
            thread.start()

    def _watch(self, name: str) -> None:
        while not self._stop.wait(0.05):
            try:
                member = records.read_cluster(self._cluster).members[name]
                with socket.create_connection((member.ip, 22), timeout=1) as talk:
                    if talk.recv(4) == b"SSH-":
                        self.seen[name] = time.monotonic() - self._began
                        return
            except (OSError, KeyError, fleetbox.FleetboxError):
                continue

    def last(self) -> float:
        """Seconds until the last of them."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        return max(self.seen.values(), default=float("nan"))


def up(name: str, members: int, *, cold: bool = False, control_line: bool = True) -> float:
    """Seconds of an `up` until all are ready."""
    return seconds(
        lambda: fleetbox.up(name, members=members, memory_bytes=MEMORY_BYTES, cold=cold, control_line=control_line)
    )


def add(name: str, *, control_line: bool) -> float:
    """Seconds of an `add` of one until it is ready."""
    return seconds(lambda: fleetbox.Cluster(name).add(["further"], control_line=control_line))


def clones() -> None:
    """Real machines."""
    cold = up("cold", 1, cold=True)
    fleetbox.Cluster("cold").destroy()
    rows = [("one member, cold", f"{cold:.1f} s", "", "1.00", "", "")]

    def row(what: str, taken: float, banner: float | None, limit: float) -> None:
        shown = "" if banner is None else f"{banner:.1f} s"
        rows.append(
            (what, f"{taken:.1f} s", shown, f"{taken / cold:.3f}", f"{limit:.2f}", verdict(taken / cold, limit))
        )

    row("first `up` of three, template made", up("warm", MEMBERS), None, 1.8)
    memory = [anonymous_mib(member) for member in fleetbox.Cluster("warm").members]
    disk = [disk_mib(member) for member in fleetbox.Cluster("warm").members]
    for control_line, limits in ((True, (0.16, 0.08)), (False, (0.25, 0.10))):
        how = "" if control_line else ", without control line"
        if not control_line:
            up("other", 1, control_line=False)  # makes its template
            fleetbox.Cluster("other").destroy()
        ups, adds, up_banner, add_banner = [], [], 0.0, 0.0
        # The last round is for the banners: each connection that looks for one costs the guest, so it counts apart.
        for looking in (*[False] * REPEATS, True):
            fleetbox.Cluster("warm").destroy()
            banners = Banners("warm", [f"node-{n + 1}" for n in range(MEMBERS)] if looking else [])
            taken = up("warm", MEMBERS, control_line=control_line)
            time.sleep(REST_S)
            further = Banners("warm", ["further"] if looking else [])
            added = add("warm", control_line=control_line)
            if looking:
                up_banner, add_banner = banners.last(), further.last()
            else:
                ups.append(taken)
                adds.append(added)
            fleetbox.Cluster("warm").destroy(["further"])
        row(f"`up` of three{how}", min(ups), up_banner, limits[0])
        row(f"`add` of one{how}", min(adds), add_banner, limits[1])
    title = f"Warm members ({MEMORY_BYTES >> 20} MiB, 2 cpus each): time to ready"
    table(title, ("what", "ready", "last banner", "of one cold boot", "promise", ""), rows)
    fleetbox.Cluster("warm").destroy()
    up("warm", MEMBERS)
    in_time(memory, disk)


def in_time(memory: Sequence[float], disk: Sequence[float]) -> None:
    """A cluster's snapshot and rollback, and what clones occupy."""
    notices: list[str] = []

    def hear(event: Event) -> None:
        if isinstance(event, Notice):
            notices.append(event.message)

    saved = snapshots.save("warm", name="bench", on_event=hear)
    [paused] = [float(m[1]) for text in notices if (m := re.search(r"stood still for ([\d.]+) s", text))]
    cluster = fleetbox.Cluster("warm")
    back, returned = [], []
    for _ in range(REPEATS):
        time.sleep(REST_S)
        began = time.monotonic()
        snapshots.restore("warm", saved.id)
        returned.append(time.monotonic() - began)
        answers = [
            subprocess.Popen(m.ssh_argv(["true"]), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            for m in cluster.members
        ]
        assert [answer.wait() for answer in answers] == [0] * MEMBERS
        back.append(time.monotonic() - began)
    cluster.destroy()
    snapshots.remove([saved.id])
    template_bytes = sum(t.stored_bytes for t in templates.list_templates()) / len(templates.list_templates())
    table(
        "Clones and snapshots of a cluster of three",
        ("what", "measured", "promise", ""),
        [
            (
                "a clone's own memory (Anonymous), three alive",
                f"{max(memory):.0f} MiB",
                "200 MiB",
                verdict(max(memory), 200),
            ),
            ("a clone's own disk", f"{max(disk):.1f} MiB", "20 MiB", verdict(max(disk), 20)),
            ("a template, on disk", f"{template_bytes / 2**20:.0f} MiB", "", ""),
            ("`snapshot save`: machines stand still", f"{paused:.2f} s", "1.5 s", verdict(paused, 1.5)),
            (
                "`restore` of the running cluster, to SSH banners",
                f"{min(returned):.2f} s",
                "4 s",
                verdict(min(returned), 4),
            ),
            ("the same, to an authenticated command on all three", f"{min(back):.2f} s", "", ""),
            ("the snapshot, on disk", f"{saved.stored_bytes / 2**20:.0f} MiB", "", ""),
        ],
    )


def anonymous_mib(member: fleetbox.Member) -> float:
    """The machine's own memory: `Anonymous` of its smaps_rollup."""
    handle = member.record.handle
    assert handle is not None
    text = Path(f"/proc/{handle.process.pid}/smaps_rollup").read_text()
    [kib] = re.findall(r"^Anonymous:\s+(\d+) kB", text, re.MULTILINE)
    return int(kib) / 1024


def disk_mib(member: fleetbox.Member) -> float:
    """What the member's folder occupies, its fixtures included."""
    return sum(path.stat().st_blocks * 512 for path in Path(member.record.folder).iterdir()) / 2**20


def fake() -> None:
    """Sixteen clones of the fake backend's template: the cost of a member must not grow with their number."""
    rows = []
    for size in SIXTEEN:
        with home():
            fleetbox.up("first", members=1, backend="fake")
            taken = seconds(lambda size=size: fleetbox.up("many", members=size, backend="fake"))  # type: ignore[misc]
            rows.append((str(size), f"{taken:.2f} s", f"{taken / size * 1000:.0f} ms"))
    table("Clones on the fake backend, template present", ("members", "up", "per member"), rows)


if __name__ == "__main__":
    main()
