"""Private networks: what is inside, what leads out, what does not, and that the host sees nothing of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from fleetbox import paths
from fleetbox.backends.base import Lease, NetworkSpec, timeout_scale
from fleetbox.backends.host import programs
from fleetbox.backends.host.isolation import isolate
from fleetbox.backends.host.network.lock import lock_name
from fleetbox.backends.host.network.network import HostNetwork, open_network
from fleetbox.backends.host.network.reconcile import reconcile
from fleetbox.backends.host.thread import HostThread
from fleetbox.errors import HostError
from tests import ordinary
from tests.netns import HOST_ADDRESS, Namespace, TestNet
from tests.process.network.host_state import host_state, run
from tests.process.network.test_network_traffic import lookup

pytestmark = pytest.mark.netns

HOLDER = Path(__file__).with_name("private_holder.py")
LIMIT_S = 60.0


def private(cluster: str = "alpha", **changes: Any) -> NetworkSpec:
    return NetworkSpec(cluster, "private", **changes)


@pytest.fixture
def inside(net: TestNet) -> Iterator[HostThread]:
    with closing(HostThread("host", isolate(()))) as thread:
        yield thread


@pytest.fixture
def guests(net: TestNet, inside: HostThread) -> Iterator[Callable[[HostNetwork, Lease], Namespace]]:
    """Makes stand-ins for machines, on the bridge inside."""
    made: list[Namespace] = []

    def guest(network: HostNetwork, lease: Lease) -> Namespace:
        name = f"{net.host.name}-private{len(made)}"
        namespace = Namespace(name, lease.ip)
        made.append(namespace)
        namespace.make()
        port = f"port{len(made)}"
        add = (
            f"ip link add {port} type veth peer name eth0 netns {name} && ip link set {port} master {network.bridge} up"
        )
        inside.call(lambda: subprocess.run(["sh", "-c", add], check=True))
        for words in (
            f"addr add {lease.ip}/{lease.prefix_length} dev eth0",
            "link set eth0 up",
            f"route add default via {lease.gateway}",
        ):
            subprocess.run(["ip", "-n", name, *words.split()], check=True)
        return namespace

    yield guest
    for namespace in made:
        namespace.remove()


def visible() -> dict[str, Any]:
    """What the host's own network shows."""
    return {key: value for key, value in host_state().items() if key not in ("journals", "shared", "resolvers")}


