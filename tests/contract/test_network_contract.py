"""Every backend's network keeps what `fleetbox.backends.base.Network` promises."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest

from fleetbox.backends.base import Lease, generate_mac
from fleetbox.errors import NetworkError
from fleetbox.specs import MAX_MEMBERS

from .conftest import CLUSTER, Bench

POOLS = (IPv4Network("192.168.0.0/16"), IPv4Network("10.64.0.0/10"))


def test_lease_is_complete_and_inside_a_private_subnet(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            subnet = IPv4Network(holder.network.subnet)
            assert any(subnet.subnet_of(pool) for pool in POOLS)
            lease = await holder.network.reserve("node-1")
            assert lease.name == "node-1"
            assert lease.mac == generate_mac(f"{CLUSTER}/node-1")
            assert lease.prefix_length == subnet.prefixlen
            assert IPv4Address(lease.gateway) in subnet
            assert IPv4Address(lease.ip) in subnet
            assert lease.ip not in (lease.gateway, str(subnet.network_address), str(subnet.broadcast_address))

    bench.run(scenario)


def test_repeated_reservation_is_the_same_lease_whatever_the_hint(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            first = await holder.network.reserve("node-1")
            other = str(IPv4Address(first.ip) + 7)
            assert await holder.network.reserve("node-1") == first
            assert await holder.network.reserve("node-1", other) == first

    bench.run(scenario)


def test_lowest_free_address_is_given_and_a_released_one_comes_back(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            net = holder.network
            ips = [IPv4Address((await net.reserve(f"node-{n}")).ip) for n in (1, 2, 3)]
            assert ips == sorted(ips)
            assert ips[2] - 2 == ips[1] - 1 == ips[0]
            await net.release("node-2")
            await net.release("node-2")
            await net.release("never-was")
            assert IPv4Address((await net.reserve("node-4")).ip) == ips[1]

    bench.run(scenario)


def test_hint_is_honoured_when_free_and_ignored_when_not(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            net = holder.network
            first = await net.reserve("node-1")
            base = IPv4Address(first.ip)
            assert (await net.reserve("hinted", str(base + 40))).ip == str(base + 40)
            assert (await net.reserve("taken", str(base + 40))).ip == str(base + 1)
            assert (await net.reserve("gateway", first.gateway)).ip == str(base + 2)
            assert (await net.reserve("outside", "172.16.5.5")).ip == str(base + 3)
            await net.release("hinted")
            assert (await net.reserve("second", str(base + 40))).ip == str(base + 40)

    bench.run(scenario)


def test_addresses_and_macs_differ_between_members(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            leases = [await holder.network.reserve(f"node-{n}") for n in range(1, 21)]
            assert len({lease.ip for lease in leases}) == 20
            assert len({lease.mac for lease in leases}) == 20

    bench.run(scenario)


def test_full_subnet_is_an_error_until_somebody_leaves(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            net = holder.network
            leases: list[Lease] = []

            async def fill() -> None:
                for n in range(IPv4Network(net.subnet).num_addresses):
                    leases.append(await net.reserve(f"node-{n}"))  # noqa: PERF401 - those before the error count

            with pytest.raises(NetworkError):
                await fill()
            assert len(leases) >= MAX_MEMBERS
            await net.release("node-100")
            assert (await net.reserve("late")).ip == leases[100].ip

    bench.run(scenario)


def test_closed_network_comes_back_with_its_subnet_and_leases(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            subnet = holder.network.subnet
            await holder.network.reserve("node-1")
            before = await holder.network.reserve("node-2")
        async with bench.holder(subnet=subnet, leases={"node-2": before.ip}) as holder:
            assert holder.network.subnet == subnet
            newcomers = [(await holder.network.reserve(f"new-{n}")).ip for n in (1, 2, 3)]
            assert before.ip not in newcomers
            assert await holder.network.reserve("node-2") == before

    bench.run(scenario)


def test_close_may_be_repeated_and_ends_reservations(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            await holder.network.reserve("node-1")
            await holder.network.close()
            await holder.network.close()
            with pytest.raises(NetworkError):
                await holder.network.reserve("node-2")

    bench.run(scenario)


def test_reconcile_leaves_the_network_of_a_live_owner_alone(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            vm = await holder.running()
            assert await holder.backend.reconcile() == []
            assert vm.handle is not None
            assert (await holder.network.reserve("node-1")).ip == vm.config.assigned_ip

    bench.run(scenario)
