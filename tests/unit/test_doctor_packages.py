"""Installing what is missing, against an apt-get that does what the test says."""

from __future__ import annotations

import asyncio
import os
import platform
from pathlib import Path

import pytest

from fleetbox.backends.host import programs
from fleetbox.backends.host.programs import Program
from fleetbox.errors import HostError
from fleetbox.holder.doctor import packages
from fleetbox.wire import Event, Progress

# Each call is logged; `simulate`, `install` and `update` scripts in the folder decide how it ends.
APT_GET = """#!/bin/sh
cd "$(dirname "$0")"
for word; do case "$word" in --simulate) verb=simulate; break;; install|update) verb=$word;; esac; done
echo "$verb $DEBIAN_FRONTEND $*" >> calls
if [ -x "./$verb" ]; then exec "./$verb"; fi
"""


class FakeApt:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events: list[Event] = []
        self.script("apt-get", APT_GET)

    def script(self, name: str, text: str) -> None:
        path = self.folder / name
        path.write_text(text if text.startswith("#!") else f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def install(self, *names: str) -> None:
        apt = packages.Apt((), self.events.append, program=str(self.folder / "apt-get"))
        asyncio.run(apt.install(names))

    @property
    def calls(self) -> list[str]:
        return [line.split()[0] for line in (self.folder / "calls").read_text().splitlines()]


@pytest.fixture
def apt(tmp_path: Path) -> FakeApt:
    return FakeApt(tmp_path)


def test_packages_that_apt_knows_are_installed_without_an_update(apt: FakeApt) -> None:
    apt.script("install", "echo Reading; echo dlstatus:1:12.5:Fetching; echo pmstatus:nftables:50:Unpacking nftables")
    apt.install("nftables", "fdisk")
    assert apt.calls == ["simulate", "install"]
    last = (apt.folder / "calls").read_text().splitlines()[-1]
    assert "noninteractive" in last
    assert "--no-install-recommends nftables fdisk" in last
    states = [e.state for e in apt.events if isinstance(e, Progress)]
    assert states[0] == "begin"
    assert states[-1] == "done"
    percents = [e.current for e in apt.events if isinstance(e, Progress) and e.unit == "percent"]
    assert percents[-1:] in ([50.0], [])  # a program this quick may end between two looks


def test_progress_lines_carry_percent_and_words(apt: FakeApt) -> None:
    teller = packages.Apt((), apt.events.append)
    for line in ("pmstatus:nftables:62.5:Unpacking nftables: now", "pmstatus:nft", "Selecting previously", ""):
        teller._tell_line(line)
    told = [(e.current, e.message) for e in apt.events if isinstance(e, Progress)]
    assert told == [(62.5, "Unpacking nftables: now"), (0.0, "Selecting previously")]


def test_unknown_packages_bring_an_update_first(apt: FakeApt) -> None:
    apt.script("simulate", "exit 100")
    apt.install("nftables")
    assert apt.calls == ["simulate", "update", "install"]


def test_lists_that_are_out_of_date_bring_one_update(apt: FakeApt) -> None:
    apt.script("install", '[ -e updated ] || { echo "E: Failed to fetch: 404"; exit 100; }')
    apt.script("update", "touch updated")
    apt.install("nftables")
    assert apt.calls == ["simulate", "install", "update", "install"]


def test_a_failure_carries_the_words_of_apt(apt: FakeApt) -> None:
    apt.script("install", 'echo "pmstatus:x:1:y"; echo "E: You have held broken packages."; exit 100')
    with pytest.raises(HostError) as caught:
        apt.install("nftables")
    assert caught.value.why == "You have held broken packages."
    assert not [line for line in caught.value.details if line.startswith("pmstatus")]
    assert apt.events[-1].state == "failed"  # type: ignore[attr-defined]


LOCKED = 'echo "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 1 (apt)"; exit 100'


def test_a_held_lock_is_waited_for(apt: FakeApt) -> None:
    apt.script("install", f"[ $(grep -c ^install calls) -gt 1 ] || {{ {LOCKED}; }}")
    apt.install("nftables")
    assert apt.calls == ["simulate", "install", "install"]
    assert any("waiting for another" in e.message for e in apt.events if isinstance(e, Progress))


def test_a_lock_that_stays_held_ends_in_an_error(apt: FakeApt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_LOCK_LIMIT_S", 0.0)
    apt.script("install", LOCKED)
    apt.script("update", LOCKED)
    with pytest.raises(HostError, match="another package manager is at work"):
        apt.install("nftables")


def test_cancelled_it_ends_apt_first(apt: FakeApt) -> None:
    apt.script("install", "trap 'touch ended; exit 1' TERM; touch begun; while :; do sleep 0.1; done")

    async def scenario() -> None:
        task = asyncio.create_task(
            packages.Apt((), apt.events.append, program=str(apt.folder / "apt-get")).install(["nftables"])
        )
        while not (apt.folder / "begun").exists():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    assert (apt.folder / "ended").exists()


def test_only_packages_of_missing_programs_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    there, gone = Program("sh", "dash", "is there"), Program("no-such-program", "no-such-package", "is not")
    monkeypatch.setattr(programs, "PROGRAMS", (there, gone, gone))
    assert packages.missing_packages() == ["no-such-package"]


def test_nothing_missing_runs_no_apt(monkeypatch: pytest.MonkeyPatch, fleetbox_home: Path) -> None:
    monkeypatch.setattr(programs, "PROGRAMS", (Program("sh", "dash", "is there"),))
    events: list[Event] = []
    asyncio.run(packages.install_missing(events.append))
    assert not events


def test_other_distributions_are_told_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: {"ID": "fedora", "ID_LIKE": "rhel"})
    with pytest.raises(HostError, match="nftables") as caught:
        packages.prefix_for(["nftables"])
    assert caught.value.hint


@pytest.mark.parametrize(
    ("release", "debian"),
    [({"ID": "debian"}, True), ({"ID": "linuxmint", "ID_LIKE": "ubuntu debian"}, True), ({"ID": "arch"}, False)],
)
def test_what_is_made_from_debian_counts(
    monkeypatch: pytest.MonkeyPatch, release: dict[str, str], debian: bool
) -> None:
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: release)
    monkeypatch.setattr(programs, "find", lambda name: Path("/usr/bin", name))
    assert packages.is_debian_like() is debian


@pytest.mark.parametrize("sudo", ["exit 0", "echo 'sudo: a password is required' >&2; exit 1"])
def test_an_ordinary_user_needs_sudo_that_asks_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sudo: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: {"ID": "debian"})
    FakeApt(tmp_path).script("sudo", sudo)
    monkeypatch.setattr(programs, "search_path", lambda: f"{tmp_path}:{os.defpath}")
    if sudo == "exit 0":
        assert packages.prefix_for(["nftables"]) == ("sudo", "-n")
    else:
        with pytest.raises(HostError, match="sudo would ask") as caught:
            packages.prefix_for(["nftables"])
        assert caught.value.hint.endswith("apt-get install --no-install-recommends nftables")
