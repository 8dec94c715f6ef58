"""Holders that die: whatever the step, reconcile leaves nothing, and what can be adopted is adopted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from fleetbox import paths
from fleetbox.backends.base import NetworkSpec
from fleetbox.backends.host.network import firewall, naming
from fleetbox.backends.host.network.journal import Journal, path_of, read_network
from fleetbox.backends.host.network.network import open_network
from fleetbox.backends.host.network.reconcile import reconcile
from fleetbox.backends.host.thread import HostThread
from fleetbox.errors import NetworkError, RecordError
from fleetbox.identity import identify
from fleetbox.records import ClusterRecord, MachineHandle, MemberRecord, MemberState
from fleetbox.specs import MemberSpec
from tests.netns import TestNet
from tests.process.network.host_state import host_state, run

pytestmark = pytest.mark.netns

FIREWALL = """
table ip filter {
  chain FORWARD {
    type filter hook forward priority filter; policy drop;
  }
}
"""

# A holder that kills itself before or after the first call of one function once `armed` ("open", "attach", "close"), or
# that ends with an open network. Prints the subnet when it gets that far.
HOLDER = """
import asyncio, importlib, os, signal, sys
from fleetbox.backends.base import NetworkSpec
from fleetbox.backends.host.network.network import open_network
from fleetbox.backends.host.thread import HostThread

phase, module, function, moment = sys.argv[1:]

