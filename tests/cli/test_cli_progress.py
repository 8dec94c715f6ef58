"""Events as plain lines, JSON lines, nothing, or a live display."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from fleetbox.wire import Notice, Progress
from fleetbox_cli.display import Display
from fleetbox_cli.progress import PlainLines, progress
from fleetbox_cli.settings import Settings, wants_color

EVENTS = [
    Progress("download", "begin", total=100.0, unit="bytes"),
    Progress("download", "update", current=50.0, total=100.0, unit="bytes"),
    Progress("download", "done"),
    Progress("boot", "begin", member="node-1"),
    Notice("the subnet changed", member="node-1"),
    Progress("boot", "done", member="node-1", message="tcg"),
    Progress("ssh", "failed", member="node-1", message="no \x1b[31manswer"),
    Notice("stopping, undoing…"),
]


def test_plain_lines_once_per_begin_and_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([10.0, 12.5, 20.0, 20.1])
    monkeypatch.setattr("fleetbox_cli.progress.time.monotonic", lambda: next(clock))
    show = PlainLines()
    for event in EVENTS:
        show(event)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "download …",
        "download done in 2.5 s",
        "node-1: boot …",
        "node-1: the subnet changed",
        "node-1: boot done in 0.1 s (tcg)",
        "node-1: ssh failed (no answer)",
        "stopping, undoing…",
    ]


def test_without_a_terminal_lines_are_plain(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(Settings()) as on_event:
        assert isinstance(on_event, PlainLines)
    with progress(Settings(quiet=True)) as on_event:
        for event in EVENTS:
            on_event(event)
    assert capsys.readouterr() == ("", "")


def test_json_lines_are_the_events(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(Settings(json=True, quiet=True)) as on_event:
        for event in EVENTS:
            on_event(event)
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert [line["event"] for line in lines] == [type(event).__name__.lower() for event in EVENTS]
    assert lines[1] == {
        "event": "progress",
        "step": "download",
        "state": "update",
        "member": "",
        "message": "",
        "current": 50.0,
        "total": 100.0,
        "unit": "bytes",
        "at": 0.0,
    }
    assert captured.err == ""


def _console(height: int = 20) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=110, height=height, color_system=None)


def _shown(display: Display, console: Console) -> list[str]:
    with console.capture() as captured:
        console.print(display.render())
    return [line.rstrip() for line in captured.get().splitlines()]


def test_the_display_has_a_row_per_member(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("fleetbox_cli.display.time.monotonic", lambda: now)
    console = _console()
    display = Display(console)
    display.on_event(Progress("image", "begin", unit="bytes", total=float(200 << 20)))
    now = 105.0
    display.on_event(Progress("image", "update", current=float(25 << 20), total=float(200 << 20), unit="bytes"))
    now = 110.0
    display.on_event(Progress("image", "update", current=float(50 << 20), total=float(200 << 20), unit="bytes"))
    [row] = _shown(display, console)
    assert "image 10s" in row
    assert row.endswith("50M of 200M 25% 5M/s")
    display.on_event(Progress("image", "done"))
    for member in ("node-1", "node-2"):
        display.on_event(Progress("disk", "begin", member=member))
        display.on_event(Progress("disk", "done", member=member))
        display.on_event(Progress("boot", "begin", member=member))
    now = 115.0
    display.on_event(Progress("boot", "failed", member="node-2", message="qemu ended"))
    everything, first, second = _shown(display, console)
    assert everything.split()[:3] == ["✓", "image", "✓"]
    assert first.split()[1:] == ["node-1", "disk", "✓", "boot", "5s", "address", "·", "ssh", "·", "5s"]
    assert second.split() == ["✗", "node-2", "disk", "✓", "boot", "✗", "5s"]


def test_many_members_fit_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    console = _console(height=10)
    display = Display(console)
    for number in range(100):
        display.on_event(Progress("ssh", "begin", member=f"node-{number}"))
        if number != 77:
            display.on_event(Progress("ssh", "done", member=f"node-{number}"))
    display.on_event(Progress("ssh", "failed", member="node-99"))
    lines = _shown(display, console)
    assert len(lines) == 8
    assert lines[-1] == "… and 93 more"
    assert any("node-77" in line for line in lines)
    assert any("node-99" in line for line in lines)


def test_notices_stay_above_the_display() -> None:
    console = _console()
    with Display(console) as display:
        display.on_event(Notice("stopping, undoing…"))
    assert isinstance(console.file, io.StringIO)
    assert "stopping, undoing…" in console.file.getvalue()


def test_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert wants_color(Terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not wants_color(Terminal())
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not wants_color(Terminal())
