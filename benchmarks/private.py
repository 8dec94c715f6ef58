"""Private networks against the host's: what they add to `up`, ways in, the way out, and forks of whole clusters.

All in one run, in a network namespace of its own with another that stands for the internet. `REPEATS=3` takes the best
of three.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from _measure import best_of, home, seconds, table, verdict

import fleetbox
from tests.netns import INTERNET_ADDRESS, TestNet
from tests.vm.conftest import cached_image, share_images

REPEATS = int(os.environ.get("REPEATS", "3"))
MEMBERS = 3
MEMORY_BYTES = 512 << 20
MEGABYTES = 64
REST_S = 10.0

_SOURCE = """
import socket, sys
server = socket.create_server((sys.argv[1], 7000))
print("ready", flush=True)
chunk = bytes(1 << 16)
while True:
    connection, _ = server.accept()
    try:
        for _ in range(int(sys.argv[2]) * 16): connection.sendall(chunk)
    except OSError: pass
    connection.close()
"""


def main() -> None:
    """Measure and print the tables."""
    images = cached_image()
    with TestNet() as net:
        net.enter()
        source = net.internet.start(sys.executable, "-c", _SOURCE, INTERNET_ADDRESS, str(MEGABYTES))
        assert source.stdout is not None
        source.stdout.readline()
        with home() as where:
            share_images(images, where)
            ups()
            ways()


@contextmanager
def cluster(network: str) -> Iterator[fleetbox.Cluster]:
    """A cluster of three on that network, destroyed afterwards."""
    made = fleetbox.up(f"on-{network}", members=MEMBERS, memory_bytes=MEMORY_BYTES, network=network)  # type: ignore[arg-type]
    try:
        yield made
    finally:
        made.destroy()


def up(network: str) -> None:
    with cluster(network):
        pass


def ups() -> None:
    """`up` and `destroy` of three, the template there, in turns; and of one fake member, where nothing else counts."""
    up("host")  # makes the template
    host, private = best_of(REPEATS, lambda: up("host"), lambda: up("private"))

    def empty(network: str) -> None:
        made = fleetbox.up("bare", members=1, backend="fake", network=network)  # type: ignore[arg-type]
        made.destroy()

    bare_host, bare_private = best_of(REPEATS, lambda: empty("host"), lambda: empty("private"))
    added = private - host
    took = "up and destroy of"
    judged = (f"{added * 1e3:+.0f} ms", verdict(added, 0.25))
    rows = [
        (f"{took} three", f"{host:.2f} s", f"{private:.2f} s", f"{private / host:.2f}", *judged),
        (
            f"{took} a fake one",
            f"{bare_host:.2f} s",
            f"{bare_private:.2f} s",
            f"{bare_private / bare_host:.2f}",
            "",
            "",
        ),
    ]
    table("Private networks beside the host's", ("what", "host", "private", "ratio", "added (250 ms)", ""), rows)


def ways() -> None:
    """Ways in and out, on both kinds of network; and a fork."""
    figures: dict[str, dict[str, float]] = {}
    for network in ("host", "private"):
        with cluster(network) as made:
            time.sleep(REST_S)
            figures[network] = measured(made)
            if network == "private":
                fork = forks(made)
    labels = {
        "dial": ("a connection from Python", 5.0, "ms"),
        "ssh": ("`ssh REF true`, multiplexed", 150.0, "ms"),
        "first": ("the same, the first", 0.0, "ms"),
        "egress": ("a download from outside", 0.0, "MB/s"),
    }
    rows = []
    for key, (label, limit, unit) in labels.items():
        host, private = figures["host"][key], figures["private"][key]
        promised = (f"{limit:.0f} {unit}", verdict(private, limit)) if limit else ("", "")
        rows.append((label, f"{host:.1f} {unit}", f"{private:.1f} {unit}", f"{private / host:.2f}", *promised))
    table("Ways in and out", ("what", "host", "private", "ratio", "promise", ""), rows)
    saved, ready, answered = fork
    rows = [
        ("`cluster.fork()` of three, to ready", f"{ready:.2f} s", "2 s", verdict(ready, 2.0)),
        ("of it, saving the snapshot", f"{saved:.2f} s", "", ""),
        ("to an authenticated command on all three", f"{answered:.2f} s", "", ""),
    ]
    table("Forks", ("what", "measured", "promise", ""), rows)


def measured(made: fleetbox.Cluster) -> dict[str, float]:
    member = made.member("node-1")
    first = seconds(lambda: subprocess.run(member.ssh_argv(["true"]), check=True, stdin=subprocess.DEVNULL))
    argv = member.ssh_argv(["true"])
    [warm] = best_of(REPEATS * 3, lambda: subprocess.run(argv, check=True, stdin=subprocess.DEVNULL))

    def dial() -> None:
        member.connect(22).close()

    dial()
    [dialled] = best_of(REPEATS * 3, dial)
    read = f"import socket; s = socket.create_connection(('{INTERNET_ADDRESS}', 7000))\\nwhile s.recv(1 << 16): pass"
    load = member.ssh_argv([f"python3 -c $'{read.replace(chr(39), chr(92) + chr(39))}'"])
    [download] = best_of(REPEATS, lambda: subprocess.run(load, check=True, stdin=subprocess.DEVNULL))
    return {"dial": dialled * 1e3, "ssh": warm * 1e3, "first": first * 1e3, "egress": MEGABYTES * 1.048576 / download}


def forks(made: fleetbox.Cluster) -> tuple[float, float, float]:
    """Seconds of saving, of the whole fork until `fork` returns, and until all of it has answered a command."""
    best = (float("inf"),) * 3
    for _ in range(REPEATS):
        time.sleep(REST_S)
        saved = 0.0

        def hear(event: object) -> None:
            nonlocal saved
            if getattr(event, "step", "") == "check" and not saved:
                saved = time.monotonic() - began  # noqa: B023 - called before the loop goes on

        began = time.monotonic()
        fork = made.fork("forked", on_event=hear)
        ready = time.monotonic() - began
        answers = [subprocess.Popen(m.ssh_argv(["true"]), stdin=subprocess.DEVNULL) for m in fork.members]
        assert [answer.wait() for answer in answers] == [0] * MEMBERS
        best = min(best, (saved, ready, time.monotonic() - began), key=lambda taken: taken[1])
        fork.destroy()
    return best


if __name__ == "__main__":
    main()
