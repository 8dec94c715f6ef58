"""Random sequences of commands, kills and faults against a model that is a dictionary.

At least 200 sequences in all; they are the same every time. FLEETBOX_MODEL_SEQUENCES=N runs N others, anew each time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import fleetbox
from fleetbox import Cluster, snapshots
from fleetbox.backends.base import timeout_scale
from fleetbox.errors import FleetboxError
from fleetbox.holder.collection.prune import prune
from fleetbox.holder.snapshots.store import SnapshotStore
from fleetbox.identity import is_alive
from fleetbox.records import MemberState, cluster_names, live_holder
from tests.commandline import CommandLines
from tests.differ import Facts, difference, facts
from tests.fakeguests import handle, read, write
from tests.process.faults.plan import Plan, until

SEQUENCES = int(os.environ.get("FLEETBOX_MODEL_SEQUENCES", "0"))
WEB = Cluster("web")
BLANK = "\0" * 6
NAMES = ("node-1", "node-2", "node-3")
POINTS = (
    "record.write",
    "record.written",
    "record.replaced",
    "cluster.reserved",
    "member.disk.made",
    "machine.spawned",
    "member.launched",
    "member.recorded",
    "member.stop",
    "member.ended",
    "member.erased",
    "save.memory",
    "save.land",
    "restore.up",
    "restore.joined",
    "restore.resumed",
    "cluster.disconnect",
    "operation.done",
)


class Model(RuleBasedStateMachine):
    """`members`: whether each runs, and what is on its disk; `saved`: the same for a snapshot `old`."""

    lines: CommandLines
    plan: Plan
    home: Path
    empty: Facts

    def __init__(self) -> None:
        super().__init__()
        self.members: dict[str, tuple[bool, str]] = {}
        self.ids: dict[str, str] = {}
        self.saved: dict[str, tuple[bool, str]] = {}
        self.saved_ids: dict[str, str] = {}
        self.tokens = 0

    # --- commands

    @rule(names=st.sets(st.sampled_from(NAMES), min_size=1), cold=st.booleans())
    def up(self, names: set[str], cold: bool) -> None:
        wanted = sorted(names | set(self.members))
        fleetbox.up("web", names=wanted, cold=cold)
        self.members = {name: (True, self.members.get(name, (True, BLANK))[1]) for name in wanted}

    @precondition(lambda self: self.members)
    @rule(name=st.sampled_from(NAMES))
    def add(self, name: str) -> None:
        if name in self.members:
            with pytest.raises(FleetboxError):
                WEB.add([name], cold=True)
        else:
            WEB.add([name], cold=True)
            self.members[name] = (True, BLANK)

    @precondition(lambda self: self.members)
    @rule(data=st.data())
    def stop(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.members)))
        WEB.stop([name])
        self.members[name] = (False, self.members[name][1])

    @precondition(lambda self: self.members)
    @rule()
    def start(self) -> None:
        WEB.start()
        self.members = {name: (True, token) for name, (_, token) in self.members.items()}

    @precondition(lambda self: self.members)
    @rule(data=st.data())
    def destroy(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.members)))
        WEB.destroy([name])
        del self.members[name]

    @precondition(lambda self: self.members)
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.members)))
        self.tokens += 1
        write(WEB.member(name), f"{self.tokens:06}")
        self.members[name] = (self.members[name][0], f"{self.tokens:06}")

    @precondition(lambda self: self.members and not self.saved)
    @rule()
    def save(self) -> None:
        snapshots.save("web", name="old")
        self.saved, self.saved_ids = dict(self.members), self._ids()

    @precondition(lambda self: self.saved and self._restorable())
    @rule()
    def restore(self) -> None:
        snapshots.restore("web", "old")
        self.members = dict(self.saved)

    @precondition(lambda self: self.saved)
    @rule()
    def remove_snapshot(self) -> None:
        SnapshotStore().remove(["old"])
        self.saved = {}

    @rule()
    def prune(self) -> None:
        asyncio.run(prune())

    # --- kills

    @precondition(lambda self: self.members)
    @rule()
    def kill_holder(self) -> None:
        holder = live_holder("web")
        if holder is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(holder.process.pid, signal.SIGKILL)
            until(lambda: not is_alive(holder.process))

    @precondition(lambda self: any(runs for runs, _ in self.members.values()))
    @rule(data=st.data())
    def kill_machine(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(n for n, (runs, _) in self.members.items() if runs)))
        process = handle(WEB.member(name)).process
        os.kill(process.pid, signal.SIGKILL)
        until(lambda: not is_alive(process))
        self.members[name] = (False, self.members[name][1])

    @precondition(lambda self: self.members)
    @rule(
        verb=st.sampled_from(["add", "stop", "destroy", "save", "restore"]),
        point=st.sampled_from(POINTS),
        number=st.integers(1, 3),
        way=st.sampled_from(["holder", "cli", "interrupt", "error"]),
    )
    def strike(self, verb: str, point: str, number: int, way: str) -> None:
        """A command that is struck, if it comes to the point; then everything is brought up again."""
        words, possible = self._struck(verb)
        if not words:
            return
        self.plan.set(point, "error" if way == "error" else "wait", number)
        command = self.lines.start(*words)
        until(lambda: self.plan.fired() or command.ended)
        fired = self.plan.fired()
        if fired is not None and way == "holder":
            with contextlib.suppress(ProcessLookupError):
                os.kill(fired.pid, signal.SIGKILL)
        elif fired is not None and way != "error":
            command.signal(signal.SIGKILL if way == "cli" else signal.SIGINT)
        self.plan.go()
        command.wait()
        self.plan.clear()
        if set(self.members) != {"node-1"} or verb != "destroy" or "web" in cluster_names():
            with contextlib.suppress(FleetboxError):
                WEB.start()
        self._learn(possible)

    def _struck(self, verb: str) -> tuple[tuple[str, ...], dict[str, set[str]]]:
        """The command line, and what may be on each member's disk then; an empty text stands for no such member."""
        possible = {name: {token} for name, (_, token) in self.members.items()}
        if verb == "add":
            free = [name for name in NAMES if name not in self.members]
            if not free:
                return (), {}
            return ("add", "web", free[0], "--cold"), possible | {free[0]: {"", BLANK}}
        if verb == "destroy":
            name = min(self.members)
            return ("destroy", f"web/{name}", "--yes"), possible | {name: possible[name] | {""}}
        if verb == "save":
            return ("snapshot", "save", "web"), possible
        if verb == "restore":
            if not self.saved or not self._restorable():
                return (), {}
            for name, (_, token) in self.saved.items():
                possible[name] = possible.get(name, {""}) | {token}
            return ("restore", "web", "old"), possible
        return ("stop", "web"), possible

    def _learn(self, possible: dict[str, set[str]]) -> None:
        """Take over what has become of a command that was struck, if it is one of the possible ways."""
        until(self._idle)
        found = {m.name: m for m in WEB.members} if "web" in cluster_names() else {}
        for name, tokens in possible.items():
            assert (read(found[name]) if name in found else "") in tokens, name
        assert set(found) <= set(possible)
        self.members = {name: (m.state is MemberState.RUNNING, read(m)) for name, m in found.items()}
        for snapshot in SnapshotStore().readable()[0]:
            if snapshot.name != "old":
                SnapshotStore().remove([snapshot.id])

    def _idle(self) -> bool:
        """Whether nothing is half done any more."""
        return "web" not in cluster_names() or all(
            m.state in (MemberState.RUNNING, MemberState.STOPPED) for m in WEB.members
        )

    def _ids(self) -> dict[str, str]:
        return {m.name: m.record.id for m in WEB.members}

    def _restorable(self) -> bool:
        """Whether the snapshot is of the cluster as it is: no member is new or made anew since."""
        if not self.members:
            return False
        ids = self._ids()
        return all(self.saved_ids.get(name) == id_ for name, id_ in ids.items())

    # --- what must be so

    @invariant()
    def the_records_and_disks_are_as_the_model_says(self) -> None:
        wanted = {
            name: (MemberState.RUNNING if runs else MemberState.STOPPED, token)
            for name, (runs, token) in self.members.items()
        }

        def found() -> dict[str, tuple[MemberState, str]]:
            with contextlib.suppress(FleetboxError, AssertionError):
                return {m.name: (m.state, read(m)) for m in WEB.members} if "web" in cluster_names() else {}
            return {"": (MemberState.ERROR, "")}

        until(lambda: found() == wanted, lambda: f"{found()}\nand not\n{wanted}")
        assert SnapshotStore().names() == ({"old"} if self.saved else set())

    def teardown(self) -> None:
        self.plan.clear()
        WEB.destroy()
        SnapshotStore().remove([s.id for s in SnapshotStore().readable()[0]])
        asyncio.run(prune())
        until(
            lambda: {f for f in facts(self.home) if f[0] != "templates"} == self.empty,
            lambda: f"left:\n{difference(self.empty, facts(self.home))}",
        )


