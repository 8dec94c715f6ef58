"""Warm members through the public API: real holders, fake machines cloned from a template of one."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fleetbox
from fleetbox import paths, records, templates
from fleetbox.errors import FleetboxError, MachineError, UsageError
from fleetbox.holder.orphans import find_orphans
from fleetbox.identity import ProcessIdentity, is_alive
from fleetbox.records import MemberState
from fleetbox.specs import TEMPLATE_NAME
from fleetbox.template import Template
from fleetbox.wire import Event, Notice, Progress

Until = Callable[[Callable[[], object]], None]


def steps(events: list[Event], member: str = "") -> list[str]:
    return [e.step for e in events if isinstance(e, Progress) and e.member == member and e.state == "done"]


def notices(events: list[Event]) -> str:
    return "\n".join(e.message for e in events if isinstance(e, Notice))


def the_template() -> Template:
    [template] = templates.list_templates()
    return template


def nothing_is_left_of_a_template(cluster: str = "web") -> bool:
    left = [*paths.templates_dir().glob("*"), *paths.templates_dir().glob(".[!.]*"), *paths.blobs_dir().glob("*.qcow2")]
    return not left and not paths.member_dir(cluster, TEMPLATE_NAME).exists()


def test_the_first_up_makes_the_template_and_all_members_are_its_clones(home: Path) -> None:
    events: list[Event] = []
    cluster = fleetbox.up("web", members=3, on_event=events.append)
    assert "template" in steps(events)
    assert steps(events, "node-1") == ["disk", "restore", "identity", "address"]
    assert all(member.record.warm for member in cluster.members)
    assert {m.state for m in cluster.members} == {MemberState.RUNNING}
    first = min(m.ip for m in cluster.members)
    assert sorted(int(m.ip.rpartition(".")[2]) for m in cluster.members) == [2, 3, 4], first
    assert TEMPLATE_NAME not in paths.known_hosts("web").read_text()
    assert not paths.member_dir("web", TEMPLATE_NAME).exists()
    events.clear()
    made = the_template()
    fleetbox.up("other", on_event=events.append)
    assert "template" not in steps(events)
    assert the_template().created_at == made.created_at
    assert the_template().used_at >= made.used_at


def test_cold_members_are_booted(home: Path) -> None:
    events: list[Event] = []
    cluster = fleetbox.up("web", cold=True, on_event=events.append)
    assert steps(events, "node-1") == ["disk", "boot", "address"]
    assert not cluster.member("node-1").record.warm
    assert templates.list_templates() == []
    [added] = cluster.add()
    assert added.record.warm
    assert not cluster.add(cold=True)[0].record.warm


def test_a_member_that_differs_gets_a_template_of_its_own(home: Path) -> None:
    cluster = fleetbox.up("web", cpus=1)
    cluster.add(memory_bytes=256 << 20)
    cluster.add(control_line=False)
    assert len(templates.list_templates()) >= 2


def test_the_template_is_made_once_when_ten_ask(home: Path, script: Callable[[str], Any]) -> None:
    code = """
    made = []
    fleetbox.up("c{}", on_event=lambda e: made.append(e) if getattr(e, "step", "") == "template" else None)
    print(sum(e.state == "begin" for e in made))
    """
    asking = [script(code.replace("{}", str(number))) for number in range(10)]
    ends = [one.end() for one in asking]
    assert [code for code, _, _ in ends] == [0] * 10, [stderr for _, _, stderr in ends]
    assert sum(int(stdout) for _, stdout, _ in ends) == 1
    assert len(templates.list_templates()) == 1
    assert all(cluster.member("node-1").record.warm for cluster in fleetbox.clusters())


def test_a_warm_member_keeps_its_disk_over_stop_and_start(home: Path) -> None:
    cluster = fleetbox.up("web")
    before = cluster.member("node-1").record
    disk = next(Path(before.folder).glob("disk.raw"))
    disk.write_bytes(b"precious")
    cluster.stop()
    templates.remove([the_template().key])
    cluster.start()
    after = cluster.member("node-1").record
    assert disk.read_bytes()[:8] == b"precious"
    assert (after.ip, after.mac, after.instance, after.warm) == (before.ip, before.mac, before.instance, True)


def damage(template: Template) -> None:
    for file in (paths.templates_dir() / template.key / "saved").iterdir():
        file.write_bytes(b"damaged")


def test_a_template_that_fails_is_made_anew_with_a_notice(home: Path) -> None:
    fleetbox.up("one")
    old = the_template()
    damage(old)
    events: list[Event] = []
    cluster = fleetbox.up("web", members=3, on_event=events.append)
    assert "made anew" in notices(events)
    assert steps(events).count("template") == 1
    assert {(m.state, m.record.warm) for m in cluster.members} == {(MemberState.RUNNING, True)}
    assert the_template().created_at > old.created_at
    assert the_template().key == old.key


def test_a_template_that_fails_again_is_no_dead_end(home: Path, faults: Callable[[str], None]) -> None:
    fleetbox.up("one")
    faults("restore=fail")
    events: list[Event] = []
    cluster = fleetbox.up("web", members=2, on_event=events.append)
    assert {(m.state, m.record.warm) for m in cluster.members} == {(MemberState.RUNNING, False)}
    assert "boot cold" in notices(events)
    assert steps(events).count("template") == 1


def test_a_machine_that_cannot_be_saved_leaves_cold_members(home: Path, faults: Callable[[str], None]) -> None:
    faults("snapshot=fail")
    events: list[Event] = []
    cluster = fleetbox.up("web", members=2, on_event=events.append)
    assert {(m.state, m.record.warm) for m in cluster.members} == {(MemberState.RUNNING, False)}
    assert "boot cold" in notices(events)
    assert nothing_is_left_of_a_template()


def test_a_template_that_does_not_boot_fails_as_its_members_would(
    home: Path, faults: Callable[[str], None], until: Until
) -> None:
    faults(f"start:{TEMPLATE_NAME}=fail")
    with pytest.raises(MachineError) as failed:
        fleetbox.up("web", members=3)
    assert failed.value.details
    assert fleetbox.clusters() == []
    assert nothing_is_left_of_a_template()
    until(lambda: not paths.cluster_state_dir("web").exists())


UP = """
from fleetbox.errors import FleetboxError
try:
    fleetbox.up("web", members=3)
