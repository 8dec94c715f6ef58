"""`doctor --fix` repairs what its findings call fixable, says so, and looks again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from fleetbox.backends.host import programs
from fleetbox.holder.doctor import fix, machine, repairs
from fleetbox.host import Check
from fleetbox.wire import Event, Notice


@pytest.fixture
def nothing_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "PROGRAMS", ())


def told(events: list[Event]) -> list[str]:
    return [event.message for event in events if isinstance(event, Notice)]


@pytest.mark.netns
@pytest.mark.usefixtures("nothing_missing", "own_network")
def test_folders_that_are_open_to_others_are_closed(fleetbox_home: Path) -> None:
    run = fleetbox_home / "run"
    run.mkdir()
    run.chmod(0o755)
    assert machine.check_folders().fixable
    events: list[Event] = []
    report = asyncio.run(fix(events.append))
    assert run.stat().st_mode & 0o777 == 0o700
    assert [check.status for check in report.checks if check.name == "folders"] == ["ok"]
    assert [message for message in told(events) if message.startswith("folders: closed ")]


@pytest.mark.netns
@pytest.mark.usefixtures("nothing_missing", "own_network")
def test_leftovers_are_cleared_away(fleetbox_home: Path) -> None:
    left = fleetbox_home / "run" / "0123456789ab"
    left.mkdir(parents=True, mode=0o700)
    left.parent.chmod(0o700)
    events: list[Event] = []
    report = asyncio.run(fix(events.append))
    assert not left.exists()
    assert [check.status for check in report.checks if check.name == "leftovers"] == ["ok"]
    assert any("leftovers: removed 1 of 1" in message for message in told(events))


@pytest.mark.netns
@pytest.mark.usefixtures("nothing_missing", "own_network")
def test_a_repair_that_fails_is_told_and_stops_no_other(fleetbox_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fleetbox_home / "run"
    run.mkdir()
    run.chmod(0o755)

    async def fails() -> str:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setitem(repairs._REPAIRS, "folders", fails)
    events: list[Event] = []
    report = asyncio.run(fix(events.append))
    assert [check.status for check in report.checks if check.name == "folders"] == ["fail"]
    assert any("folders could not be repaired" in message for message in told(events))


def test_every_fixable_finding_has_a_repair() -> None:
    folder = Path(repairs.__file__).parent
    named = {
        line.split('Check("')[1].split('"')[0]
        for path in folder.glob("*.py")
        for line in path.read_text().splitlines()
        if 'return Check("' in line and "fixable=" in line
    }
    assert named
    assert named <= set(repairs._REPAIRS)


def test_folders_of_others_are_given_an_order_for_root(fleetbox_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fleetbox_home / "run"
    run.mkdir(mode=0o700)
    monkeypatch.setattr("os.geteuid", lambda: 4242)
    check = machine.check_folders()
    assert isinstance(check, Check)
    assert not check.fixable
    assert f"sudo chown -R 4242 {run}" in check.hint