def arm():
    owner = importlib.import_module("fleetbox.backends.host.network." + module)
    for part in function.split(".")[:-1]:
        owner = getattr(owner, part)
    real = getattr(owner, function.split(".")[-1])
    def deadly(*args, **kwargs):
        if moment == "after":
            real(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(owner, function.split(".")[-1], deadly)

async def main():
    host = HostThread()
    if phase == "open":
        arm()
    network = await open_network(host, NetworkSpec("alpha", "host"))
    await network.reserve("node-1")
    if phase == "attach":
        arm()
    await network.attach("node-1")
    await network.attach("node-2")
    if phase == "close":
        arm()
        await network.close()
    print(network.subnet, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""

STEPS = [
    ("open", "journal", "Journal.write"),
    ("open", "links", "ensure_bridge"),
    ("open", "forwarding", "claim"),
    ("open", "forwarding", "_write"),
    ("open", "firewall", "apply_table"),
    ("open", "firewall", "ensure_rules"),
    ("open", "resolver", "start"),
    ("attach", "journal", "Journal.write"),
    ("attach", "links", "ensure_tap"),
    ("close", "resolver", "stop"),
    ("close", "firewall", "remove_rules"),
    ("close", "firewall", "remove_table"),
    ("close", "links", "remove_network"),
    ("close", "forwarding", "settle"),
    ("close", "resolver", "remove_folder"),
    ("close", "journal", "Journal.remove"),
]


@pytest.fixture
def net(net: TestNet) -> TestNet:
    """Beside a dropping firewall, so that there are rules in a foreign chain as well."""
    subprocess.run(["nft", "-f", "-"], input=FIREWALL, text=True, check=True)
    return net


def dead_holder(phase: str = "", module: str = "", function: str = "", moment: str = "") -> str:
    """Run a holder until it has died; the subnet of its network, if it got that far."""
    argv = [sys.executable, "-c", HOLDER, phase, module, function, moment]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return done.stdout.strip()


def write_cluster(*members: MemberRecord) -> None:
    record = ClusterRecord(
        id="0" * 16,
        name="alpha",
        backend="qemu",
        backend_reason="test",
        accelerator="tcg",
        network="host",
        created_at=0.0,
        members={m.name: m for m in members},
    )
    path = paths.cluster_record("alpha")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.encode(record))


def running_member(name: str, pid: int) -> MemberRecord:
    identity = identify(pid)
    assert identity is not None
    return MemberRecord(
        id="1" * 16,
        name=name,
        state=MemberState.RUNNING,
        spec=MemberSpec(),
        image_digest="",
        mac="",
        ip="",
        folder=str(paths.member_dir("alpha", name)),
        created_at=0.0,
        handle=MachineHandle(identity),
    )


@pytest.fixture
def machine() -> Iterator[subprocess.Popen[bytes]]:
    """A process that stands for a running machine."""
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize(("phase", "module", "function"), STEPS, ids=lambda value: str(value))
def test_a_crash_at_any_step_leaves_nothing_after_reconcile(
    net: TestNet, host: HostThread, phase: str, module: str, function: str, moment: str
) -> None:
    before = host_state()
    assert dead_holder(phase, module, function, moment) == ""
    crashed = host_state()
    if crashed != before:
        assert crashed["journals"] or (crashed | {"journals": []} == before), "something is there without a record"
    removed = run(reconcile(host, dry_run=True))
    assert host_state() == crashed
    assert run(reconcile(host)) == removed
    assert host_state() == before
    assert run(reconcile(host)) == []


def test_a_crash_in_the_middle_is_completed_by_the_next_holder(net: TestNet, host: HostThread) -> None:
    before = host_state()
    dead_holder("open", "firewall", "apply_table", "before")

    async def life() -> None:
        network = await open_network(host, NetworkSpec("alpha", "host"))
        assert network.resolves_names
        assert "masquerade" in host_state()["nft"]
        await network.close()

    run(life())
    assert host_state() == before


def test_a_network_with_live_machines_is_kept_and_adopted(
    net: TestNet, host: HostThread, machine: subprocess.Popen[bytes]
) -> None:
    before = host_state()
    subnet = dead_holder()
    write_cluster(running_member("node-1", machine.pid))
    left = host_state()
    assert len(left["resolvers"]) == 1
    # node-2 was never recorded: its interface goes, nothing else does.
    [stray] = run(reconcile(host, dry_run=True))
    assert "node-2" in stray
    assert run(reconcile(host)) == [stray]
    kept = host_state()
    stray_tap = naming.tap_name("alpha", "node-2")
    left["links"].remove(stray_tap)
    del left["forwarding"][stray_tap]
    assert kept == left
    record = read_network(naming.bridge_name("alpha"))
    assert record is not None

    async def life() -> None:
        gateway = subnet.replace(".0/24", ".1")
        spec = NetworkSpec("alpha", "host", subnet=subnet, leases={"node-1": subnet.replace(".0/24", ".2")})
        network = await open_network(host, spec)
        assert network.subnet == subnet
        assert host_state() == kept
        adopted = read_network(network.bridge)
        assert adopted is not None
        assert adopted.owner.pid == os.getpid()
        assert adopted.resolver == record.resolver
        lease = await network.reserve("node-1")
        assert (lease.ip, lease.gateway) == (subnet.replace(".0/24", ".2"), gateway)
        assert await network.attach("node-1") == naming.tap_name("alpha", "node-1")
        assert run_reconcile_elsewhere() == "[]"
        await network.close()

    run(life())
    assert host_state() == before


def test_taking_over_removes_the_taps_of_members_that_are_gone(
    net: TestNet, host: HostThread, machine: subprocess.Popen[bytes]
) -> None:
    """As when a holder is killed while it adds a member: its successor rolls that back before it takes the network."""
    before = host_state()
    subnet = dead_holder()
    write_cluster(running_member("node-1", machine.pid))
    stays, goes = (naming.tap_name("alpha", name) for name in ("node-1", "node-2"))
    assert {stays, goes} <= set(host_state()["links"])

    async def life() -> None:
        leases = {"node-1": subnet.replace(".0/24", ".2")}
        network = await open_network(host, NetworkSpec("alpha", "host", subnet=subnet, leases=leases))
        assert stays in host_state()["links"]
        assert goes not in host_state()["links"]
        record = read_network(network.bridge)
        assert record is not None
        assert set(record.taps) == {"node-1"}
        await network.close()

    run(life())
    assert host_state() == before


def run_reconcile_elsewhere() -> str:
    """What another process of this installation finds to remove."""
    code = (
        "import asyncio\n"
        "from fleetbox.backends.host.thread import HostThread\n"
        "from fleetbox.backends.host.network.reconcile import reconcile\n"
        "print(asyncio.run(reconcile(HostThread())))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_failed_adoption_leaves_the_network_to_the_next(
    net: TestNet, host: HostThread, machine: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    subnet = dead_holder()
    write_cluster(running_member("node-1", machine.pid), running_member("node-2", machine.pid))
    left = host_state()

    def fails(*_args: object) -> None:
        raise NetworkError("made to fail")

    with monkeypatch.context() as patch:
        patch.setattr(firewall, "ensure_rules", fails)
        with pytest.raises(NetworkError, match="made to fail"):
            run(open_network(host, NetworkSpec("alpha", "host", subnet=subnet)))
    assert host_state() == left
    assert run(reconcile(host)) == []
    machine.kill()
    machine.wait()
    assert len(run(reconcile(host))) == 1


def test_clusters_that_start_at_once_get_subnets_of_their_own(net: TestNet, host: HostThread) -> None:
    before = host_state()
    code = HOLDER.replace('"alpha"', "sys.argv[1] + sys.argv[2]")
    argv = [sys.executable, "-c", code, "cluster", "", "", ""]
    holders = [
        subprocess.Popen([*argv[:4], str(number), *argv[5:]], stdout=subprocess.PIPE, text=True) for number in range(4)
    ]
    subnets = {holder.communicate()[0].strip() for holder in holders}
    assert len(subnets) == 4
    assert "" not in subnets
    assert len(host_state()["journals"]) <= 4  # each one's opening reconciled those that had died
    run(reconcile(host))
    assert host_state() == before


def test_an_unreadable_cluster_record_protects_its_network(net: TestNet, host: HostThread) -> None:
    dead_holder()
    path = paths.cluster_record("alpha")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"{")
    left = host_state()
    assert run(reconcile(host)) == []
    assert host_state() == left
    path.unlink()
    assert len(run(reconcile(host))) == 1


def test_an_unreadable_journal_stops_its_own_cluster_only(net: TestNet, host: HostThread) -> None:
    path = path_of(naming.bridge_name("alpha"))
    path.parent.mkdir(parents=True)
    path.write_bytes(b"{")

    async def life() -> None:
        with pytest.raises(RecordError, match=str(path)):
            await open_network(host, NetworkSpec("alpha", "host"))
        other = await open_network(host, NetworkSpec("beta", "host"))
        await other.close()

    run(life())
    assert path.read_bytes() == b"{"


def test_another_boots_record_only_loses_its_file(net: TestNet, host: HostThread) -> None:
    before = host_state()
    dead_holder()
    bridge = naming.bridge_name("alpha")
    record = read_network(bridge)
    assert record is not None
    Journal(record).write(boot_id="another")
    left = host_state()
    assert run(reconcile(host)) == []  # the bridge is there, so something about the record is wrong
    assert host_state() == left
    Journal(record).write()
    run(reconcile(host))
    Journal(record).write(boot_id="another")
    [said] = run(reconcile(host))
    assert bridge in said
    assert host_state() == before


def test_a_namespace_that_is_not_ours_is_left_alone_until_it_ends(home: Path) -> None:
    bridge = naming.bridge_name("alpha")
    with TestNet() as there:
        with there.host.entered():
            dead_holder()
            left = host_state()
        with TestNet() as here:
            here.enter()
            host = HostThread()
            assert run(reconcile(host)) == []
            with pytest.raises(NetworkError, match="another network namespace"):
                run(open_network(host, NetworkSpec("alpha", "host")))
            host.close()
        with there.host.entered():
            assert host_state() == left
    with TestNet() as here:
        here.enter()
        before = host_state()
        assert before["journals"] == [f"{bridge}.json"]
        host = HostThread()
        [said] = run(reconcile(host))
        host.close()
        assert bridge in said
        assert host_state() == before | {"journals": [], "shared": []}
