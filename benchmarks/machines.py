"""Real machines: cold boots against boots by hand, `ssh`, the holder's cost, `destroy`; beside what peers take.

Each pair is measured in the same run, in a network namespace of its own, on an image that the tests keep as well.
`REPEATS=3` takes the best of three boots each (a boot takes minutes under emulation; one is the default).
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path

import psutil
from _handwritten import ByHand
from _measure import FLEETBOX, best_of, home, seconds, table, verdict

import fleetbox
from fleetbox import paths
from fleetbox.records import live_holder
from tests.netns import TestNet
from tests.vm.conftest import cached_image, share_images

REPEATS = int(os.environ.get("REPEATS", "1"))
MEMBERS = 3
MEMORY_BYTES = 512 << 20
BOOT_LIMIT_S = 900.0
# Vagrant 2.3 with libvirt on a machine of this kind, from the project's brief.
VAGRANT_UP_S, VAGRANT_STATUS_S, VAGRANT_SSH_S, VAGRANT_DESTROY_S = (76.0, 112.0), 1.9, 3.4, 8.2


def main() -> None:
    """Boot, measure, print the tables."""
    images = cached_image()
    with TestNet() as net, tempfile.TemporaryDirectory(prefix="fb-bench-") as scratch:
        net.enter()
        with home() as where:
            share_images(images, where)
            boots(Path(scratch))
            running(Path(scratch))


def up(name: str, members: int, *options: str) -> float:
    """Seconds of one `up` by the command line."""
    argv = [FLEETBOX, "up", name, "--members", str(members), "--memory", "512M", "--quiet", *options]
    return seconds(lambda: subprocess.run(argv, check=True, stdout=subprocess.DEVNULL))


def boots(scratch: Path) -> None:
    """Cold boots, ours and by hand, in turns."""
    rows = []
    hand: ByHand | None = None
    for count in (1, MEMBERS):
        ours, theirs = [], []
        for _ in range(REPEATS):
            ours.append(up("bench", count, "--cold"))
            cluster = fleetbox.Cluster("bench")
            members = [member.record for member in cluster.members]
            hand = ByHand(
                scratch, cluster.record, fleetbox.images.inspect(members[0].image_digest), cpu_options(members[0])
            )
            hand.known_hosts.write_bytes(paths.known_hosts("bench").read_bytes())
            for record in members:
                hand.keep(record)
            cluster.destroy()
            theirs.append(hand.boot(count, BOOT_LIMIT_S))
        ratio = min(ours) / min(theirs)
        what = "one member" if count == 1 else f"{count} members together"
        rows.append((what, f"{min(ours):.1f} s", f"{min(theirs):.1f} s", f"{ratio:.2f}", "1.15", verdict(ratio, 1.15)))
    title = f"Cold `up` to SSH-ready, against qemu by hand ({MEMORY_BYTES >> 20} MiB, 2 cpus each)"
    table(title, ("boot", "fleetbox", "by hand", "ratio", "promise", ""), rows)


def cpu_options(record: fleetbox.MemberRecord) -> list[str]:
    """The accelerator and CPU model that our own machine runs with: the comparison is about everything else."""
    assert record.handle is not None
    argv = psutil.Process(record.handle.process.pid).cmdline()
    options = []
    for word in ("-accel", "-cpu"):
        options += [word, argv[argv.index(word) + 1]]
    return options


def running(scratch: Path) -> None:
    """What a running cluster of three costs, and its end."""
    first_s = up("bench", MEMBERS)
    destroy_bench = [FLEETBOX, "destroy", "bench", "--yes", "--quiet"]
    subprocess.run(destroy_bench, check=True, stdout=subprocess.DEVNULL)
    warm_s = up("bench", MEMBERS)
    time.sleep(15)  # clones have a little more to do some seconds after they are ready
    holder = live_holder("bench")
    assert holder is not None
    ref = "bench/node-1"
    member = fleetbox.resolve_member(ref)

    def ours() -> None:
        subprocess.run([FLEETBOX, "ssh", ref, "true"], check=True, stdin=subprocess.DEVNULL)

    first = seconds(ours)
    plain = member.ssh_argv(["true"])
    warm, guest = best_of(10, ours, lambda: subprocess.run(plain, check=True, stdin=subprocess.DEVNULL))
    status = best_of(5, lambda: subprocess.run([FLEETBOX, "status", "bench"], check=True, stdout=subprocess.DEVNULL))[0]

    process = psutil.Process(holder.process.pid)
    before = process.cpu_times()
    time.sleep(60)
    after = process.cpu_times()
    cpu = (after.user + after.system - before.user - before.system) / 60 * 100
    resident = process.memory_info().rss / 1e6

    destroy = seconds(lambda: subprocess.run(destroy_bench, check=True, stdout=subprocess.DEVNULL))

    over_ms = (warm - guest) * 1000
    table(
        "A running cluster of three",
        ("what", "measured", "promise", ""),
        [
            ("`fleetbox ssh REF true`, first", f"{first:.2f} s", "", ""),
            ("the same, warm", f"{warm:.3f} s ({first / warm:.0f}x faster)", "", verdict(warm * 3, first)),
            ("of it beyond the guest's own work", f"{over_ms:.0f} ms", "150 ms", verdict(over_ms, 150)),
            ("holder's memory", f"{resident:.0f} MB", "80 MB", verdict(resident, 80)),
            ("holder's CPU over an idle minute", f"{cpu:.2f} %", "0.5 %", verdict(cpu, 0.5)),
            ("`destroy` of three running", f"{destroy:.2f} s", "2 s", verdict(destroy, 2)),
        ],
    )
    table(
        "Beside Vagrant with libvirt (its figures from the project's brief, same kind of machine)",
        ("what", "fleetbox", "Vagrant", "ratio"),
        [
            ("up of three, the first (template made)", f"{first_s:.1f} s", "76-112 s", beside(first_s)),
            ("up of three, template present", f"{warm_s:.1f} s", "76-112 s", beside(warm_s)),
            ("status", f"{status:.2f} s", f"{VAGRANT_STATUS_S} s", f"{status / VAGRANT_STATUS_S:.2f}"),
            ("ssh -c true", f"{warm:.2f} s", f"{VAGRANT_SSH_S} s", f"{warm / VAGRANT_SSH_S:.2f}"),
            ("destroy of three", f"{destroy:.2f} s", f"{VAGRANT_DESTROY_S} s", f"{destroy / VAGRANT_DESTROY_S:.2f}"),
        ],
    )


def beside(up_s: float) -> str:
    """The ratio to Vagrant's slowest and quickest `up` of three."""
    return f"{up_s / VAGRANT_UP_S[1]:.2f}-{up_s / VAGRANT_UP_S[0]:.2f}"


if __name__ == "__main__":
    main()
