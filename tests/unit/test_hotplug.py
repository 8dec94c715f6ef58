"""Where a hypervisor plugs nothing into a clone (`Capabilities.hotplug`), the layers above ask, and do without."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from fleetbox.backends.base import Capabilities
from fleetbox.errors import HostError
from fleetbox.holder.snapshots.clone import spec_of_clone
from fleetbox.holder.warm.making import source_for
from fleetbox.records import MemberRecord, MemberState
from fleetbox.specs import Fixture, MemberSpec
from fleetbox.wire import AddRequest, Event, Notice, SpecChange

ABLE = Capabilities(disk_formats=("raw",), snapshots=True)
UNABLE = Capabilities(disk_formats=("raw",), snapshots=True, hotplug=False)
FIXTURE = Fixture("/host", "/srv/guest")


def saved(state: MemberState) -> MemberRecord:
    return MemberRecord(
        id="a" * 16,
        name="node-1",
        state=state,
        spec=MemberSpec(),
        image_digest="",
        mac="02:00:00:00:00:01",
        ip="",
        folder="/nowhere",
        created_at=0.0,
    )


def test_a_running_clone_gets_no_further_fixtures_without_it() -> None:
    change = SpecChange(fixtures=(FIXTURE,))
    assert spec_of_clone(saved(MemberState.RUNNING), change, ABLE).fixtures == (FIXTURE,)
    assert spec_of_clone(saved(MemberState.STOPPED), change, UNABLE).fixtures == (FIXTURE,)
    assert spec_of_clone(saved(MemberState.RUNNING), SpecChange(), UNABLE).fixtures == ()
    with pytest.raises(HostError, match="cannot have further fixtures") as caught:
        spec_of_clone(saved(MemberState.RUNNING), change, UNABLE)
    assert "--fixture" in caught.value.hint


def test_members_with_fixtures_boot_cold_without_it() -> None:
    events: list[Event] = []
    members: Any = SimpleNamespace(backend=SimpleNamespace(name="firecracker", capabilities=lambda: UNABLE))
    spec = MemberSpec(fixtures=(FIXTURE,))
    nothing: Any = None
    assert asyncio.run(source_for(nothing, members, nothing, spec, None, AddRequest(), events.append)) is None
    [notice] = events
    assert isinstance(notice, Notice)
    assert "boot cold: firecracker cannot plug" in notice.message
