"""One cloud-hypervisor machine: what is cloud-hypervisor's own of it."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fleetbox.backends.base import Console, Network, State, VMConfig, timeout_scale
from fleetbox.backends.cloud_hypervisor import command, configuration
from fleetbox.backends.cloud_hypervisor.memory import HugePages, may_fault_in_user_space
from fleetbox.backends.host.thread import HostThread
from fleetbox.backends.vmm import endings
from fleetbox.backends.vmm.machine import Machine
from fleetbox.backends.vmm.rest import Api, Refused
from fleetbox.backends.vmm.specifics import Launch, Program
from fleetbox.errors import MachineError

API = "/api/v1"
NAME = "cloud-hypervisor"

# What it needs of root's rights: it sets up the tap that it is given, and files may be another user's.
KEEPS = ("net_admin", "dac_read_search")

CONNECT_S = 30.0
# Reading the memory of many GiB from a slow disk, and writing it there.
MEMORY_S = 600.0
_LOOK_AGAIN_S = 0.01
_ASK_AGAIN_S = 0.2

_STATES = {
    "Created": State.STARTING,
    "Running": State.RUNNING,
    "Paused": State.PAUSED,
    "Shutdown": State.STOPPING,
}


class CloudHypervisorVM(Machine):
    """A machine by cloud-hypervisor, `HasControlLine` and `HasConsole` besides what every `Machine` is.

    Both are the guest's `hvc0`, on a pseudo-terminal that `RunFiles.control` links to; the serial port goes to the log.
    """

    hypervisor = NAME

    def __init__(
        self,
        config: VMConfig,
        network: Network,
        host: HostThread,
        program: Path,
        firmware: Path | None,
        hugepages: HugePages,
        identity: Mapping[str, str],
        snapshot: Path | None = None,
    ) -> None:
        super().__init__(config, network, host, identity, snapshot)
        self._program_file = program
        self._firmware = firmware
        self._hugepages = hugepages
        self._api = Api(NAME, self._files.socket, self._files.log, API)

    # Launch

    @property
    def _mark(self) -> str:
        return str(self._files.socket)

    async def _program(self, launch: Launch) -> Program:
        socket = self._files.socket
        socket.unlink(missing_ok=True)
        self._api = Api(NAME, socket, self._files.log, API)
        if launch.saved is not None:
            return Program(command.restore(self._program_file, socket), keeps=KEEPS)
        config = self.config
        if config.memory_file is not None:
            config.memory_file.touch(mode=0o600, exist_ok=False)
            launch.made.callback(config.memory_file.unlink, missing_ok=True)
            os.truncate(config.memory_file, config.memory_bytes)
        hugepages = config.memory_file is None and await self._hugepages.take(config.memory_bytes, launch.coming_up)
        argv = command.build(self._program_file, config, socket, self._firmware, tap=launch.tap, hugepages=hugepages)
        return Program(argv, keeps=KEEPS)

    async def _connect(self, api_socket: Path) -> None:
        self._api.socket = api_socket
        if self._state is State.STARTING:
            await self._api.ready("/vmm.ping", CONNECT_S)
        else:
            await self._api.get("/vmm.ping", timeout_s=CONNECT_S)

    async def _bring_up(self, launch: Launch) -> None:
        if launch.saved is None or self._snapshot is None:
            info = await self._booted()
        else:
            await self._restore(self._snapshot, launch.tap, launch.saved.fixtures)
            info = await self._api.get("/vm.info")
        self._link_console(info)
        if launch.saved is not None:
            for number, disk in list(enumerate(self.config.fixtures))[launch.saved.fixtures :]:
                body = {"path": str(disk.path), "readonly": disk.read_only, "id": command.fixture_id(number)}
                body |= {"image_type": disk.format.capitalize()} | ({"serial": disk.serial} if disk.serial else {})
                await self._api.put("/vm.add-disk", body)

    async def _booted(self) -> dict[str, Any]:
        """The machine's information, once it runs: the process boots it by itself, beside its API."""
        limit_s = CONNECT_S * timeout_scale()
        deadline = time.monotonic() + limit_s
        while True:
            try:
                info = await self._api.get("/vm.info", timeout_s=CONNECT_S)
            except Refused as e:  # there is no machine yet
                refusal = e
            else:
                if info.get("state") == "Running":
                    return info
                refusal = Refused("the machine does not run", status=0, why=f"it is {info.get('state')}")
            if time.monotonic() > deadline:
                raise refusal
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def _restore(self, folder: Path, tap: str, fixtures: int) -> None:
        target = self._restored
        self._clean()
        target.mkdir(mode=0o700)
        try:
            ranges = await asyncio.to_thread(configuration.unpack, folder, target, self.config, tap, fixtures)
            body = {"source_url": f"file://{target}"}
            if ranges and await asyncio.to_thread(may_fault_in_user_space):
                body["memory_restore_mode"] = "OnDemand"
            await self._api.put("/vm.restore", body, timeout_s=MEMORY_S)
        finally:
            self._clean()

    @property
    def _restored(self) -> Path:
        """Where a snapshot is in the program's own form while it restores it."""
        return self._files.socket.with_suffix(".restore")

    def _clean(self) -> None:
        shutil.rmtree(self._restored, ignore_errors=True)

    def _link_console(self, info: Mapping[str, Any]) -> None:
        """Put what opens the guest's console where it is looked for."""
        console = info.get("config", {}).get("console") or {}
        terminal = str(console.get("file") or "")
        if console.get("mode") != "Pty" or not terminal:
            return
        # The group tty may write on terminals; this one is a shell of root's.
        Path(terminal).chmod(0o600)
        self._files.control.unlink(missing_ok=True)
        self._files.control.symlink_to(terminal)
        self._files.lock.touch(mode=0o600)

    async def _disconnect(self) -> None:
        """Every request is a connection of its own."""

    async def _ask_state(self) -> State:
        info = await self._api.get("/vm.info")
        self._link_console(info)
        return _STATES.get(str(info.get("state")), State.UNKNOWN)

    # Ends

    def _ending(self, code: int | None) -> str:
        if code == 0 or (code is None and self._stopping):
            return endings.POWERED_OFF if self._stopping else "powered off by the guest, or terminated from outside"
        return ""

    def _cause(self, output: Sequence[str]) -> str:
        """The program's last words: `Error: … exited with the following …`, and the causes numbered below."""
        for number, line in enumerate(output):
            if line.startswith("Error: "):
                causes = [part.strip().lstrip("0123456789: ") for part in output[number + 1 :]]
                return ": ".join(filter(None, causes)) or line
            if line.startswith("error: "):
                return line.removeprefix("error: ")
        return endings.cause(output)

    async def _press_power_button(self) -> None:
        await self._api.put("/vm.power-button")

    async def _quit(self) -> bool:
        await self._api.put("/vmm.shutdown")
        return True

    # Pause and snapshot

    async def _hold(self) -> None:
        await self._api.put("/vm.pause")

    async def _go_on(self) -> None:
        await self._api.put("/vm.resume")

    async def _save(self, folder: Path) -> None:
        body = {"destination_url": f"file://{folder}"}
        deadline = time.monotonic() + MEMORY_S * timeout_scale()
        while True:
            try:
                await self._api.put("/vm.snapshot", body, timeout_s=MEMORY_S)
                break
            except Refused as e:
                # One that was restored on demand still reads its memory, in the background: it cannot be saved yet.
                if "restor" not in e.why or time.monotonic() > deadline:
                    raise
                await asyncio.sleep(_ASK_AGAIN_S)
        await asyncio.to_thread(configuration.pack, folder, self.config.memory_file)

    # What it is asked beside

    def console(self) -> Console:
        if not self._files.control.exists():
            raise MachineError(f"{self.config.name} has no console", why="it does not run, or was made without")
        return Console(self._files.control, self._files.lock)

    async def _disk_traffic(self) -> tuple[int, int]:
        counters = await self._api.get("/vm.counters")
        disks = [counters[name] for name in command.disks(self.config) if name in counters]
        return sum(d.get("read_bytes", 0) for d in disks), sum(d.get("write_bytes", 0) for d in disks)