@pytest.fixture(scope="module")
def installation(command_lines: CommandLines) -> Any:
    home, plan = (
        Path(tempfile.mkdtemp(prefix="fb-", dir="/tmp")),
        Plan(Path(tempfile.mkdtemp(prefix="fb-", dir="/tmp"))),
    )
    with pytest.MonkeyPatch.context() as environment:
        for name in ("FLEETBOX_CLUSTER", "FLEETBOX_FAKE_FAULTS"):
            environment.delenv(name, raising=False)
        environment.setenv("FLEETBOX_HOME", str(home))
        environment.setenv("FLEETBOX_BACKEND", "fake")
        for name, value in plan.environment.items():
            environment.setenv(name, value)
        Model.lines, Model.plan, Model.home = command_lines, plan, home
        fleetbox.up("web")
        WEB.destroy()
        Model.empty = frozenset(f for f in facts(home) if f[0] != "templates")
        yield
        WEB.destroy()
    for folder in (home, plan.folder):
        shutil.rmtree(folder)


def run(number: int) -> None:
    """100 sequences of their own."""
    kind = type(f"Model{number}", (Model,), {})
    case = (kind if SEQUENCES else seed(number)(kind)).TestCase
    case.settings = settings(
        max_examples=SEQUENCES or 100,
        stateful_step_count=8,
        database=None,
        deadline=None,
        phases=(Phase.generate,),  # shrinking takes longer than looking
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    case(methodName="runTest").runTest()


@pytest.mark.timeout((1200 + 6 * SEQUENCES) * timeout_scale())
@pytest.mark.parametrize("number", [1, 2])
def test_random_sequences(installation: None, number: int) -> None:
    run(number)
