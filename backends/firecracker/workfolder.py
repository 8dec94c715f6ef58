"""The folder that a machine's firecracker works in: its disks by fixed names, and its standard input.

A snapshot holds the paths of its drives, and nothing can override them when it is loaded. So every machine names its
drives relatively, in a folder of its own, where each name is a link to the real disk.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fleetbox.backends.base import Disk, VMConfig
from fleetbox.errors import MachineError


@dataclass(frozen=True)
class WorkFolder:
    """`path` is private to one machine, in its `run_dir`."""

    path: Path

    def make(self, config: VMConfig) -> None:
        """Make it anew. Raises MachineError for a disk that is not there, OSError."""
        self.remove()
        self.path.mkdir(mode=0o700)
        for name, disk in drives(config):
            if not disk.path.exists():
                raise MachineError(f"{config.name} did not start", why=f"there is no disk {disk.path}")
            if disk.format != "raw":
                raise MachineError(f"{config.name} did not start", why=f"firecracker takes raw disks, not {disk.path}")
            (self.path / name).symlink_to(disk.path.absolute())

    def open_input(self) -> int:
        """A descriptor for the machine's standard input, which never ends, whoever else closes the FIFO.

        At the end of its input firecracker's serial console would ask for more for ever.
        """
        fifo = self.path / "stdin"
        os.mkfifo(fifo, 0o600)
        return os.open(fifo, os.O_RDWR | os.O_CLOEXEC)

    def remove(self) -> None:
        """Remove it; the disks stay. Raises OSError."""
        if self.path.exists():
            shutil.rmtree(self.path)


def drives(config: VMConfig) -> Iterator[tuple[str, Disk]]:
    """The machine's disks in the order in which its guest sees them, by name: letters and digits, as the API wants."""
    for number, disk in enumerate(config.disks):
        yield f"disk{number}", disk
    if config.seed is not None:
        yield "seed", Disk(config.seed, "raw", read_only=True)
    for number, disk in enumerate(config.fixtures):
        yield f"fixture{number}", disk
