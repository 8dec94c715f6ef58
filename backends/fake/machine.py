"""One fake machine: a shell (`fleetbox.backends.fake.guest`) in a process of its own; paused, that is stopped."""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import platform
import shutil
import signal
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

from fleetbox import paths
from fleetbox.backends.base import Console, ExitStatus, Network, State, VMConfig
from fleetbox.backends.fake.console import FakeConsole
from fleetbox.backends.fake.faults import Faults
from fleetbox.backends.fake.guest import SCRIPT, write
from fleetbox.backends.host import process, saved
from fleetbox.backends.host.confinement import Confinement
from fleetbox.backends.host.disklock import locked_disks
from fleetbox.backends.host.process import Process
from fleetbox.backends.host.thread import HostThread
from fleetbox.backends.host.usage import transferred, usage
from fleetbox.errors import MachineError
from fleetbox.faultpoint import arrive
from fleetbox.identity import is_alive
from fleetbox.records import MachineHandle
from fleetbox.usage import Statistics

TERM_GRACE_S = 1.0
IDENTITY = {
    "backend": "fake",
    "version": "1",
    "accelerator": "",
    "cpu": "",
    "machine": "fake",
    "architecture": platform.machine(),
}


class FakeVM:
    """See `fleetbox.backends.base.VM`, `Pauses`, `Snapshots`, `HasConsole` and `HasStatistics`.

    May be started again after its end.
    """

    def __init__(
        self, config: VMConfig, network: Network, host: HostThread, faults: Faults, snapshot: Path | None = None
    ) -> None:
        self.config = config
        self._network = network
        self._host = host
        self._faults = faults
        self._snapshot = snapshot
        self._given_away = False  # its memory is a template's
        slot = f"+{config.slot}" if config.slot else ""
        name = f"{config.member}{slot}"
        self._pidfile = config.run_dir / f"{name}.pid"
        self._fifo = config.run_dir / f"{name}.fifo"
        self._memory = config.run_dir / f"{name}.memory"
        digest = hashlib.sha256(f"{config.name}{slot}".encode()).hexdigest()[:12]  # a socket's path has to be short
        where = Console(paths.checked_socket(config.run_dir / f"{digest}.con"), config.run_dir / f"{digest}.lock")
        self.terminal = FakeConsole(where, config.serial_log, self.guest)
        self._state = State.STOPPED
        self._process: Process | None = None
        self._end: asyncio.Task[ExitStatus] | None = None
        self._boots_until_s = 0.0

    @property
    def handle(self) -> MachineHandle | None:
        return MachineHandle(self._process.identity, str(self._fifo)) if self._process else None

    def state(self) -> State:
        return self._state

    async def start(self) -> None:
        if self._state is not State.STOPPED:
            raise self._error("cannot start", f"it is {self._state}")
        self._state = State.STARTING
        try:
            child = await self._launch()
        except BaseException:
            self._state = State.STOPPED
            raise
        self.take_over(child)
        if self._snapshot is None:
            self._boot(child)

    def _boot(self, child: Process) -> None:
        fault = self._faults.find("boot", self.config.name)
        if fault is None:
            return
        loop = asyncio.get_running_loop()
        match fault.action:
            case "slow":
                self._boots_until_s = loop.time() + fault.seconds
            case "hang":
                self._boots_until_s = math.inf
            case "fail":
                self.guest("panic")
            case _:  # die, die-after; by then the machine may have ended, and gets no signal
                loop.call_later(fault.seconds, child.signal, signal.SIGKILL)

    async def _launch(self) -> Process:
        config = self.config
        for path in (*(d.path for d in (*config.disks, *config.fixtures)), *([config.seed] if config.seed else [])):
            if not path.exists():
                raise self._error("did not start", f"there is no disk {path}")
        fault = self._faults.find("start", config.name)
        restored = self._snapshot is not None
        deaf = self._faults.find("stop", config.name)
        async with AsyncExitStack() as undo:
            with ExitStack() as descriptors:
                locks = descriptors.enter_context(locked_disks(config.disks))  # from here on the member is ours
                self._fifo.unlink(missing_ok=True)
                os.mkfifo(self._fifo, 0o600)
                undo.callback(self._fifo.unlink, missing_ok=True)
                undo.push_async_callback(self._network.detach, config.member, config.slot)
                await self._network.attach(config.member, slot=config.slot, join=not restored)
                await arrive("machine.attached")
                undo.callback(self._forget)
                undo.push_async_callback(self.terminal.close)
                await self.terminal.open()
                self._remember()
                fifo = os.open(self._fifo, os.O_RDWR)  # the child inherits it: what is written from now on is read
                descriptors.callback(os.close, fifo)
                ready, running = os.pipe()
                descriptors.callback(os.close, ready)
                with ExitStack() as until_spawned:
                    until_spawned.callback(os.close, running)
                    child = await process.spawn(
                        self._host,
                        [
                            *("/bin/sh", "-c", SCRIPT, "fleetbox-fake", config.name, str(fifo), str(running)),
                            fault.action if fault else "run",
                            "deaf" if deaf and deaf.action == "hang" else "listen",
                            str(self._memory),
                            "restored" if restored else "cold",
                        ],
                        log_file=config.serial_log,
                        pass_fds=(fifo, running, *locks),
                        confinement=Confinement(config.bound),
                    )
                undo.callback(child.close)
                undo.push_async_callback(child.kill)
                undo.callback(self._pidfile.unlink, missing_ok=True)
                self._pidfile.write_text(f"{child.pid}\n")
                await arrive("machine.pidfile")
                if not await _read_byte(ready):
                    code = await child.wait()
                    details = process.tail(config.serial_log)
                    why = (
                        f"killed by signal {-code}" if code and code < 0 else (details[-1:] or [f"exit code {code}"])[0]
                    )
                    raise self._error("did not start", why, details)
                if fault and fault.action == "slow":
                    await asyncio.sleep(fault.seconds)
            if restored:
                await self._step("restore", child)
                await _stopped(child)
            undo.pop_all()
            return child

    def _remember(self) -> None:
        """Make the machine's memory: empty, or a copy of what the snapshot saved; a template's is its own file."""
        file = self.config.memory_file
        self._given_away = False
        self._memory.unlink(missing_ok=True)
        if file is not None:
            file.touch(mode=0o600, exist_ok=False)
            self._memory.symlink_to(file)
        elif self._snapshot is not None:
            shared = self._snapshot / saved.MEMORY
            shutil.copyfile(shared if shared.exists() else self._snapshot / saved.STATE, self._memory)
        else:
            self._memory.touch(mode=0o600)

    def _forget(self) -> None:
        for path in (self._memory, self.config.memory_file):
            if path is not None:
                path.unlink(missing_ok=True)

    def take_over(self, child: Process) -> None:
        """Watch over a process, just started or adopted: the machine runs from now on, or is paused if it is."""
        self._process = child
        self._state = State.PAUSED if _is_stopped(child) else State.RUNNING
        self._boots_until_s = 0.0
        self._end = asyncio.get_running_loop().create_task(self._watch(child), name=f"watch {self.config.name}")

    async def _watch(self, child: Process) -> ExitStatus:
        try:
            code = await child.wait()
        finally:
            child.close()
        self._process = None
        for path in (self._pidfile, self._fifo):
            path.unlink(missing_ok=True)
        self._forget()
        await self.terminal.close()
        await self._network.detach(self.config.member, self.config.slot)
        self._state = State.STOPPED
        if code is not None and code < 0:
            return ExitStatus(code, f"killed by signal {-code}")
        if code == 0:
            return ExitStatus(code, "powered off by the guest")
        return ExitStatus(code, (process.tail(self.config.serial_log, 1) or ["its process ended"])[0])

    async def pause(self) -> None:
        if self._state is not State.PAUSED:
            child = self._require(State.RUNNING, "be paused")
            await self._step("pause", child)
            try:
                await _stopped(child)
            except BaseException:
                child.signal(signal.SIGCONT)
                raise
            self._state = State.PAUSED

    async def resume(self) -> None:
        if self._state is not State.RUNNING:
            child = self._require(State.PAUSED, "be resumed")
            await self._step("resume", child)
            child.signal(signal.SIGCONT)
            self._state = State.RUNNING

    async def snapshot(self, folder: Path) -> None:
        child = self._require(State.PAUSED, "be saved")
        try:
            (folder / saved.STATE).write_bytes(self._memory.read_bytes())  # first: an interrupted save leaves something
            if self.config.memory_file is not None:
                os.link(self.config.memory_file, folder / saved.MEMORY)
            await self._step("snapshot", child)
            saved.write(folder, saved.describe(self.config, IDENTITY, control_line=False))
        except BaseException as e:
            for name in (saved.STATE, saved.MEMORY, saved.MACHINE):
                (folder / name).unlink(missing_ok=True)
            if isinstance(e, OSError):
                raise self._error("could not be saved", str(e)) from e
            raise
        self._given_away = self.config.memory_file is not None

    def console(self) -> Console:
        if self._process is None:
            raise self._error("has no console", "it does not run")
        return self.terminal.where

    async def statistics(self) -> Statistics:
        """What the shell uses; its disks are the files that it writes, and nothing passes its network."""
        if self._process is None:
            raise self._error("has no statistics", "it does not run")
        identity = self._process.identity
        cost, transfers = usage(identity), transferred(identity)
        traffic = await self._network.traffic(self.config.member, self.config.slot)
        return Statistics(*cost, *transfers, *traffic)

    def _require(self, state: State, what: str) -> Process:
        if self._process is None or self._state is not state:
            raise self._error(f"cannot {what}", f"it is {self._state}")
        if self._given_away:
            raise self._error(f"cannot {what}", "its memory has become a template's")
        return self._process

    async def _step(self, step: str, child: Process) -> None:
        """Go through a step of the faults' script in which the machine may die."""
        fault = await self._faults.reach(step, self.config.name)
        if fault and fault.action == "die":
            await child.kill()
        if not is_alive(child.identity):
            raise self._error(f"ended in the step '{step}'", "its process has ended")

    async def stop(self, timeout_s: float) -> None:
        if self._state is State.STARTING:
            raise self._error("cannot stop", "it is starting")
        if self._process is None:
            return
        if self._given_away:  # to shut down it would have to run
            await self.kill()
            return
        before, self._state = self._state, State.STOPPING
        try:
            self._process.signal(signal.SIGCONT)
            fault = await self._faults.reach("stop", self.config.name) if not self._deaf() else None
            if fault and fault.action == "die":
                await self.kill()
                return
            self.guest("power-button")
            try:
                async with asyncio.timeout(timeout_s):
                    await self.wait()
            except TimeoutError:
                if self._process is not None:
                    await self._process.terminate(TERM_GRACE_S)
                await self.wait()
        finally:
            if self._process is not None:  # cancelled or failed: it is as it was
                if before is State.PAUSED:
                    self._process.signal(signal.SIGSTOP)
                self._state = before

    def _deaf(self) -> bool:
        fault = self._faults.find("stop", self.config.name)
        return fault is not None and fault.action == "hang"

    async def kill(self) -> None:
        if self._process is not None:
            self._process.signal(signal.SIGKILL)
            await self.wait()

    async def wait(self) -> ExitStatus:
        if self._end is None:
            raise self._error("cannot be waited for", "it was not started")
        return await asyncio.shield(self._end)

    async def wait_for_ip(self, timeout_s: float) -> str:
        if self._end is None or self._process is None:
            raise self._error("has no address", "it does not run")
        answer = asyncio.get_running_loop().create_task(self._answer())
        try:
            done, _ = await asyncio.wait({answer, self._end}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if self._end in done:
                raise self._error("ended before it answered", self._end.result().reason, self._tail())
            if not done:
                raise self._error(f"did not answer in {timeout_s:g} s", "", self._tail())
            return await answer
        finally:
            answer.cancel()

    async def _answer(self) -> str:
        """Have booted and got the address; the fake network carries nothing, so nobody answers on it."""
        await self._booted()
        fault = await self._faults.reach("address", self.config.name)
        if fault and fault.action == "die":
            await self.kill()
        return self.config.assigned_ip

    async def _booted(self) -> None:
        remaining_s = self._boots_until_s - asyncio.get_running_loop().time()
        if remaining_s == math.inf:
            await asyncio.get_running_loop().create_future()
        await asyncio.sleep(max(0.0, remaining_s))

    async def booted_past_calibration(self, timeout_s: float) -> None:
        if self._end is None:
            return
        booted = asyncio.get_running_loop().create_task(self._booted())
        try:
            await asyncio.wait({booted, self._end}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            booted.cancel()

    def guest(self, line: str) -> bool:
        """Do something in the guest (see the module); False when it has ended."""
        return write(self._fifo, line)

    def _tail(self) -> list[str]:
        return process.tail(self.config.serial_log)

    def _error(self, what: str, why: str, details: list[str] | None = None) -> MachineError:
        return MachineError(f"the machine {self.config.name} {what}", why=why, details=details or ())


async def _stopped(child: Process) -> None:
    """Stop a process where it is; returns when it has stopped, or ended."""
    child.signal(signal.SIGSTOP)
    while is_alive(child.identity) and not _is_stopped(child):  # noqa: ASYNC110 - only /proc tells
        await asyncio.sleep(0.001)


def _is_stopped(child: Process) -> bool:
    try:
        stat = Path(f"/proc/{child.pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] == "T"  # proc_pid_stat(5)


async def _read_byte(descriptor: int) -> bytes:
    """One byte of a pipe, empty at its end."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(descriptor, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)
    return os.read(descriptor, 1)
