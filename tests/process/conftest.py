"""Real holders over fake machines, with faults that a test can change while they run."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fleetbox
from fleetbox.backends.base import timeout_scale
from tests.fakeguests import remember, write


@pytest.fixture
def home(fleetbox_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home whose clusters are fake; every cluster that a test leaves is destroyed."""
    monkeypatch.setenv("FLEETBOX_BACKEND", "fake")
    monkeypatch.setenv("FLEETBOX_FAKE_FAULTS", f"@{fleetbox_home}/faults")
    yield fleetbox_home
    (fleetbox_home / "faults").unlink(missing_ok=True)
    for cluster in fleetbox.clusters():
        cluster.destroy()


@pytest.fixture
def faults(home: Path) -> Callable[[str], None]:
    """Set the fake backend's faults, also of holders that run."""

    def set_faults(rules: str) -> None:
        (home / "faults").write_text(rules)

    return set_faults


@pytest.fixture
def until(timeout_scale: float) -> Callable[[Callable[[], object]], None]:
    """Wait until a condition holds; fail when it never does."""

    def wait(condition: Callable[[], object], limit_s: float = 20.0) -> None:
        deadline = time.monotonic() + limit_s * timeout_scale
        while not condition():
            assert time.monotonic() < deadline, "the condition never came true"
            time.sleep(0.02)

    return wait


class Script:
    """A Python program of its own that uses fleetbox, as a user's would."""

    def __init__(self, code: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", "import fleetbox, sys\n" + textwrap.dedent(code)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self) -> tuple[int, str, str]:
        """Wait for its end: exit code, standard output, standard error."""
        stdout, stderr = self.process.communicate(timeout=60 * timeout_scale())
        return self.process.returncode, stdout, stderr


@pytest.fixture
def script() -> Iterator[Callable[[str], Script]]:
    """Start programs; those that still run at the end are killed."""
    started: list[Script] = []

    def start(code: str) -> Script:
        started.append(Script(code))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
        one.process.communicate()


@pytest.fixture
def web(home: Path) -> fleetbox.Cluster:
    """Three members, each of which remembers its name and has it on its disk."""
    cluster = fleetbox.up("web", members=3, cold=True)
    for member in cluster.members:
        remember(member, f"I am {member.name}")
        write(member, member.name)
    return cluster