@pytest.mark.parametrize("helper", ["pasta", "slirp4netns"])
def test_members_reach_the_outside_and_each_other_and_the_host_sees_nothing(
    net: TestNet,
    inside: HostThread,
    guests: Callable[[HostNetwork, Lease], Namespace],
    helper: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if helper != "pasta":
        find = programs.find
        monkeypatch.setattr(programs, "find", lambda name: None if name == "pasta" else find(name))
    before, everything = visible(), host_state()
    net.internet.serve_dns("far.example", "203.0.113.9")
    url = net.internet.serve_http("hello from far away")

    async def life() -> None:
        network = await open_network(inside, private())
        assert network.notes == ()
        assert network._egress is not None
        assert network._egress.helper is not None
        assert network._egress.helper.name == helper
        leases = [await network.reserve(f"node-{n}") for n in (1, 2)]
        one, two = [guests(network, lease) for lease in leases]
        assert one.fetch(url) == "hello from far away"
        assert two.fetch(one.serve_http("hello from node-1")) == "hello from node-1"
        assert lookup(two, "node-1", leases[0].gateway) == one.address
        assert lookup(two, "far.example", leases[0].gateway) == "203.0.113.9"
        # The host does not see them: not their links, and not their addresses.
        assert visible() == before
        assert net.host.fetch(f"http://{one.address}/", 1) == ""
        # Nor do they see the host's loopback, by whatever address it could be meant.
        loopback = Namespace(net.host.name, "127.0.0.1")
        assert net.host.fetch(loopback.serve_http("the host's own")) == "the host's own"
        for address in ("127.0.0.1", leases[0].gateway, HOST_ADDRESS, "10.0.2.2", "169.254.77.53", "10.0.2.3"):
            assert two.fetch(f"http://{address}/", 1) == "", address
        for started in loopback._started:
            started.kill()
            started.wait()
        await network.close()

    run(life())
    assert host_state() == everything


def test_many_private_networks_may_have_one_subnet(net: TestNet) -> None:
    before = host_state()

    async def life() -> None:
        with ExitStack() as threads:
            networks = []
            for number in range(10):
                thread = threads.enter_context(closing(HostThread("host", isolate(()))))
                networks.append(await open_network(thread, private(f"c{number}", subnet="192.168.77.0/24")))
            assert {network.subnet for network in networks} == {"192.168.77.0/24"}
            assert {(await network.reserve("node-1")).ip for network in networks} == {"192.168.77.2"}
            for network in networks:
                await network.close()

    run(life())
    assert host_state() == before


def test_a_way_out_that_ends_is_made_again(
    net: TestNet, inside: HostThread, guests: Callable[[HostNetwork, Lease], Namespace]
) -> None:
    url = net.internet.serve_http("hello")

    async def life() -> None:
        network = await open_network(inside, private())
        egress = network._egress
        assert egress is not None
        assert egress._process is not None
        one = guests(network, await network.reserve("node-1"))
        assert one.fetch(url) == "hello"
        first = egress._process.pid
        os.kill(first, signal.SIGKILL)
        async with asyncio.timeout(LIMIT_S * timeout_scale()):
            while egress._process.pid == first:
                await asyncio.sleep(0.05)
        assert one.fetch(url) == "hello"
        await network.close()

    run(life())


def test_without_a_way_out_the_network_says_so_and_works(
    net: TestNet,
    inside: HostThread,
    guests: Callable[[HostNetwork, Lease], Namespace],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find = programs.find
    monkeypatch.setattr(programs, "find", lambda name: None if name in ("pasta", "slirp4netns") else find(name))

    async def life() -> None:
        network = await open_network(inside, private())
        [note] = network.notes
        assert "cannot reach the outside" in note
        assert "pasta is not installed" in note
        one, two = [guests(network, await network.reserve(f"node-{n}")) for n in (1, 2)]
        assert two.fetch(one.serve_http("hello")) == "hello"
        await network.close()

    run(life())


def test_a_holder_for_the_hosts_network_makes_no_private_one(host: HostThread) -> None:
    with pytest.raises(HostError, match="keeps no network to itself"):
        run(open_network(host, private()))


def test_a_subnet_that_the_host_has_meanwhile_is_kept(net: TestNet, inside: HostThread) -> None:
    subprocess.run(["ip", "route", "add", "192.168.77.0/24", "via", "203.0.113.1"], check=True)

    async def life() -> None:
        network = await open_network(inside, private(subnet="192.168.77.0/24"))
        assert network.subnet == "192.168.77.0/24"
        await network.close()

    run(life())


class Holder:
    """One run of `private_holder.py`, as an ordinary user."""

    def __init__(self, home: Path, *identity: object) -> None:
        argv = ordinary.argv(sys.executable, str(HOLDER), *map(str, identity))
        environment = os.environ | {"FLEETBOX_HOME": str(home), "PYTHONPATH": str(HOLDER.parents[3])}
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        assert self.process.stdout is not None
        self.told: dict[str, Any] = json.loads(self.process.stdout.readline())

    def kill(self) -> None:
        self.process.kill()
        self._end()

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("end\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "closed\n"
        self._end()

    def _end(self) -> None:
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


@pytest.fixture
def others_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home that an ordinary user can reach and has to itself."""
    with subprocess.Popen(["mktemp", "-d", "/tmp/fleetbox-ordinary-XXXXXX"], stdout=subprocess.PIPE, text=True) as made:
        assert made.stdout is not None
        folder = Path(made.stdout.read().strip())
    os.chown(folder, ordinary.UID, ordinary.UID)
    yield folder
    subprocess.run(["rm", "-rf", str(folder)], check=True)


def wait_until(holds: Callable[[], bool]) -> None:
    limit = time.monotonic() + LIMIT_S * timeout_scale()
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        return "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True


def test_an_ordinary_users_network_outlives_its_holder_and_is_taken_over(net: TestNet, others_home: Path) -> None:
    before = visible()
    first = Holder(others_home)
    told = first.told
    assert told["namespace"] != told["outside"]
    assert told["notes"] == []
    assert told["uid"] == str(ordinary.UID)
    assert set(told["rights"]) == {"0" * 16}, "a machine has no capability at all"
    assert visible() == before
    first.kill()
    for pid in told["helpers"]:
        wait_until(lambda pid=pid: gone(pid))  # type: ignore[misc]
    assert not gone(told["machine"][0])
    second = Holder(others_home, *told["machine"])
    again = second.told
    same = ("namespace", "subnet", "bridge", "tap", "ip")
    assert {key: again[key] for key in same} == {key: told[key] for key in same}
    os.kill(told["machine"][0], signal.SIGKILL)
    second.close()
    assert visible() == before
    assert not list((others_home / "state/networks").glob("fb*"))


def test_what_a_dead_holder_left_without_a_machine_is_files_alone(net: TestNet, others_home: Path) -> None:
    before = visible()
    holder = Holder(others_home)
    told = holder.told
    holder.kill()
    os.kill(told["machine"][0], signal.SIGKILL)
    for pid in (*told["helpers"], told["machine"][0]):
        wait_until(lambda pid=pid: gone(pid))  # type: ignore[misc]
    assert visible() == before
    assert list((others_home / "state/networks").glob("fb*"))
    code = (
        "import asyncio\n"
        "from fleetbox.backends.host.network.reconcile import reconcile\n"
        "from fleetbox.backends.host.thread import HostThread\n"
        "host = HostThread(); print(asyncio.run(reconcile(host))); host.close()"
    )
    environment = os.environ | {"FLEETBOX_HOME": str(others_home), "PYTHONPATH": str(HOLDER.parents[3])}
    argv = ordinary.argv(sys.executable, "-c", code)
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    assert told["bridge"] in done.stdout
    assert not list((others_home / "state/networks").glob("fb*"))
    assert not (others_home / "run/host" / lock_name(told["namespace"])).exists()


def test_reconcile_of_root_leaves_a_private_network_that_lives(
    net: TestNet, inside: HostThread, host: HostThread
) -> None:
    async def life() -> None:
        network = await open_network(inside, private())
        assert await reconcile(host) == []
        assert [p.stem for p in paths.networks_dir().glob("fb*.json")] == [network.bridge]
        await network.close()

    run(life())
