"""What crash safety costs: adoption after a holder's death, prune with nothing to do, many records.

`fleetbox` itself is told from its start-up: `template ls` (a job process as well) for `prune`, `ls` of an empty home
for `ls`. `REAL=1` measures adoption on real machines as well.
"""

from __future__ import annotations

import os
import signal
import time

import msgspec
from _measure import FLEETBOX, best_of, home, run, seconds, table, verdict

import fleetbox
from fleetbox import paths
from fleetbox.identity import is_alive
from fleetbox.records import ClusterRecord, MemberRecord, MemberState, live_holder, read_cluster

REPEATS = int(os.environ.get("REPEATS", "5"))
ADOPTION_S, PRUNE_S, LS_S = 1.5, 0.3, 0.25
CLUSTERS, MEMBERS = 10, 100


def main() -> None:
    """Print the table."""
    rows = [adoption("fake"), *prune_and_ls()]
    if os.environ.get("REAL"):
        rows.append(real_adoption())
    table("Crash safety", ("what", "measured", "promise", ""), rows)


def killed(cluster: str) -> None:
    """Kill the cluster's holder and wait for its end."""
    holder = live_holder(cluster)
    assert holder is not None
    os.kill(holder.process.pid, signal.SIGKILL)
    while is_alive(holder.process):
        time.sleep(0.001)


def adopted(cluster: str) -> float:
    """From the first command after a kill to the first status with a holder: `start` of what runs changes nothing."""

    def adopt() -> None:
        fleetbox.Cluster(cluster).start()
        assert fleetbox.Cluster(cluster).status().holder_running

    killed(cluster)
    return seconds(adopt)


def adoption(backend: str) -> tuple[str, ...]:
    """Three machines are adopted."""
    with home():
        fleetbox.up("three", members=3, backend=backend)
        taken = min(adopted("three") for _ in range(REPEATS))
        restart = min(seconds(lambda: fleetbox.holders.restart("three")) for _ in range(REPEATS))
    return (
        f"adoption of three to the first status ({backend}; restart of the holder {restart:.2f} s)",
        f"{taken:.2f} s",
        f"{ADOPTION_S} s",
        verdict(taken, ADOPTION_S),
    )


def real_adoption() -> tuple[str, ...]:
    """The same on machines of the test image, in a network of their own."""
    from tests.netns import TestNet
    from tests.vm.conftest import cached_image, share_images

    image = cached_image()
    with TestNet() as net:
        net.enter()
        with home() as path:
            share_images(image, path)
            fleetbox.up("three", members=3, memory_bytes=512 << 20)
            taken = min(adopted("three") for _ in range(REPEATS))
    return "the same, real machines", f"{taken:.2f} s", f"{ADOPTION_S} s", verdict(taken, ADOPTION_S)


def prune_and_ls() -> list[tuple[str, ...]]:
    """Prune where nothing is to be pruned, and `ls` of a thousand members, each beyond its own start-up."""
    with home():
        run(FLEETBOX, "ls", "--json")
        empty = best_of(REPEATS, lambda: run(FLEETBOX, "ls", "--json"))[0]
        job_alone, prune = best_of(REPEATS, start_up_of_a_job, lambda: run(FLEETBOX, "prune"))
        fleetbox.up("live", members=3, backend="fake")
        with_cluster = best_of(REPEATS, lambda: run(FLEETBOX, "prune"))[0]
        model = read_cluster("live")
        for number in range(CLUSTERS):
            write_cluster(model, f"many-{number}")
        many = best_of(REPEATS, lambda: run(FLEETBOX, "ls", "--json"))[0]
        for number in range(CLUSTERS):
            paths.cluster_record(f"many-{number}").unlink()
    return [
        beyond("`prune` with nothing to do, empty home", prune, job_alone, PRUNE_S),
        beyond("the same beside a live cluster", with_cluster, job_alone, PRUNE_S),
        beyond(f"`ls --json` of {CLUSTERS * MEMBERS} members", many, empty, LS_S),
    ]


def start_up_of_a_job() -> None:
    """What every operation of the host costs before it does anything: `template ls` of none."""
    run(FLEETBOX, "template", "ls")


def beyond(what: str, taken: float, start_up: float, promise: float) -> tuple[str, ...]:
    """One row: what is left of the time beyond its start-up."""
    over = taken - start_up
    return (
        f"{what}, beyond start-up ({start_up * 1000:.0f} ms)",
        f"{over * 1000:.0f} ms",
        f"{promise * 1000:.0f} ms",
        verdict(over, promise),
    )


def write_cluster(model: ClusterRecord, name: str) -> None:
    """Put a cluster of stopped members on disk."""
    one = next(iter(model.members.values()))
    members: dict[str, MemberRecord] = {
        f"node-{n}": msgspec.structs.replace(
            one,
            id=f"{n:016x}",
            name=f"node-{n}",
            state=MemberState.STOPPED,
            handle=None,
            folder=str(paths.member_dir(name, f"node-{n}")),
        )
        for n in range(1, MEMBERS + 1)
    }
    paths.cluster_state_dir(name).mkdir(parents=True, exist_ok=True)
    paths.cluster_record(name).write_bytes(
        msgspec.json.encode(msgspec.structs.replace(model, name=name, members=members))
    )


if __name__ == "__main__":
    main()
