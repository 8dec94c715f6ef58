"""What the command-line tests share: running a command line here, records on disk without a holder, an ssh double."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fleetbox import paths
from fleetbox.identity import identify
from fleetbox.records import ClusterRecord, MachineHandle, MemberRecord, MemberState, cluster_names
from fleetbox.specs import MemberSpec
from fleetbox_cli.app import app

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Done:
    """How a command line ended."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def envelope(self) -> Any:
        """The last line of standard output, which is the envelope with `--json`."""
        return json.loads(self.stdout.splitlines()[-1])


COMMAND = [sys.executable, "-m", "fleetbox_cli"]

Run = Callable[..., Done]
Fleetbox = Callable[..., Done]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty FLEETBOX_HOME for tests that start no process."""
    monkeypatch.setenv("FLEETBOX_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FLEETBOX_CLUSTER", raising=False)
    monkeypatch.setattr("sys.argv", ["fleetbox"])
    return tmp_path / "home"


@pytest.fixture
def run(home: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in this process."""

    def run(*words: str) -> Done:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            app.main(list(words), prog_name="fleetbox")
        captured = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Done(ended.value.code, captured.out, captured.err)

    return run


def write_cluster(name: str, *members: str, running: bool = True) -> ClusterRecord:
    """Put a cluster on disk whose members run as this very process, or are stopped."""
    number = sum(map(ord, name))
    records = {}
    for index, member in enumerate(members, 1):
        process = identify(os.getpid())
        assert process is not None
        records[member] = MemberRecord(
            id=f"{number:08x}{index:08x}",
            name=member,
            state=MemberState.RUNNING if running else MemberState.STOPPED,
            spec=MemberSpec(),
            image_digest="ab" * 32,
            mac=f"02:00:00:00:00:{index:02x}",
            ip=f"192.168.7.{index + 1}",
            folder=str(paths.member_dir(name, member)),
            created_at=time.time() - 300,
            handle=MachineHandle(process) if running else None,
        )
    record = ClusterRecord(
        id=f"c{number:015x}",
        name=name,
        backend="fake",
        backend_reason="FLEETBOX_BACKEND",
        accelerator="none",
        network="host",
        created_at=time.time() - 300,
        subnet="192.168.7.0/24",
        bridge="fb0",
        members=records,
    )
    paths.cluster_state_dir(name).mkdir(parents=True, exist_ok=True)
    paths.cluster_record(name).write_bytes(msgspec.json.encode(record))
    return record


@pytest.fixture
def ssh_double(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An `ssh` on PATH that runs the command here, with the member's address in $MEMBER_IP."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "ssh"
    program.write_text(
        f"#!{sys.executable}\n"
        "import os, sys\n"
        "ip, *words = sys.argv[sys.argv.index('--') + 1:]\n"
        "os.environ['MEMBER_IP'] = ip\n"
        "os.execv('/bin/sh', ['sh', '-c', ' '.join(words) or 'echo shell'])\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


@pytest.fixture
def faults(own_network: None, fleetbox_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file with the fake machines' faults; there are none until it is written."""
    path = fleetbox_home / "faults"
    monkeypatch.setenv("FLEETBOX_BACKEND", "fake")
    monkeypatch.setenv("FLEETBOX_FAKE_FAULTS", f"@{path}")
    return path


@pytest.fixture
def fleetbox(faults: Path) -> Iterator[Fleetbox]:
    """Run a command line as a process; clusters that are left are destroyed."""

    def run(*words: str) -> Done:
        done = subprocess.run(
            [*COMMAND, *words], cwd=REPOSITORY, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        assert "Traceback" not in done.stdout + done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    yield run
    faults.unlink(missing_ok=True)
    if names := cluster_names():
        assert run("destroy", "--yes", *names).exit_code == 0
