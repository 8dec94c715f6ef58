"""What the machines of some backends can do beyond `fleetbox.backends.base.VM`, each under a flag of `Capabilities`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from fleetbox.usage import Statistics


@runtime_checkable
class Pauses(Protocol):
    """Machines that can be held still (`Capabilities.snapshots`)."""

    async def pause(self) -> None:
        """Stop guest code where it is; paused already: nothing. The machine is `paused` afterwards.

        Raises MachineError when it does not run. Failed or cancelled, it runs on.
        """

    async def resume(self) -> None:
        """Let guest code run (on); running already: nothing.

        Raises MachineError when the machine is neither, or when its memory has become a template's (`Snapshots`).
        """


@runtime_checkable
class Snapshots(Protocol):
    """Machines whose state can be saved (`Capabilities.snapshots`)."""

    async def snapshot(self, folder: Path) -> None:
        """Save a paused machine into an existing, empty folder; it stays paused.

        It has to be resumed before it can be saved again, even when this failed or was cancelled.

        Everything but the disks is saved there, as regular files: `state`, `machine.json` (what a restore has to know)
        and maybe `memory`. Whoever keeps a snapshot keeps all of them and asks for no more. Once this has returned, and
        until the machine is resumed, the disk files hold all that the guest has written: copy them then. Nothing is
        flushed to the physical disk.

        A machine with a `VMConfig.memory_file` gives that file away: it becomes (by a hard link) the folder's
        `memory`, restored machines map it privately and share its pages, and the machine may only be ended. The others
        write their memory into `state`.

        Raises MachineError when the machine is not paused or it fails. Failed or cancelled, the folder is empty again
        and the machine is paused and usable.
        """


@runtime_checkable
class HasControlLine(Protocol):
    """Machines with a second console that only we can open; `Capabilities.control_line` is its device in the guest."""

    @property
    def control_line(self) -> Path:
        """A unix socket (stream, 0600) or a link to a terminal, told apart by the kind of file: one user at a time, who
        holds the lock of `<path>.lock` (flock(2)).

        What the guest writes while nobody is connected is lost. Raises MachineError where the machine was made without.
        """


@dataclass(frozen=True)
class Console:
    """Where a guest's console is opened, by the owner alone.

    `path` is a unix socket (stream) or a terminal device, told apart by the kind of file. Whoever opens it holds
    `lock`, an existing file, exclusively by flock(2) until it is closed again: one user at a time. `guest_device` is
    the terminal's name in the guest (`ttyS0`), whose size is set there; empty where that has no meaning.
    """

    path: Path
    lock: Path
    guest_device: str = ""


@runtime_checkable
class HasConsole(Protocol):
    """Machines whose serial console can be read and typed on (`Capabilities.console`)."""

    def console(self) -> Console:
        """The guest's first console, whose output `VMConfig.serial_log` keeps from the first byte of boot.

        Nobody has to be there: what the guest writes meanwhile is in the log alone. Where this is also the device of
        `HasControlLine`, whoever uses the control line takes the lock, too. Raises MachineError where the machine has
        none: it does not run, or it was started by a version that gave it none.
        """


@runtime_checkable
class HasStatistics(Protocol):
    """Machines that say what they use (`Capabilities.statistics`)."""

    async def statistics(self) -> Statistics:
        """What the machine has used since its process began. Takes milliseconds, and disturbs no guest.

        Raises MachineError when the machine does not run or does not answer.
        """
