"""What goes over the control socket arrives as it was sent."""

from __future__ import annotations

import msgspec
import pytest

from fleetbox.errors import NotFoundError
from fleetbox.specs import Fixture, MemberSpec
from fleetbox.wire import (
    AddRequest,
    AnyEvent,
    Error,
    Notice,
    Progress,
    Request,
    Result,
    SpecChange,
    Started,
    TargetsRequest,
    UpRequest,
)


@pytest.mark.parametrize(
    "event",
    [
        Started("abc"),
        Progress("boot", "begin", member="node-1", at=1.5),
        Progress("download", "update", current=1, total=2.0, unit="bytes"),
        Notice("careful", member="node-1"),
        Result({"members": ["node-1"]}),
        Result(),
        Error(NotFoundError("no", why="because", hint="look").to_wire()),
    ],
)
def test_events_are_told_apart(event: AnyEvent) -> None:
    line = msgspec.json.encode(event)
    assert b"\n" not in line
    assert msgspec.json.decode(line)["event"] == type(event).__name__.lower()
    assert msgspec.json.decode(line, type=AnyEvent) == event


def test_error_event_carries_its_exception() -> None:
    line = msgspec.json.encode(Error(NotFoundError("no", why="because", hint="look").to_wire()))
    error = msgspec.json.decode(line, type=AnyEvent)
    assert isinstance(error, Error)
    raised = error.exception()
    assert isinstance(raised, NotFoundError)
    assert (raised.message, raised.why, raised.hint) == ("no", "because", "look")


@pytest.mark.parametrize(
    "request_",
    [
        UpRequest(),
        UpRequest(3, ("a",), SpecChange(cpus=2, fixtures=(Fixture("/a", "/b"),)), "fake", "host", 1.5),
        AddRequest(("a", "b")),
        TargetsRequest(("a",), 2.0),
    ],
)
def test_requests_survive_a_round_trip(request_: Request) -> None:
    assert msgspec.json.decode(msgspec.json.encode(request_), type=type(request_)) == request_


@pytest.mark.parametrize("kind", [UpRequest, AddRequest, TargetsRequest, SpecChange])
def test_unknown_key_of_a_request_is_an_error(kind: type[Request]) -> None:
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.json.decode(b'{"memebers": 3}', type=kind)


def test_spec_change_keeps_what_is_not_said() -> None:
    base = MemberSpec(image="mine", cpus=4, fixtures=(Fixture("/a", "/b"),))
    assert SpecChange().apply(base) == base
    assert SpecChange(cpus=1).apply(base) == msgspec.structs.replace(base, cpus=1)
    assert SpecChange(fixtures=()).apply(base).fixtures == ()
    assert SpecChange(disk_bytes=0).apply(MemberSpec(disk_bytes=1 << 30)).disk_bytes == 0
    changed = SpecChange(fixtures=(Fixture("/c", "/d"),), boot="firmware").apply(base)
    assert changed.fixtures == (Fixture("/c", "/d"),)
    assert changed.boot == "firmware"
