"""Machines' MAC addresses, and the scale of time limits."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetbox.backends.base import generate_mac, timeout_scale
from fleetbox.specs import MAX_MEMBERS


@given(st.text())
def test_mac_is_stable_locally_administered_and_unicast(name: str) -> None:
    mac = generate_mac(name)
    assert re.fullmatch("[0-9a-f]{2}(:[0-9a-f]{2}){5}", mac)
    first = int(mac[:2], 16)
    assert first & 0b10
    assert not first & 0b01
    assert generate_mac(name) == mac


def test_macs_are_the_same_in_every_version() -> None:
    assert generate_mac("mycluster/node-1") == "6a:4c:91:bd:ce:1c"


def test_macs_of_members_and_clusters_differ() -> None:
    names = [f"c{c}/node-{n}" for c in range(50) for n in range(1, MAX_MEMBERS + 1)]
    assert len({generate_mac(name) for name in names}) == len(names)


@pytest.mark.parametrize(
    ("text", "scale"), [("", 1.0), ("3", 3.0), ("0.5", 0.5), ("0", 0.01), ("-1", 0.01), ("x", 1.0)]
)
def test_time_limits_scale(monkeypatch: pytest.MonkeyPatch, text: str, scale: float) -> None:
    monkeypatch.setenv("FLEETBOX_TIMEOUT_SCALE", text)
    assert timeout_scale() == scale
