"""Saves and restores that fail, are interrupted, or lose their holder: all or nothing, and the machines run on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

import fleetbox
from fleetbox import Cluster, paths, records, snapshots
from fleetbox.backends.fake import recall
from fleetbox.errors import FleetboxError
from fleetbox.identity import is_alive
from fleetbox.records import MemberState
from tests.fakeguests import (
    Faults,
    Until,
    assert_untouched,
    handle,
    handles,
    read,
    remember,
    staged,
    stopped,
)

SAVE = """
from fleetbox.errors import FleetboxError
from fleetbox import snapshots
try:
    snapshots.save("web", name="new")
except FleetboxError as e:
    print(e.code)
    sys.exit(e.exit_code)
except KeyboardInterrupt:  # before the holder had answered at all
    sys.exit(130)
"""
RESTORE = SAVE.replace('save("web", name="new")', 'restore("web", "old")')


def kill_holder() -> None:
    holder = records.live_holder("web")
    assert holder is not None
    os.kill(holder.process.pid, signal.SIGKILL)
    while is_alive(holder.process):
        pass


def test_all_stand_still_from_before_the_first_is_saved_until_after_the_last(
    web: Cluster, faults: Faults, until: Until, script: Callable[[str], Any]
) -> None:
    faults("pause:node-3=hang")
    running = script(SAVE)
    until(lambda: stopped(web.member("node-1")) and stopped(web.member("node-2")))
    assert staged("state") == []
    running.process.send_signal(signal.SIGINT)
    assert running.end()[0] == 130
    faults("snapshot:node-3=hang")
    running = script(SAVE)
    until(lambda: staged("disk.raw") == ["node-1", "node-2"])
    assert all(stopped(member) for member in web.members)
    running.process.send_signal(signal.SIGINT)
    assert running.end()[0] == 130
    until(lambda: not any(stopped(member) for member in web.members))


@pytest.mark.parametrize("fault", ["pause:node-2=fail", "snapshot:node-3=fail"])
def test_a_save_that_fails_leaves_nothing_and_stops_nobody(
    web: Cluster, faults: Faults, until: Until, fault: str
) -> None:
    before = handles(web)
    faults(fault)
    with pytest.raises(FleetboxError):
        snapshots.save("web")
    faults("")
    assert snapshots.list_snapshots() == []
    assert_untouched(web, before, until)
    snapshots.save("web")


@pytest.mark.parametrize(
    "fault", ["pause:node-2=fail", "restore:node-3=fail", "start:node-2=die", "create:node-1=fail"]
)
def test_a_restore_that_fails_leaves_the_old_machines_running(
    web: Cluster, faults: Faults, until: Until, fault: str
) -> None:
    saved, before = snapshots.save("web"), handles(web)
    faults(fault)
    with pytest.raises(FleetboxError):
        snapshots.restore("web", saved.id)
    faults("")
    assert_untouched(web, before, until)
    assert [read(m) for m in web.members] == ["node-1", "node-2", "node-3"]
    snapshots.restore("web", saved.id)
    assert all(handles(web)[name] != before[name] for name in before)


def test_what_fails_after_the_exchange_brings_no_old_machine_back(web: Cluster, faults: Faults, until: Until) -> None:
    saved, before = snapshots.save("web"), handles(web)
    faults("resume:node-2=die")
    with pytest.raises(FleetboxError):
        snapshots.restore("web", saved.id)
    faults("")
    assert not any(is_alive(old.process) for old in before.values())
    until(lambda: web.member("node-2").state is MemberState.STOPPED)
    fleetbox.up("web")
    assert {m.state for m in web.members} == {MemberState.RUNNING}
    assert recall(handle(web.member("node-1"))) == ["I am node-1"]


@pytest.mark.parametrize(
    ("code", "fault"), [(SAVE, "pause:node-2=hang"), (SAVE, "snapshot:node-2=hang"), (RESTORE, "restore:node-2=hang")]
)
def test_ctrl_c(
    web: Cluster, faults: Faults, until: Until, script: Callable[[str], Any], code: str, fault: str
) -> None:
    snapshots.save("web", name="old")
    before = handles(web)
    faults(fault)
    running = script(code)
    until(lambda: stopped(web.member("node-1")))
    running.process.send_signal(signal.SIGINT)
    assert running.end()[0] == 130
    faults("")
    assert [s.name for s in snapshots.list_snapshots()] == ["old"]
    assert_untouched(web, before, until)


@pytest.mark.parametrize(
    ("code", "fault"),
    [(SAVE, "pause:node-3=hang"), (SAVE, "snapshot:node-2=hang"), (RESTORE, "restore:node-2=hang")],
)
def test_a_killed_holder_is_repaired_by_the_next_command(
    web: Cluster, faults: Faults, until: Until, script: Callable[[str], Any], code: str, fault: str
) -> None:
    snapshots.save("web", name="old")
    before = handles(web)
    faults(fault)
    running = script(code)
    until(lambda: stopped(web.member("node-1")))
    kill_holder()
    assert running.end()[0] == 5
    faults("")
    fleetbox.up("web")
    snapshots.save("web", name="next")
    assert [s.name for s in snapshots.list_snapshots()] == ["old", "next"]
    assert_untouched(web, before, until)
    assert [read(m) for m in web.members] == ["node-1", "node-2", "node-3"]


def test_a_holder_killed_after_the_exchange_is_repaired_forwards(
    web: Cluster, faults: Faults, until: Until, script: Callable[[str], Any]
) -> None:
    snapshots.save("web", name="old")
    before = handles(web)
    remember(web.member("node-1"), "of the future")
    faults("resume=hang")
    running = script(RESTORE)
    until(lambda: handles(web) != before)
    after = handles(web)
    kill_holder()
    running.end()
    faults("")
    fleetbox.up("web")
    assert not any(is_alive(old.process) for old in before.values())
    assert_untouched(web, after, until)
    assert recall(after["node-1"])[0] == "I am node-1"
    assert "of the future" not in recall(after["node-1"])
    assert [read(m) for m in web.members] == ["node-1", "node-2", "node-3"]


def test_a_clone_of_a_cluster_is_made_whole_or_not_at_all(web: Cluster, faults: Faults, until: Until) -> None:
    snapshots.save("web", name="all")
    before = handles(web)
    faults("restore:copy/node-2=fail")
    with pytest.raises(FleetboxError):
        snapshots.clone("all", "copy")
    faults("")
    assert [cluster.name for cluster in fleetbox.clusters()] == ["web"]
    until(lambda: not paths.cluster_data_dir("copy").exists())
    assert_untouched(web, before, until)
