"""What each hypervisor fills in of a machine: its program, how it is talked to, how it holds, saves and ends one."""

from __future__ import annotations

import abc
import subprocess
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fleetbox.backends.base import State
from fleetbox.backends.host.saved import Saved
from fleetbox.backends.vmm import endings


@dataclass(frozen=True)
class Launch:
    """What one launch has: `tap` is empty for a machine without a network, `saved` is what a restored one was.

    What is pushed on `made` is released when the machine has ended (or does not come up), on `coming_up` once it has
    come up, on `ours` as soon as its process has inherited it.
    """

    made: AsyncExitStack
    coming_up: AsyncExitStack
    ours: ExitStack
    tap: str
    saved: Saved | None


@dataclass(frozen=True)
class Program:
    """A hypervisor's process to be: its arguments, the descriptors that it inherits, its working folder.

    Its output goes to the machine's `RunFiles.log`, or its standard output alone, appended, to `stdout`.
    `keeps` are the capabilities that it needs of root's (`fleetbox.backends.host.confinement`); None: all of them.
    """

    argv: Sequence[str]
    pass_fds: tuple[int, ...] = ()
    stdin: int = subprocess.DEVNULL
    stdout: Path | None = None
    cwd: Path | None = None
    keeps: tuple[str, ...] | None = None


class Specifics(abc.ABC):
    """All of it is called by `fleetbox.backends.vmm.machine.Machine`, and raises MachineError."""

    hypervisor: ClassVar[str]  # its name in messages

    @property
    @abc.abstractmethod
    def _mark(self) -> str:
        """One argument of the process that no other machine's has."""

    @abc.abstractmethod
    async def _program(self, launch: Launch) -> Program:
        """Make what the process needs and return how it is started. Raises OSError too."""

    @abc.abstractmethod
    async def _connect(self, api_socket: Path) -> None:
        """Return when the process, just started or adopted, answers on its API."""

    @abc.abstractmethod
    async def _bring_up(self, launch: Launch) -> None:
        """Bring the connected process to a running machine, or with `launch.saved` to the saved one, paused."""

    @abc.abstractmethod
    async def _disconnect(self) -> None:
        """Forget the connection, if any; the machine stays as it is."""

    @abc.abstractmethod
    async def _ask_state(self) -> State:
        """The state of an adopted machine."""

    @abc.abstractmethod
    async def _hold(self) -> None:
        """Stop guest code."""

    @abc.abstractmethod
    async def _go_on(self) -> None:
        """Let guest code run on."""

    @abc.abstractmethod
    async def _save(self, folder: Path) -> None:
        """Write `state` (and `memory`) into the folder; `snapshot` empties it when this fails. Raises OSError too."""

    @abc.abstractmethod
    async def _disk_traffic(self) -> tuple[int, int]:
        """Bytes that the guest has read from and written to its disks."""

    @abc.abstractmethod
    async def _press_power_button(self) -> None:
        """Ask the guest to shut down."""

    async def _quit(self) -> bool:
        """Ask the process to end itself, before it is sent a signal; False where there is no such request."""
        return False

    def _clean(self) -> None:  # noqa: B027 - most have nothing else
        """Remove what only this hypervisor has in `run_dir`, of a machine that has ended. Raises OSError."""

    async def _drained(self) -> None:  # noqa: B027 - most have nothing to drain
        """Once the process has ended: return when all that it had said is heard."""

    def _ending(self, code: int | None) -> str:
        """What the hypervisor itself said of its end; `endings.POWERED_OFF` when the guest did it."""
        return ""

    def _cause(self, output: Sequence[str]) -> str:
        """What in the process's output tells why a launch failed."""
        return endings.cause(output)
