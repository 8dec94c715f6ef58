"""Twenty command lines at once do random things to three clusters: nothing hangs, is lost, or is left."""

from __future__ import annotations

import asyncio
import random
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import fleetbox
from fleetbox import Cluster
from fleetbox.backends.base import timeout_scale
from fleetbox.holder.collection.prune import prune
from fleetbox.holder.snapshots.store import SnapshotStore
from fleetbox.records import ClusterRecord, MemberState, read_clusters
from tests.commandline import Command, CommandLines
from tests.differ import Facts, difference, facts
from tests.fakeguests import disk
from tests.process.faults.plan import until

AT_ONCE = 20
COMMANDS = 300
CLUSTERS = ("red", "green", "blue")

# Why a command may fail beside others, by its exit code: what it was about has gone, or has come, meanwhile.
EXPLAINED = {
    1: re.compile(
        r"exists already|has the members? .* already|already has|there is a .* already"
        r"|does not exist any more|of \d+ members could not be"
    ),
    3: re.compile(r"there is no|has no member|does not exist any more"),
}


def command(chance: random.Random) -> list[str]:
    """One of the things that people do, the frequent ones more often."""
    cluster = chance.choice(CLUSTERS)
    member = f"{cluster}/node-{chance.randint(1, 3)}"
    return chance.choice(
        [
            ["up", cluster, "--members", str(chance.randint(1, 3))],
            ["up", cluster, "--members", str(chance.randint(1, 3)), "--cold"],
            ["add", cluster],
            ["start", cluster],
            ["stop", member],
            ["stop", cluster],
            ["destroy", member, "--yes"],
            ["destroy", cluster, "--yes"],
            ["ls"],
            ["ls", "--json"],
            ["status", cluster],
            ["inspect", member],
            ["snapshot", "save", cluster],
            ["snapshot", "ls"],
            ["prune"],
        ]
    )


@pytest.fixture
def home() -> Iterator[Path]:
    home = Path(tempfile.mkdtemp(prefix="fb-", dir="/tmp"))
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("FLEETBOX_CLUSTER", raising=False)
        environment.delenv("FLEETBOX_FAKE_FAULTS", raising=False)
        environment.setenv("FLEETBOX_HOME", str(home))
        environment.setenv("FLEETBOX_BACKEND", "fake")
        yield home
    shutil.rmtree(home, ignore_errors=True)


def check(words: list[str], done: Command, codes: Counter[int]) -> None:
    code = done.wait()
    codes[code] += 1
    said = f"{' '.join(words)}: {code}\n{done.output}"
    assert "Traceback" not in said, said
    assert "internal error" not in said, said
    assert "did not foresee" not in said, said
    assert code == 0 or (code in EXPLAINED and EXPLAINED[code].search(done.output)), said


@pytest.mark.timeout(900 * timeout_scale())
def test_twenty_at_once(home: Path, command_lines: CommandLines) -> None:
    fleetbox.up("red")
    Cluster("red").destroy()
    before = without_templates(home)
    chance, codes = random.Random(20261127), Counter[int]()
    running: list[tuple[list[str], Command]] = []
    for _ in range(COMMANDS):
        if len(running) == AT_ONCE:
            until(lambda: any(one.ended for _, one in running))
            for ended in [pair for pair in running if pair[1].ended]:
                running.remove(ended)
                check(*ended, codes)
        words = command(chance)
        running.append((words, command_lines.start(*words)))
    for words, one in running:
        check(words, one, codes)
    assert sum(codes.values()) == COMMANDS
    assert codes[0] > COMMANDS / 2
    for record in read_clusters():
        assert isinstance(record, ClusterRecord)
        cluster = Cluster(record.name)
        for member in cluster.members:
            assert disk(member).stat().st_size > 0
            assert member.state in (MemberState.RUNNING, MemberState.STOPPED)
        cluster.start()
        assert {m.state for m in cluster.members} == {MemberState.RUNNING}
        cluster.destroy()
    store = SnapshotStore()
    snapshots, unreadable = store.readable()
    assert not unreadable
    store.remove([s.id for s in snapshots])
    asyncio.run(prune())
    until(
        lambda: without_templates(home) == before,
        lambda: f"left:\n{difference(before, without_templates(home))}",
    )


def without_templates(home: Path) -> Facts:
    """The cache may keep a template."""
    return frozenset(fact for fact in facts(home) if fact[0] != "templates")
