"""`status --watch`: rates from two readings, and whole watches of fake clusters. `timeline` of them."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest

import fleetbox as api
from fleetbox.usage import Statistics
from fleetbox.wire import ClusterStatistics
from fleetbox_cli.watch import Usage, rates
from tests.cli.conftest import COMMAND, REPOSITORY, Fleetbox, Run, write_cluster

LONG = "1000"  # seconds between measurements: what is seen earlier was told by an event


def test_rates_are_between_two_readings() -> None:
    first = ClusterStatistics(10.0, {"a": Statistics(1.0, 100, 1000, 0, 10, 20), "b": Statistics(50.0, 1)})
    second = ClusterStatistics(
        12.0,
        {"a": Statistics(4.0, 200, 3000, 500, 30, 20), "b": Statistics(1.0, 2), "c": Statistics(9.0, 3)},
    )
    assert rates(None, first)["a"] == Usage(memory_bytes=100)
    assert rates(first, second) == {
        "a": Usage(150.0, 200, 1000.0, 250.0, 10.0, 0.0),
        "b": Usage(memory_bytes=2),  # another machine than before
        "c": Usage(memory_bytes=3),
    }


def test_a_cluster_without_a_holder_shows_its_records(home: Path, run: Run) -> None:
    write_cluster("demo", "node-1")
    assert run("status", "nothing", "--watch").exit_code == 3
    assert api.Cluster("demo").statistics().members == {}


@pytest.fixture
def lines(fleetbox: Fleetbox) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    running = []

    def start(*words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*COMMAND, "status", "demo", "--watch", *words],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe:
                pipe.close()


def _samples(process: subprocess.Popen[str]) -> Iterator[dict[str, dict[str, object]]]:
    assert process.stdout is not None
    for line in process.stdout:
        sample = json.loads(line)
        if sample.get("event") == "sample":
            yield {member["name"]: member for member in sample["members"]}


@pytest.mark.netns
def test_changes_show_at_once_and_the_end_ends_it(
    fleetbox: Fleetbox, lines: Callable[..., subprocess.Popen[str]]
) -> None:
    assert fleetbox("up", "demo", "--members", "2", "--cold").exit_code == 0
    process = lines("--json", "--interval", LONG)
    samples = _samples(process)
    assert {name: member["state"] for name, member in next(samples).items()} == {
        "node-1": "running",
        "node-2": "running",
    }
    assert fleetbox("stop", "demo/node-2").exit_code == 0
    assert any(sample["node-2"]["state"] == "stopped" for sample in samples)
    assert fleetbox("destroy", "--yes", "demo").exit_code == 0
    list(samples)  # to its end
    assert process.wait(60) == 0


@pytest.mark.netns
def test_rates_come_with_the_second_measurement(
    fleetbox: Fleetbox, lines: Callable[..., subprocess.Popen[str]]
) -> None:
    assert fleetbox("up", "demo", "--cold").exit_code == 0
    process = lines("--json", "--interval", "0.2")
    for sample in _samples(process):
        usage = sample["node-1"]["usage"]
        assert isinstance(usage, dict)
        assert usage["memory_bytes"] > 0
        if usage["cpu_percent"] is not None:
            assert usage["network_send_rate"] == 0
            break
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    rest = process.stdout.read().splitlines()
    assert json.loads(rest[-1])["kind"] == "watch"
    assert process.wait(60) == 0


@pytest.mark.netns
def test_it_is_live_on_a_terminal(fleetbox: Fleetbox, timeout_scale: float) -> None:
    assert fleetbox("up", "demo", "--cold").exit_code == 0
    child = pexpect.spawn(
        COMMAND[0],
        [*COMMAND[1:], "status", "demo", "-w", "--interval", "0.2"],
        cwd=str(REPOSITORY),
        timeout=60 * timeout_scale,
        encoding="utf-8",
        dimensions=(24, 120),
    )
    child.expect("node-1 .*running .*%")
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


@pytest.mark.netns
def test_a_timeline_is_drawn_and_printed(fleetbox: Fleetbox, tmp_path: Path) -> None:
    assert fleetbox("up", "demo", "--members", "2").exit_code == 0
    printed = fleetbox("timeline", "demo")
    assert printed.exit_code == 0
    assert all(word in printed.stdout for word in ("up ", "node-1", "node-2", "disk", "restore", "█"))
    picture = tmp_path / "boot.svg"
    assert fleetbox("timeline", "demo", "-o", str(picture)).stdout == ""
    assert picture.read_text().startswith("<svg ")
    assert fleetbox("timeline", "demo", "-o", "-").stdout == picture.read_text()
    data = fleetbox("timeline", "demo", "--json").envelope["data"]
    assert [row["member"] for row in data["operations"][0]["rows"]] == ["", "node-1", "node-2"]
    assert fleetbox("timeline", "demo", "--json", "-o", "-").exit_code == 2
    assert fleetbox("timeline", "demo", "-o", str(tmp_path / "no" / "such")).exit_code == 1
    assert fleetbox("timeline", "nothing").exit_code == 3
