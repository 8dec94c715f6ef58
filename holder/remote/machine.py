"""One launch of a machine with the helper, and its folder `machines/ID/`.

There are `record.json`, the writable disks, `serial.log`, and what was saved or is restored.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from fleetbox.backends.base import VM, State
from fleetbox.backends.remote.wire import End, Start, Told
from fleetbox.errors import NotFoundError
from fleetbox.holder.store import write_atomically
from fleetbox.records import MachineHandle


class Record(msgspec.Struct, frozen=True):
    """`record.json`: the launch, the machine's handle once there is one, and its end."""

    start: Start
    handle: MachineHandle | None = None
    end: End | None = None


class Machine:
    """One launch of a machine."""

    def __init__(self, record: Record, folder: Path) -> None:
        self.record = record
        self.folder = folder
        self.vm: VM | None = None
        self.ended = asyncio.Event()
        self.watchers = 0
        self.ending: asyncio.Task[None] | None = None

    @property
    def start(self) -> Start:
        return self.record.start

    @property
    def state(self) -> State:
        if self.record.end is not None:
            return State.STOPPED
        return self.vm.state() if self.vm is not None else State.STARTING

    def told(self) -> Told:
        """What the owner is told of it."""
        start = self.start
        return Told(
            at=asyncio.get_running_loop().time(),
            machine=start.machine,
            generation=start.generation,
            name=f"{start.cluster}/{start.member}",
            state=self.state,
            handle=self.record.handle,
            serial_base=start.serial_base,
            origins=tuple(disk.origin for disk in start.disks if disk.origin),
            watched=self.watchers > 0,
            end=self.record.end,
        )

    def disk_path(self, number: int) -> Path:
        """Where its disk of that number is, when it writes to it. Raises NotFoundError."""
        if number >= len(self.start.disks) or self.start.disks[number].read_only:
            raise NotFoundError(f"the machine has no writable disk {number}")
        return self.folder / f"disk-{number}.{self.start.disks[number].layers[0].format}"

    @property
    def serial_log(self) -> Path:
        return self.folder / "serial.log"

    def write(self) -> None:
        """Make the record last. Blocks; raises OSError."""
        write_atomically(self.folder / "record.json", msgspec.json.encode(self.record))
