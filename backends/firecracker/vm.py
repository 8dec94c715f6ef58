"""One firecracker machine: what it has of its own (see `fleetbox.backends.vmm.machine` for the rest)."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fleetbox.backends.base import DirectBoot, Network, State, VMConfig
from fleetbox.backends.firecracker import requests
from fleetbox.backends.firecracker.kernel import bootable
from fleetbox.backends.firecracker.requests import Request
from fleetbox.backends.firecracker.workfolder import WorkFolder, drives
from fleetbox.backends.host import saved
from fleetbox.backends.host.files import worker
from fleetbox.backends.host.files.sparse import dig_holes
from fleetbox.backends.host.thread import HostThread
from fleetbox.backends.host.usage import transferred
from fleetbox.backends.vmm import endings
from fleetbox.backends.vmm.machine import Machine
from fleetbox.backends.vmm.rest import Api
from fleetbox.backends.vmm.specifics import Launch, Program
from fleetbox.errors import MachineError

log = logging.getLogger(__name__)

LAUNCH_S = 30.0
SAVE_S = 300.0  # all of the memory goes to disk

KEEPS = ("dac_read_search",)  # root's, for what another user has made

_ERROR = re.compile(r"\bERROR\b|^Error|panicked")
_STATES = {"Not started": State.STARTING, "Running": State.RUNNING, "Paused": State.PAUSED}


class FirecrackerVM(Machine):
    """A machine of the contract (`fleetbox.backends.base.VM`, `Pauses`, `Snapshots`)."""

    hypervisor = "firecracker"

    def __init__(
        self,
        config: VMConfig,
        network: Network,
        host: HostThread,
        program: Path,
        identity: Mapping[str, str],
        snapshot: Path | None = None,
    ) -> None:
        super().__init__(config, network, host, identity, snapshot)
        self._executable = program
        self._kernel = Path()
        self._folder = WorkFolder(self._files.socket.with_suffix(".d"))
        self._api = self._api_of(self._files.socket)

    def _api_of(self, socket: Path) -> Api:
        return Api(self.hypervisor, socket, self._files.log)

    @property
    def _mark(self) -> str:
        return str(self._files.socket)

    async def _program(self, launch: Launch) -> Program:
        config, boot = self.config, self.config.boot
        if launch.saved is None:
            if not isinstance(boot, DirectBoot):
                raise MachineError(f"{config.name} did not start", why="firecracker boots a kernel, not firmware")
            if len(requests.cmdline(boot)) > requests.MAX_CMDLINE_BYTES:
                raise MachineError(f"{config.name} did not start", why="its kernel's command line is too long")
            self._kernel = await worker.run(lambda _: bootable(boot.kernel))
        self._folder.make(config)
        self._files.socket.unlink(missing_ok=True)  # it does not replace one that was left
        if config.memory_file is not None:
            # RAM is a file only in a snapshot here, which is written when it is taken.
            config.memory_file.touch(mode=0o600, exist_ok=False)
            launch.made.callback(config.memory_file.unlink, missing_ok=True)
        stdin = self._folder.open_input()
        launch.ours.callback(os.close, stdin)
        argv = [str(self._executable), "--api-sock", str(self._files.socket), "--id", self._files.socket.stem]
        return Program(argv, stdin=stdin, stdout=config.serial_log, cwd=self._folder.path, keeps=KEEPS)

    def _clean(self) -> None:
        self._folder.remove()

    async def _connect(self, api_socket: Path) -> None:
        self._api = self._api_of(api_socket)
        await self._api.ready("/", LAUNCH_S)

    async def _bring_up(self, launch: Launch) -> None:
        await self._ask(requests.logger(self._files.log))
        if self._snapshot is not None:
            folder = self._snapshot
            await self._ask(requests.load(folder / saved.STATE, folder / saved.MEMORY, launch.tap))
            return
        assert isinstance(self.config.boot, DirectBoot)
        disks = drives(self.config)
        for request in requests.configuration(self.config, self.config.boot, self._kernel, disks, launch.tap):
            await self._ask(request)

    async def _ask(self, request: Request, timeout_s: float = 0.0) -> Any:
        return await self._api.request(*request, timeout_s=timeout_s or LAUNCH_S)

    async def _disconnect(self) -> None:
        """There is no connection but while it is asked."""

    async def _ask_state(self) -> State:
        found = await self._api.get("/")
        return _STATES.get(str(found.get("state")), State.UNKNOWN)

    async def _disk_traffic(self) -> tuple[int, int]:
        # What its process has moved, without what went over its tap; the kernel and initrd that it loaded are in it.
        assert self._process is not None
        read, written = transferred(self._process.identity)
        received, sent = await self._network.traffic(self.config.member, self.config.slot)
        return max(0, read - received), max(0, written - sent)

    async def _hold(self) -> None:
        await self._ask(requests.state("Paused"))

    async def _go_on(self) -> None:
        await self._ask(requests.state("Resumed"))

    async def _save(self, folder: Path) -> None:
        # It goes on writing when we go away: its files would come back after we had removed them.
        saving = asyncio.ensure_future(
            self._ask(requests.save(folder / saved.STATE, folder / saved.MEMORY), timeout_s=SAVE_S)
        )
        try:
            await asyncio.shield(saving)
        except asyncio.CancelledError:
            await asyncio.wait({saving})
            raise
        await worker.run(lambda stop: dig_holes(folder / saved.MEMORY, stop))

    async def _press_power_button(self) -> None:
        if not requests.HAS_KEYBOARD:
            raise MachineError(f"{self.config.name} cannot be asked to shut down", why="it has no keyboard controller")
        await self._ask(requests.action("SendCtrlAltDel"))

    def _cause(self, output: Sequence[str]) -> str:
        # Its log may stand before it, and that it exits with an error is said last.
        errors = [line for line in output if _ERROR.search(line) and "exiting with error" not in line]
        return errors[-1] if errors else endings.cause(output[-1:])

    def _ending(self, code: int | None) -> str:
        # Whose parent we are not, its code is not told.
        return endings.POWERED_OFF if code == 0 or (code is None and self._stopping) else ""
