"""How long a child lives beside its parent, as whom, and with which rights."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fleetbox.backends.base import timeout_scale
from fleetbox.backends.host import confinement, process, programs
from fleetbox.backends.host.confinement import FREE, Confinement, confined
from fleetbox.backends.host.thread import HostThread
from fleetbox.errors import HostError

LIMIT_S = 30 * timeout_scale()
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to drop its rights")

# A parent that starts a bound child in a thread of its own, then does as it is told.
PARENT = """
import os, signal, sys, threading
from pathlib import Path
from fleetbox.backends.host.confinement import Confinement
from fleetbox.backends.host.process import spawn_blocking

def start():
    child = spawn_blocking(["sleep", "1000"], log_file=Path(sys.argv[1]), confinement=Confinement(bound=True))
    while Path(f"/proc/{child.pid}/comm").read_text().strip() != "sleep":
        pass  # from then on the signal is set
    print(child.pid, flush=True)
    release.wait()

release = threading.Event()
thread = threading.Thread(target=start, daemon=True)
thread.start()
sys.stdin.readline()
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], tuple[subprocess.Popen[str], int]]]:
    """Start the parent with what it does at the end; returns it and the pid of its child, which execs by and by."""
    started: list[subprocess.Popen[str]] = []

    def begin(end: str) -> tuple[subprocess.Popen[str], int]:
        parent = subprocess.Popen(
            [sys.executable, "-c", PARENT + textwrap.dedent(end), str(tmp_path / "log")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(parent)
        assert parent.stdout is not None
        return parent, int(parent.stdout.readline())

    yield begin
    for parent in started:
        parent.kill()
        parent.communicate()


def ended(pidfd: int) -> bool:
    """Wait until that process has ended; whether it has."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    found = bool(poll.poll(LIMIT_S * 1000))
    os.close(pidfd)
    return found


def test_a_bound_child_dies_with_its_killed_parent(start: Callable[[str], tuple[subprocess.Popen[str], int]]) -> None:
    parent, child = start("")
    pidfd = os.pidfd_open(child)
    parent.kill()
    parent.wait()
    assert ended(pidfd)


def test_it_dies_with_the_thread_that_started_it(start: Callable[[str], tuple[subprocess.Popen[str], int]]) -> None:
    parent, child = start("release.set(); thread.join(); print('thread ended', flush=True); sys.stdin.readline()")
    assert parent.stdin is not None
    assert parent.stdout is not None
    pidfd = os.pidfd_open(child)
    parent.stdin.write("\n")
    parent.stdin.flush()
    assert parent.stdout.readline() == "thread ended\n"
    assert ended(pidfd)
    assert parent.poll() is None


def test_a_parent_that_is_gone_before_the_signal_is_set_is_noticed(tmp_path: Path) -> None:
    """The gap between fork and prctl(2): the program is never reached by a child of another parent."""
    argv = confined(["touch", str(tmp_path / "ran")], Confinement(bound=True))
    other_parent = subprocess.run(
        [sys.executable, "-c", "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1:]).returncode)", *argv],
        check=False,
    )
    assert other_parent.returncode == 1
    assert not (tmp_path / "ran").exists()
    subprocess.run(argv, check=True)
    assert (tmp_path / "ran").exists()


def test_arguments_reach_the_program_as_they_are(tmp_path: Path) -> None:
    said = ["-c", "--pdeathsig", "a b", "$(reboot)", "", "'", '"', "\n", "--"]
    argv = confined(["printf", "%s|", *said], Confinement(bound=True, keeps=()))
    assert subprocess.run(argv, capture_output=True, check=True, text=True).stdout == "".join(f"{a}|" for a in said)


def status(confinement: Confinement) -> dict[str, str]:
    argv = confined(["cat", "/proc/self/status"], confinement)
    lines = subprocess.run(argv, capture_output=True, check=True, text=True).stdout.splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


@ROOT
def test_roots_child_has_no_right_but_those_that_are_named() -> None:
    found = status(Confinement(keeps=("dac_read_search",)))
    assert found["NoNewPrivs"] == "1"
    assert {key: int(found[key], 16) for key in ("CapPrm", "CapEff", "CapBnd")} == {
        "CapPrm": 1 << 2,
        "CapEff": 1 << 2,
        "CapBnd": 1 << 2,
    }
    assert int(found["CapInh"], 16) == int(found["CapAmb"], 16) == 0


@ROOT
def test_as_another_user_it_keeps_only_what_is_named() -> None:
    found = status(Confinement(keeps=("net_bind_service",), user="nobody"))
    assert found["Uid"].split()[0] != "0"
    assert found["Groups"] == ""
    assert int(found["CapEff"], 16) == int(found["CapBnd"], 16) == 1 << 10
    with pytest.raises(HostError, match="no user"):
        confined(["true"], Confinement(keeps=(), user="nobody-has-this-name"))


def test_without_setpriv_rights_are_kept_but_nothing_is_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "find", lambda name: None)
    assert confined(["true"], FREE) == ["true"]
    assert confined(["true"], Confinement(keeps=())) == ["true"]
    with pytest.raises(HostError, match="setpriv is not installed"):
        confined(["true"], Confinement(bound=True))


def test_a_program_that_is_missing_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="is not installed"):
        process.spawn_blocking(["no-such-program"], log_file=tmp_path / "log", confinement=Confinement(bound=True))


def test_a_confined_process_is_known_by_its_own_name(tmp_path: Path) -> None:
    host = HostThread()
    try:
        child = host.call(
            lambda: process.spawn_blocking(["sleep", "1000"], log_file=tmp_path / "log", confinement=Confinement(True))
        )
        assert child.identity.program == "sleep"
        child.signal(signal.SIGKILL)
        assert child.terminate_blocking(1.0)
        child.close()
    finally:
        host.close()
    assert Confinement() == confinement.FREE
