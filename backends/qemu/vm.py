"""One QEMU machine: what is QEMU's own of it."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fleetbox.backends.base import Console, Network, State, VMConfig, timeout_scale
from fleetbox.backends.host import saved
from fleetbox.backends.host.thread import HostThread
from fleetbox.backends.qemu import command, migration, qmp
from fleetbox.backends.qemu.binary import Qemu
from fleetbox.backends.vmm import endings
from fleetbox.backends.vmm.machine import Machine
from fleetbox.backends.vmm.specifics import Launch, Program
from fleetbox.errors import MachineError

log = logging.getLogger(__name__)

CONNECT_S = 30.0
DRAIN_S = 2.0

# Of root's capabilities: its files may be below another user's private folder.
KEEPS = ("dac_read_search",)

VHOST_NET = Path("/dev/vhost-net")


class QemuVM(Machine):
    """A machine by QEMU, `HasControlLine` and `HasConsole` besides what every `Machine` is."""

    hypervisor = "QEMU"

    def __init__(
        self,
        config: VMConfig,
        network: Network,
        host: HostThread,
        qemu: Qemu,
        accelerator: str,
        identity: Mapping[str, str],
        snapshot: Path | None = None,
    ) -> None:
        super().__init__(config, network, host, identity, snapshot)
        self._qemu = qemu
        self._accelerator = accelerator
        self._monitor = qmp.Monitor(self._heard)
        self._shutdown = ""  # the reason that QEMU gave for its end

    # Launch

    @property
    def _mark(self) -> str:
        return command.name_option(self.config)

    async def _program(self, launch: Launch) -> Program:
        self._monitor, self._shutdown = qmp.Monitor(self._heard), ""
        config, was = self.config, launch.saved
        if config.memory_file is not None:
            config.memory_file.touch(mode=0o600, exist_ok=False)
            launch.made.callback(config.memory_file.unlink, missing_ok=True)
        monitor = launch.ours.enter_context(qmp.listen(self._files.socket)).fileno()
        console = launch.ours.enter_context(qmp.listen(self._files.console)).fileno()
        self._files.console_lock.touch(mode=0o600)
        fds = [monitor, console]
        control = None
        if command.HAS_CONTROL_LINE and (was.control_line if was else config.control_line):
            control = launch.ours.enter_context(qmp.listen(self._files.control)).fileno()
            fds.append(control)
        memory = self._snapshot / saved.MEMORY if self._snapshot else None
        surroundings = command.Surroundings(
            self._qemu,
            self._accelerator,
            monitor,
            console,
            control,
            launch.tap,
            vhost=os.access(VHOST_NET, os.R_OK | os.W_OK),
            saved=was,
            saved_memory=memory if memory and memory.exists() else None,
        )
        return Program(command.build(config, surroundings), tuple(fds), keeps=KEEPS)

    async def _connect(self, api_socket: Path) -> None:
        await self._monitor.connect(api_socket, CONNECT_S * timeout_scale())

    async def _bring_up(self, launch: Launch) -> None:
        """Bring the saved state in; fixtures that the saved machine did not have are plugged in after it."""
        if launch.saved is None or self._snapshot is None:
            return
        await migration.load(self._monitor, self._qemu.version, self._snapshot / saved.STATE)
        for number, disk in list(enumerate(self.config.fixtures))[launch.saved.fixtures :]:
            node, device = command.fixture(disk, number)
            await self._monitor.execute("blockdev-add", node)
            await self._monitor.execute("device_add", device)

    async def _disconnect(self) -> None:
        await self._monitor.close()

    async def _ask_state(self) -> State:
        return _STATES.get((await self._monitor.execute("query-status")).get("status", ""), State.PAUSED)

    # What QEMU tells of itself

    def _heard(self, event: str, data: Mapping[str, Any]) -> None:
        if event == "SHUTDOWN":
            self._shutdown = str(data.get("reason", ""))
        elif event == "STOP" and self._state in (State.RUNNING, State.PAUSING):
            self._state = State.PAUSED
        elif event == "RESUME" and self._state in (State.PAUSED, State.RESUMING):
            self._state = State.RUNNING
        elif event == "RESET":
            log.debug("%s was reset (%s)", self.config.name, data.get("reason", "unknown"))
        elif event == "BLOCK_IO_ERROR":
            log.error("%s: disk error: %s (%s)", self.config.name, data.get("reason"), data.get("action"))

    async def _drained(self) -> None:
        await self._monitor.drained(DRAIN_S)

    def _ending(self, code: int | None) -> str:
        return _SHUTDOWN_REASONS.get(self._shutdown, "")

    def console(self) -> Console:
        if not self._files.console.exists():
            raise MachineError(f"{self.config.name} has no console", why="it does not run, or was started without")
        return Console(self._files.console, self._files.console_lock, command.CONSOLE_DEVICE)

    async def _disk_traffic(self) -> tuple[int, int]:
        counted = [device["stats"] for device in await self._monitor.execute_list("query-blockstats")]
        return sum(c["rd_bytes"] for c in counted), sum(c["wr_bytes"] for c in counted)

    # Pause, snapshot, end

    async def _hold(self) -> None:
        await self._monitor.execute("stop")

    async def _go_on(self) -> None:
        await self._monitor.execute("cont")

    async def _save(self, folder: Path) -> None:
        if self.config.memory_file is not None:
            (folder / saved.MEMORY).hardlink_to(self.config.memory_file)
        await migration.save(self._monitor, self._qemu.version, folder / saved.STATE)

    async def _press_power_button(self) -> None:
        await self._monitor.execute("system_powerdown")


# QEMU's ShutdownCause (the event SHUTDOWN) in words.
_SHUTDOWN_REASONS = {
    "guest-shutdown": endings.POWERED_OFF,
    "guest-panic": "the guest's kernel panicked",
    "host-signal": "terminated from outside",
    "host-qmp-quit": "ended by a monitor command",
}

# QEMU's RunState (query-status) as ours; every other one is a kind of pause.
_STATES = {
    "running": State.RUNNING,
    "prelaunch": State.STARTING,
    "shutdown": State.STOPPING,
    "guest-panicked": State.ERROR,
    "internal-error": State.ERROR,
}