except FleetboxError as e:
    sys.exit(e.exit_code)
"""


def making() -> bool:
    """Whether the machine of the template has been launched."""
    return any(paths.cluster_runtime_dir("web").glob("*.pid")) and paths.member_dir("web", TEMPLATE_NAME).exists()


def processes_of_the_template() -> list[ProcessIdentity]:
    """Machines: while the holder launches one, it has the lock of the disk itself."""
    return [found for found in find_orphans("web", None) if not found.program.startswith("python")]


@pytest.mark.parametrize("moment", ["address", "snapshot"])
@pytest.mark.parametrize("repair", ["prune", "up"])
def test_a_holder_killed_while_it_makes_a_template_leaves_nothing(
    home: Path, faults: Callable[[str], None], script: Callable[[str], Any], until: Until, moment: str, repair: str
) -> None:
    faults(f"{moment}:{TEMPLATE_NAME}=hang")
    running = script(UP)
    until(lambda: making() and processes_of_the_template())
    [machine] = processes_of_the_template()
    holder = records.live_holder("web")
    assert holder is not None
    os.kill(holder.process.pid, signal.SIGKILL)
    until(lambda: not is_alive(holder.process))
    running.end()
    assert templates.list_templates() == []
    assert processes_of_the_template() == [machine]
    faults("")
    if repair == "prune":
        fleetbox.host.prune()
        assert nothing_is_left_of_a_template()
    else:
        fleetbox.up("web")
        assert the_template().used_at > 0
        assert not paths.member_dir("web", TEMPLATE_NAME).exists()
    assert not is_alive(machine)


def test_an_interrupted_making_leaves_nothing(
    home: Path, faults: Callable[[str], None], script: Callable[[str], Any], until: Until
) -> None:
    faults(f"address:{TEMPLATE_NAME}=hang")
    running = script(UP)
    until(making)
    running.process.send_signal(signal.SIGINT)
    assert running.end()[0] == 130
    assert fleetbox.clusters() == []
    assert nothing_is_left_of_a_template()
    until(lambda: not paths.cluster_state_dir("web").exists())


def test_sixteen_clones(home: Path) -> None:
    cluster = fleetbox.up("web", members=16)
    assert {(m.state, m.record.warm) for m in cluster.members} == {(MemberState.RUNNING, True)}
    assert len({m.ip for m in cluster.members}) == 16
    assert len(templates.list_templates()) == 1


def test_pruned_templates_come_back(home: Path) -> None:
    fleetbox.up("web")
    [item] = templates.prune(unused_for_s=0, dry_run=True).items
    assert (item.kind, item.removed) == ("template", False)
    assert templates.prune().items == ()
    templates.prune(unused_for_s=0)
    assert templates.list_templates() == []
    assert nothing_is_left_of_a_template()
    fleetbox.Cluster("web").add()
    assert len(templates.list_templates()) == 1


def test_the_templates_name_is_reserved(home: Path) -> None:
    with pytest.raises(UsageError, match="reserved"):
        fleetbox.up("web", names=[TEMPLATE_NAME])
    with pytest.raises(FleetboxError):
        templates.remove(["0123"])
