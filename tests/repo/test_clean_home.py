"""The shared fixtures find what a test leaves behind, and leave the host's network alone."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

LEAVES_SOMETHING = """
import os, signal, socket, subprocess, pytest

@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setenv("FLEETBOX_TIMEOUT_SCALE", "0.01")

def test_process(fleetbox_home):
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    while not open(f"/proc/{child.pid}/cmdline").read():
        pass  # Popen returns a moment before the kernel has set argv

def test_socket(fleetbox_home):
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(fleetbox_home / "s"))

def test_nothing(fleetbox_home):
    (fleetbox_home / "file").touch()
"""


def test_a_home_that_is_left_dirty_fails_its_test(tmp_path: Path, timeout_scale: float) -> None:
    tests = tmp_path / "tests"
    (tests / "unit").mkdir(parents=True)
    for name in ("conftest.py", "home.py"):
        (tests / name).write_text((Path(__file__).parents[1] / name).read_text())
    (tests / "unit" / "test_dirty.py").write_text(LEAVES_SOMETHING)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n vm: x\n netns: x\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", "tests"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60 * timeout_scale,
        check=False,
    )
    assert "ERROR tests/unit/test_dirty.py::test_process - AssertionError: left behind:" in done.stdout
    assert "ERROR tests/unit/test_dirty.py::test_socket - AssertionError: left behind:" in done.stdout
    assert "3 passed, 2 errors" in done.stdout


@pytest.mark.netns
def test_the_own_network_is_empty(own_network: None) -> None:
    assert [name for _, name in socket.if_nameindex()] == ["lo"]
