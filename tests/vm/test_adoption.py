"""Real machines whose holder dies or is replaced: they run on, sessions stay open, everything goes on."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

import fleetbox
from fleetbox import records, snapshots
from fleetbox.backends.base import timeout_scale
from fleetbox.identity import is_alive
from fleetbox.records import MemberState
from tests.vm.conftest import Lab

pytestmark = pytest.mark.slow

MEMORY_BYTES = 512 << 20
ANSWER_LIMIT_S = 60.0


class Session:
    """An interactive SSH session that stays open."""

    def __init__(self, member: fleetbox.Member) -> None:
        self._child = subprocess.Popen(
            member.ssh_argv(["sh"]), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def ask(self, command: str) -> str:
        """Run a command in the session and return its one line."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(f"{command}\n".encode())
        self._child.stdin.flush()
        readable, _, _ = select.select([self._child.stdout], [], [], ANSWER_LIMIT_S * timeout_scale())
        assert readable, f"the session does not answer {command!r}"
        return self._child.stdout.readline().decode().strip()

    def close(self) -> None:
        self._child.kill()
        self._child.communicate()


@pytest.fixture(scope="module")
def cluster(lab: Lab) -> Iterator[fleetbox.Cluster]:
    yield fleetbox.up("crash", members=3, memory_bytes=MEMORY_BYTES)
    fleetbox.Cluster("crash").destroy()


@pytest.fixture
def session(cluster: fleetbox.Cluster) -> Iterator[Session]:
    session = Session(cluster.member("node-1"))
    assert session.ask("n=1; echo $n") == "1"
    yield session
    session.close()


@pytest.fixture
def until() -> Callable[[Callable[[], object]], None]:
    def wait(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 30 * timeout_scale()
        while not condition():
            assert time.monotonic() < deadline, "the condition never came true"
            time.sleep(0.05)

    return wait


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def test_a_killed_holder_costs_nothing(
    cluster: fleetbox.Cluster, session: Session, until: Callable[[Callable[[], object]], None]
) -> None:
    before = {m.name: m.record for m in cluster.members}
    holder = records.live_holder("crash")
    assert holder is not None
    kill(holder.process.pid)
    until(lambda: not is_alive(holder.process))
    assert session.ask("n=$((n + 1)); echo $n") == "2"
    assert {m.state for m in cluster.members} == {MemberState.RUNNING}
    [added] = cluster.add(memory_bytes=MEMORY_BYTES)
    assert added.ssh("hostname", check=True).stdout.strip() == added.name
    assert {m.name: m.record.handle for m in cluster.members if m.name in before} == {
        name: record.handle for name, record in before.items()
    }
    saved = snapshots.save("crash", name="after")
    assert set(saved.members) == {*before, added.name}
    snapshots.remove(["after"])
    assert session.ask("n=$((n + 1)); echo $n") == "3", "the same session, the same shell"
    found = cluster.member("node-2").ssh(f"getent ahostsv4 {added.name}", check=True).stdout
    assert found.split()[0] == added.ip
    cluster.destroy([added.name])


def test_a_restarted_holder_keeps_them_and_notices_who_died(
    cluster: fleetbox.Cluster, session: Session, until: Callable[[Callable[[], object]], None]
) -> None:
    old = records.live_holder("crash")
    assert old is not None
    fleetbox.holders.restart("crash")
    assert session.ask("echo there") == "there"
    new = records.live_holder("crash")
    assert new is not None
    assert new.process != old.process
    handle = cluster.member("node-3").record.handle
    assert handle is not None
    kill(new.process.pid)
    kill(handle.process.pid)
    until(lambda: not is_alive(new.process) and not is_alive(handle.process))
    cluster.stop(["node-2"])
    states = {m.name: m.record.state for m in cluster.members}
    assert states == {"node-1": MemberState.RUNNING, "node-2": MemberState.STOPPED, "node-3": MemberState.STOPPED}
    assert cluster.member("node-3").record.error
    assert session.ask("echo there") == "there"
