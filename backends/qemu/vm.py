"""One QEMU machine, from launch to the end of its process."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import signal
from collections.abc import Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from fleetbox import paths
from fleetbox.backends.base import ExitStatus, Network, State, VMConfig, timeout_scale
from fleetbox.backends.host import disklock, process, reach
from fleetbox.backends.host.process import Process
from fleetbox.backends.host.thread import HostThread
from fleetbox.backends.qemu import command, qmp, serial
from fleetbox.backends.qemu.binary import Qemu
from fleetbox.errors import FleetboxError, MachineError
from fleetbox.identity import identify
from fleetbox.records import MachineHandle

log = logging.getLogger(__name__)

T = TypeVar("T")

CONNECT_S = 30.0
# A guest that is still booting misses the power button, and one that is shutting down ignores it.
POWERDOWN_AGAIN_S = 5.0
TERMINATE_GRACE_S = 5.0
DRAIN_S = 2.0

VHOST_NET = Path("/dev/vhost-net")


@runtime_checkable
class Attaches(Protocol):
    """A network with interfaces for QEMU; a machine on any other network has no network device."""

    async def attach(self, name: str) -> str:
        """Make the member's tap and return its name."""

    async def detach(self, name: str) -> None:
        """Remove it."""


@dataclass(frozen=True)
class RunFiles:
    """What one running machine has in its `run_dir`; all of it goes with the machine.

    The socket is named by a short digest: its path is at most 107 bytes long.
    """

    socket: Path
    pidfile: Path
    log: Path

    @classmethod
    def of(cls, config: VMConfig) -> RunFiles:
        digest = hashlib.sha256(config.name.encode()).hexdigest()[:12]
        return cls(
            paths.checked_socket(config.run_dir / f"{digest}.sock"),
            config.run_dir / f"{config.member}.pid",
            config.run_dir / f"{config.member}.log",
        )

    def running_pid(self, config: VMConfig) -> int | None:
        """The process of the pidfile when it is this machine's: a pidfile outlives its process, and pids are reused."""
        try:
            pid = int(self.pidfile.read_text())
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        return pid if os.fsencode(command.name_option(config)) in argv else None


