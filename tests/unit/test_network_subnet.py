"""Which subnet a cluster gets."""

from __future__ import annotations

from ipaddress import IPv4Network

import pytest

from fleetbox.backends.host.network.subnet import candidates, choose_subnet, parse_subnet
from fleetbox.errors import NetworkError

LAN = IPv4Network("192.168.0.0/16")
CARRIER = IPv4Network("10.64.0.0/10")


def test_every_candidate_is_tried_once_and_the_first_pool_comes_first() -> None:
    found = list(candidates("alpha"))
    assert len(found) == len(set(found)) == 256 + 16384
    assert all(s.subnet_of(LAN) for s in found[:256])
    assert all(s.subnet_of(CARRIER) for s in found[256:])
    assert {s.prefixlen for s in found} == {24}


def test_the_choice_is_stable_and_names_spread() -> None:
    assert choose_subnet("alpha", []) == choose_subnet("alpha", [])
    assert len({choose_subnet(f"cluster-{n}", []) for n in range(50)}) > 30


def test_a_recorded_subnet_is_kept_while_free() -> None:
    recorded = "192.168.77.0/24"
    assert choose_subnet("alpha", [IPv4Network("192.168.78.0/24")], recorded) == IPv4Network(recorded)
    taken = choose_subnet("alpha", [IPv4Network("192.168.76.0/22")], recorded)
    assert not taken.overlaps(IPv4Network("192.168.76.0/22"))


def test_a_recorded_subnet_that_makes_no_sense_is_replaced() -> None:
    assert choose_subnet("alpha", [], "192.168.7.9/24") == choose_subnet("alpha", [])
    assert parse_subnet("10.0.0.0/31") is None
    assert parse_subnet("") is None


def test_single_addresses_count() -> None:
    first = choose_subnet("alpha", [])
    assert choose_subnet("alpha", [IPv4Network(first.network_address + 9)]) != first


def test_a_routed_pool_leads_to_the_other() -> None:
    assert choose_subnet("alpha", [LAN]).subnet_of(CARRIER)


def test_no_room() -> None:
    with pytest.raises(NetworkError, match="no free subnet") as caught:
        choose_subnet("alpha", [LAN, IPv4Network("10.0.0.0/8")])
    assert caught.value.hint
