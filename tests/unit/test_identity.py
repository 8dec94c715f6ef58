"""A process is its pid, its start and its boot."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from fleetbox.identity import boot_id, identify, is_alive, open_pidfd

# prctl(PR_SET_NAME) with brackets, blanks and a byte that is no UTF-8; then wait to be ended.
ODD_NAME = "import ctypes,sys; ctypes.CDLL(None).prctl(15, b') S 1 \\xff('); print(flush=True); sys.stdin.read()"


@contextmanager
def child(*argv: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            while not Path(f"/proc/{process.pid}/cmdline").read_bytes():
                time.sleep(0.001)  # Popen returns shortly before the kernel has set argv
            yield process
        finally:
            process.kill()


def test_running_process_is_identified_and_alive() -> None:
    with child("cat") as process:
        identity = identify(process.pid)
        assert identity is not None
        assert (identity.pid, identity.program, identity.boot_id) == (process.pid, "cat", boot_id())
        assert is_alive(identity)
        assert identify(process.pid, "given") == msgspec.structs.replace(identity, program="given")


def test_zombie_has_ended() -> None:
    with child("cat") as process:
        identity = identify(process.pid)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not is_alive(identity)
        assert identify(process.pid) is None
        assert identity is not None
        assert open_pidfd(identity) is None


def test_process_that_is_gone_is_nobody() -> None:
    with child("cat") as process:
        identity = identify(process.pid)
    assert identity is not None
    assert not is_alive(identity)
    assert identify(identity.pid) is None
    assert open_pidfd(identity) is None
    assert not is_alive(None)


@pytest.mark.parametrize("change", [{"start_ticks": 1}, {"boot_id": "another"}])
def test_reused_pid_is_another_process(change: dict[str, object]) -> None:
    identity = identify(os.getpid())
    assert identity is not None
    other = msgspec.structs.replace(identity, **change)
    assert not is_alive(other)
    assert open_pidfd(other) is None


def test_pidfd_needs_the_same_program_too() -> None:
    with child("cat") as process:
        identity = identify(process.pid)
        assert identity is not None
        assert open_pidfd(msgspec.structs.replace(identity, program="qemu")) is None
        descriptor = open_pidfd(identity)
        assert descriptor is not None
        os.close(descriptor)


def test_odd_command_names_do_not_confuse_it() -> None:
    with child(sys.executable, "-c", ODD_NAME) as process:
        before = identify(process.pid)
        assert process.stdout is not None
        process.stdout.readline()
        assert identify(process.pid) == before
        assert is_alive(before)