class QemuVM:
    """A machine of the contract (`fleetbox.backends.base.VM`).

    Everything that a launch makes is on one exit stack. A launch that fails unwinds it; one that succeeds leaves it
    to `_watch`, which unwinds it when the process has ended, whoever ended it. A holder that goes away unwinds
    nothing: its machines stay for the next one to adopt.
    """

    def __init__(self, config: VMConfig, network: Network, host: HostThread, qemu: Qemu, accelerator: str) -> None:
        self.config = config
        self._network = network
        self._host = host
        self._qemu = qemu
        self._accelerator = accelerator
        self._files = RunFiles.of(config)
        self._monitor = qmp.Monitor(self._heard)
        self._state = State.STOPPED
        self._handle: MachineHandle | None = None
        self._process: Process | None = None
        self._end: asyncio.Task[ExitStatus] | None = None
        self._stopping = False
        self._forced = ""  # why we ended it, when we did
        self._shutdown = ""  # the reason that QEMU gave for its end

    @property
    def handle(self) -> MachineHandle | None:
        return self._handle

    def state(self) -> State:
        return self._state

    # Launch and adoption

    async def start(self) -> None:
        if self._state is not State.STOPPED:
            raise MachineError(f"{self.config.name} cannot be started", why=f"it is {self._state}")
        if pid := self._files.running_pid(self.config):
            raise MachineError(f"{self.config.name} already runs", why=f"as process {pid}")
        self._state = State.STARTING
        try:
            async with AsyncExitStack() as made:
                await self._launch(made)
                self._keep(made.pop_all(), State.RUNNING)
        except BaseException as e:
            self._state, self._handle, self._process = State.STOPPED, None, None
            if isinstance(e, OSError):
                raise MachineError(f"{self.config.name} did not start", why=str(e)) from e
            raise

    async def _launch(self, made: AsyncExitStack) -> None:
        self._monitor = qmp.Monitor(self._heard)
        self._stopping, self._forced, self._shutdown = False, "", ""
        serial.truncate(self.config.serial_log)
        tap = ""
        if isinstance(self._network, Attaches):
            tap = await self._network.attach(self.config.member)
            made.push_async_callback(self._network.detach, self.config.member)
        listener = qmp.listen(self._files.socket)
        made.callback(self._files.socket.unlink, missing_ok=True)
        made.callback(self._files.log.unlink, missing_ok=True)
        with listener, disklock.locked_disks(self.config.disks) as locks:
            surroundings = command.Surroundings(
                self._qemu, self._accelerator, listener.fileno(), tap, vhost=os.access(VHOST_NET, os.R_OK | os.W_OK)
            )
            launched = await process.spawn(
                self._host,
                command.build(self.config, surroundings),
                log_file=self._files.log,
                pass_fds=(listener.fileno(), *locks),
            )
        made.callback(launched.close)
        made.push_async_callback(launched.kill)  # does nothing once it has ended
        self._process = launched
        self._files.pidfile.write_text(f"{launched.pid}\n")
        made.callback(self._files.pidfile.unlink, missing_ok=True)
        made.push_async_callback(self._monitor.close)
        await self._greet(launched)
        # `FLEETBOX_QEMU` may name a wrapper: by now it has become QEMU.
        self._handle = MachineHandle(identify(launched.pid) or launched.identity, str(self._files.socket))

    async def _greet(self, launched: Process) -> None:
        """Connect; when that fails or the process ends first, say what QEMU said."""
        connect = asyncio.create_task(self._monitor.connect(self._files.socket, CONNECT_S * timeout_scale()))
        ended = asyncio.create_task(launched.wait())
        try:
            await asyncio.wait({connect, ended}, return_when=asyncio.FIRST_COMPLETED)
            if connect.done() and connect.exception() is None:
                return
            if not ended.done():  # an aborting QEMU closes its socket before it has ended
                await asyncio.wait({ended}, timeout=1)
            words = process.tail(self._files.log)
            said = _cause(words) or _exit_words(ended.result(), words) if ended.done() else ""
            raise MachineError(
                f"{self.config.name} did not start",
                why=said or str(connect.exception()),
                hint="see `fleetbox doctor`",
                details=words,
            )
        finally:
            for task in (connect, ended):
                task.cancel()
            await asyncio.gather(connect, ended, return_exceptions=True)

    async def adopt(self, handle: MachineHandle) -> bool:
        """Take over the running machine of that handle; False when it has ended.

        A machine that cannot be talked to is adopted all the same, in state `unknown`: it can still be ended.
        """
        found = process.adopt(handle.process)
        if found is None:
            return False
        api_socket = Path(handle.api_socket)
        async with AsyncExitStack() as kept:
            kept.callback(found.close)
            kept.push_async_callback(self._monitor.close)
            state = await self._ask_state(api_socket)
            if isinstance(self._network, Attaches):
                kept.push_async_callback(self._network.detach, self.config.member)
            kept.callback(api_socket.unlink, missing_ok=True)
            kept.callback(self._files.pidfile.unlink, missing_ok=True)
            kept.callback(self._files.log.unlink, missing_ok=True)
            self._process, self._handle = found, handle
            self._keep(kept.pop_all(), state)
        return True

    async def _ask_state(self, api_socket: Path) -> State:
        try:
            await self._monitor.connect(api_socket, CONNECT_S * timeout_scale())
            return _STATES.get((await self._monitor.execute("query-status")).get("status", ""), State.PAUSED)
        except MachineError as e:
            log.warning("%s: adopted without its monitor: %s", self.config.name, e)
            return State.UNKNOWN

    def _keep(self, made: AsyncExitStack, state: State) -> None:
        self._state = state
        self._end = asyncio.create_task(self._watch(made), name=f"watch {self.config.name}")

    async def _watch(self, made: AsyncExitStack) -> ExitStatus:
        assert self._process is not None
        code = await self._process.wait()
        await self._monitor.drained(DRAIN_S)
        status = ExitStatus(code, self._reason(code))
        log.info("%s ended: %s", self.config.name, status.reason)
        try:
            await made.aclose()
        except (FleetboxError, OSError) as e:
            log.warning("%s: not everything could be released: %s", self.config.name, e)
        self._state, self._handle, self._process = State.STOPPED, None, None
        return status

    def _reason(self, code: int | None) -> str:
        if self._forced:
            return self._forced
        if self._stopping and self._shutdown == "guest-shutdown":
            return "shut down"
        return _REASONS.get(self._shutdown) or _exit_words(code, process.tail(self._files.log))

    def _heard(self, event: str, data: Mapping[str, Any]) -> None:
        if event == "SHUTDOWN":
            self._shutdown = str(data.get("reason", ""))
        elif event == "STOP" and self._state is State.RUNNING:
            self._state = State.PAUSED
        elif event == "RESUME" and self._state is State.PAUSED:
            self._state = State.RUNNING
        elif event == "RESET":
            log.debug("%s was reset (%s)", self.config.name, data.get("reason", "unknown"))
        elif event == "BLOCK_IO_ERROR":
            log.error("%s: disk error: %s (%s)", self.config.name, data.get("reason"), data.get("action"))

    # Ends

    async def stop(self, timeout_s: float) -> None:
        if self._end is None or self._end.done():
            return
        before, self._state, self._stopping = self._state, State.STOPPING, True
        try:
            if not await self._shut_down(self._end, timeout_s, paused=before is State.PAUSED) and self._process:
                self._forced = f"did not shut down in {timeout_s:.0f} s and was terminated"
                await self._process.terminate(TERMINATE_GRACE_S * timeout_scale())
            await self.wait()
        except asyncio.CancelledError:
            if not self._end.done():
                self._state, self._stopping = before, False
            raise

    async def _shut_down(self, end: asyncio.Task[ExitStatus], timeout_s: float, *, paused: bool) -> bool:
        """Press the power button, again when it seems to be missed; whether the machine has ended."""
        try:
            async with asyncio.timeout(timeout_s):
                if paused:
                    await self._monitor.execute("cont")
                while not end.done():
                    await self._monitor.execute("system_powerdown")
                    await asyncio.wait({end}, timeout=POWERDOWN_AGAIN_S)
        except (TimeoutError, MachineError):
            await asyncio.wait({end}, timeout=0)
        return end.done()

    async def kill(self) -> None:
        if self._end is None or self._end.done() or self._process is None:
            return
        self._forced = "killed"
        self._process.signal(signal.SIGKILL)
        await self.wait()

    async def wait(self) -> ExitStatus:
        if self._end is None:
            raise MachineError(f"{self.config.name} was never started")
        return await asyncio.shield(self._end)

    # Readiness

    async def wait_for_ip(self, timeout_s: float) -> str:
        ip = self.config.assigned_ip
        if not ip:
            raise MachineError(f"{self.config.name} has no address", why="none was assigned to it")
        await self._unless_ended(reach.wait_for_ssh(self._host, ip, timeout_s))
        return ip

    async def booted_past_calibration(self, timeout_s: float) -> None:
        with contextlib.suppress(TimeoutError, MachineError):
            async with asyncio.timeout(timeout_s):
                await self._unless_ended(serial.wait_for(self.config.serial_log, serial.CALIBRATED))

    async def _unless_ended(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`; MachineError as soon as the machine has ended instead."""
        task = asyncio.ensure_future(work)
        try:
            end = asyncio.ensure_future(self.wait())
            await asyncio.wait({task, end}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise MachineError(f"{self.config.name} ended before it was ready", why=(await end).reason)
            return task.result()
        finally:
            task.cancel()
            end.cancel()
            await asyncio.gather(task, end, return_exceptions=True)


# QEMU's RunState (query-status) as ours; every other one is a kind of pause.
_STATES = {
    "running": State.RUNNING,
    "prelaunch": State.STARTING,
    "shutdown": State.STOPPING,
    "guest-panicked": State.ERROR,
    "internal-error": State.ERROR,
}

# QEMU's ShutdownCause (the event SHUTDOWN) in words.
_REASONS = {
    "guest-shutdown": "powered off by the guest",
    "guest-panic": "the guest's kernel panicked",
    "host-signal": "terminated from outside",
    "host-qmp-quit": "ended by a monitor command",
}


def _exit_words(code: int | None, words: list[str]) -> str:
    if code is None:
        return "its process has ended"
    if code < 0:
        return f"killed by signal {-code} ({signal.strsignal(-code) or 'unknown'})"
    if code > 0:
        return f"QEMU exited with code {code}" + (f": {_cause(words)}" if words else "")
    return "ended"


def _cause(words: list[str]) -> str:
    """The line of QEMU's output that tells why: the first that is no warning, without the program's name."""
    for line in words:
        if "warning:" not in line:
            return line.partition(": ")[2] or line
    return ""
