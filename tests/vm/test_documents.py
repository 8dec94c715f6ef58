"""The tutorial and the README's tour, run on real machines to the letter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.consoles import ROOT, commands, files
from tests.vm.conftest import Lab

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

LIMIT_S = 1800.0
MACHINE = os.open("/proc/self/ns/net", os.O_RDONLY)  # the network that tests are collected in


@pytest.fixture
def shell(lab: Lab, tmp_path: Path) -> dict[str, str]:
    """The surroundings of a reader's shell: `fleetbox` and `pytest` are on PATH."""
    return os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "FLEETBOX_TIMEOUT_SCALE": "3"}


def follow(document: Path, shell: dict[str, str], folder: Path) -> None:
    """Do what the document says, in a folder that has its files; every shown line of output has to come."""
    for name, text in files(document).items():
        (folder / name).write_text(text)
    for command in commands(document):
        # The package archive is on the machine's network, not on the test's.
        build = command.line.startswith("fleetbox image build")
        outside = ["nsenter", f"--net=/proc/self/fd/{MACHINE}"] if build else []
        done = subprocess.run(
            [*outside, "bash", "-c", command.line],
            cwd=folder,
            env=shell,
            pass_fds=(MACHINE,),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, f"{command.line}\n{done.stdout}\n{done.stderr}"
        assert command.missing(done.stdout) == [], f"{command.line}\n{done.stdout}"


def test_the_tutorial(shell: dict[str, str], tmp_path: Path, lab: Lab) -> None:
    follow(ROOT / "docs/tutorial/postgresql.md", shell, tmp_path)


def test_the_readmes_tour(shell: dict[str, str], tmp_path: Path, lab: Lab) -> None:
    follow(ROOT / "README.md", shell, tmp_path)
