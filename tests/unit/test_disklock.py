"""One machine per disk: the lock lives exactly as long as the process that inherited it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fleetbox.backends.base import Disk
from fleetbox.backends.host import disklock
from fleetbox.errors import DiskError

MACHINE = ["sleep", "1000"]


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.touch()
    return path


def is_free(disk: Path) -> bool:
    try:
        os.close(disklock.lock_disk(disk))
    except DiskError:
        return False
    return True


def test_a_second_lock_is_refused_and_names_the_process(disk: Path) -> None:
    fd = disklock.lock_disk(disk)
    try:
        with pytest.raises(DiskError, match="in use") as caught:
            disklock.lock_disk(disk)
        assert str(os.getpid()) in caught.value.why
        assert disklock.lock_holders(disk) == (os.getpid(),)
    finally:
        os.close(fd)
    assert disklock.lock_holders(disk) == ()
    assert is_free(disk)


def test_the_lock_is_not_inherited_unless_passed(disk: Path) -> None:
    fd = disklock.lock_disk(disk)
    assert not os.get_inheritable(fd)
    with subprocess.Popen(MACHINE, close_fds=False) as child:
        os.close(fd)
        assert is_free(disk)
        child.kill()


def test_the_machine_alone_holds_the_lock_after_launch(disk: Path) -> None:
    other = disk.with_name("read-only.img")
    with disklock.locked_disks([Disk(disk, "raw"), Disk(other, "raw", read_only=True)]) as fds:
        assert len(fds) == 1
        machine = subprocess.Popen(MACHINE, pass_fds=fds)
    try:
        assert not disklock.lock_file(other).exists()
        assert disklock.lock_holders(disk) == (machine.pid,)
        with pytest.raises(DiskError) as caught:
            disklock.lock_disk(disk)
        assert f"process {machine.pid} (sleep)" in caught.value.why
    finally:
        machine.kill()
        machine.wait()
    assert is_free(disk)


def test_a_launch_that_fails_frees_the_disks_already_locked(disk: Path) -> None:
    second = disk.with_name("second.raw")
    taken = disklock.lock_disk(second)
    try:
        with (
            pytest.raises(DiskError, match=r"second\.raw"),
            disklock.locked_disks([Disk(disk, "raw"), Disk(second, "raw")]),
        ):
            raise AssertionError("not reached")
        assert is_free(disk)
    finally:
        os.close(taken)


def test_the_lock_outlives_a_killed_holder_as_long_as_the_machine(disk: Path) -> None:
    holder = f"""
import subprocess, sys, time
from pathlib import Path
from fleetbox.backends.base import Disk
from fleetbox.backends.host.disklock import locked_disks
with locked_disks([Disk(Path({str(disk)!r}), "raw")]) as fds:
    machine = subprocess.Popen({MACHINE!r}, pass_fds=fds, stdout=subprocess.DEVNULL)
print(machine.pid, flush=True)
time.sleep(1000)
"""
    child = subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    machine = int(child.stdout.readline())
    child.kill()
    child.communicate()
    pidfd = os.pidfd_open(machine)
    try:
        assert disklock.lock_holders(disk) == (machine,)
        with pytest.raises(DiskError, match="in use"):
            disklock.lock_disk(disk)
    finally:
        os.kill(machine, signal.SIGKILL)
        select.select([pidfd], [], [])  # readable when it has ended
        os.close(pidfd)
    assert is_free(disk)


def test_a_folder_that_is_not_there_is_a_disk_error(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="cannot be locked"):
        disklock.lock_disk(tmp_path / "nowhere" / "disk.raw")
    assert disklock.lock_holders(tmp_path / "nowhere" / "disk.raw") == ()
