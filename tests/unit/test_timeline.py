"""A timeline out of events, as bars and as a picture."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from fleetbox.events import LoggedEvent
from fleetbox.timeline import Span, timeline

SVG = "{http://www.w3.org/2000/svg}"


class Log:
    """Events with rising numbers."""

    def __init__(self) -> None:
        self.events: list[LoggedEvent] = []

    def add(self, at: float, event: str, member: str, step: str, state: str, operation: str = "o1") -> None:
        made = LoggedEvent(
            seq=len(self.events) + 1, at=at, event=event, member=member, step=step, state=state, operation=operation
        )
        self.events.append(made)


def _up() -> Log:
    log = Log()
    log.add(100.0, "operation", "", "up", "begin")
    log.add(100.5, "progress", "", "network", "begin")
    log.add(101.0, "progress", "", "network", "done")
    for member, late in (("node-1", 0.0), ("node-2", 1.0)):
        log.add(101.0 + late, "progress", member, "disk", "begin")
        log.add(102.0 + late, "progress", member, "disk", "done")
        log.add(102.0 + late, "progress", member, "boot", "begin")
    log.add(107.0, "progress", "node-2", "boot", "failed")
    log.add(110.0, "progress", "node-1", "boot", "done")
    log.add(110.0, "operation", "", "up", "failed")
    return log


def test_steps_are_measured_from_the_operations_begin() -> None:
    made = timeline("demo", _up().events)
    [operation] = made.operations
    assert (operation.name, operation.begun_at, operation.seconds, operation.state) == ("up", 100.0, 10.0, "failed")
    assert {row.member: row.spans for row in operation.rows} == {
        "": (Span("network", 0.5, 1.0, "done"),),
        "node-1": (Span("disk", 1.0, 2.0, "done"), Span("boot", 2.0, 10.0, "done")),
        "node-2": (Span("disk", 2.0, 3.0, "done"), Span("boot", 3.0, 7.0, "failed")),
    }


def test_each_member_stands_in_its_last_operation_alone() -> None:
    log = _up()
    log.add(200.0, "operation", "", "start", "begin", "o2")
    log.add(200.0, "progress", "node-2", "boot", "begin", "o2")
    log.add(203.0, "member", "node-2", "", "starting", "")
    log.add(300.0, "operation", "", "stop", "begin", "o3")  # ends no boot, and is none
    log.add(301.0, "progress", "node-1", "stop", "done", "o3")
    log.add(302.0, "operation", "", "stop", "done", "o3")
    up, start = timeline("demo", log.events).operations
    assert [row.member for row in up.rows] == ["", "node-1"]
    assert start.state == "unfinished"  # its holder died
    [row] = start.rows
    assert row.spans == (Span("boot", 0.0, 0.0, "unfinished"),)
    log.add(400.0, "member", "node-1", "", "removed", "")
    assert [operation.name for operation in timeline("demo", log.events).operations] == ["start"]


def test_bars_show_when_and_how_long() -> None:
    lines = timeline("demo", _up().events).text(60).splitlines()
    assert lines[0].startswith("up  ")
    assert lines[0].endswith("failed in 10.0 s")
    boot = next(line for line in lines if "boot" in line)
    assert boot.endswith(" 8.00 s")
    assert next(line for line in lines[::-1] if "boot" in line).endswith("  failed")
    assert max(map(len, lines)) <= 60 + len("  failed")
    disk = next(line for line in lines if "node-1" in line)
    assert disk.index("█") < boot.index("█") == disk.rindex("█") + 1
    assert "no boot or clone" in timeline("demo", []).text()


def test_the_picture_is_svg_with_a_bar_for_every_step() -> None:
    root = ET.fromstring(timeline("demo", _up().events).svg())
    assert root.tag == f"{SVG}svg"
    titles = [title.text for rect in root.iter(f"{SVG}rect") for title in rect.iter(f"{SVG}title")]
    assert titles == [
        "all: network 0.50 s",
        "node-1: disk 1.00 s",
        "node-1: boot 8.00 s",
        "node-2: disk 1.00 s",
        "node-2: boot 4.00 s, failed",
    ]
    width = float(root.attrib["width"])
    for rect in root.iter(f"{SVG}rect"):
        assert 0 <= float(rect.get("x", "0")) + float(rect.attrib["width"]) <= width
    assert ET.fromstring(timeline("demo", []).svg()).tag == f"{SVG}svg"


def test_no_text_breaks_the_picture() -> None:
    log = Log()
    log.add(1.0, "operation", "", "up", "begin")
    log.add(1.0, "progress", "node-1", "<&\x1b\"'>", "begin")
    log.add(2.0, "progress", "node-1", "<&\x1b\"'>", "done")
    ET.fromstring(timeline("demo", log.events).svg())
