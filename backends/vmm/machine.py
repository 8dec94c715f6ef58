"""One machine of any hypervisor, from launch to the end of its process.

What is a hypervisor's own stands in its `Specifics`; everything else stands here once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any, TypeVar

from fleetbox.backends.base import ExitStatus, Network, State, VMConfig, timeout_scale
from fleetbox.backends.host import disklock, process, reach, saved
from fleetbox.backends.host.confinement import Confinement
from fleetbox.backends.host.process import Process
from fleetbox.backends.host.thread import HostThread
from fleetbox.backends.host.usage import usage
from fleetbox.backends.vmm import endings, serial
from fleetbox.backends.vmm.rest import Refused
from fleetbox.backends.vmm.runfiles import RunFiles
from fleetbox.backends.vmm.specifics import Launch, Specifics
from fleetbox.errors import FleetboxError, MachineError
from fleetbox.identity import identify
from fleetbox.records import MachineHandle
from fleetbox.usage import Statistics

log = logging.getLogger(__name__)

T = TypeVar("T")

# A guest that is still booting misses the power button, and one that is shutting down ignores it.
POWERDOWN_AGAIN_S = 5.0
TERMINATE_GRACE_S = 5.0


class Machine(Specifics):
    """A machine of the contract (`fleetbox.backends.base.VM`, `Pauses`, `Snapshots`, `HasStatistics`).

    With `snapshot`, its `start` restores that folder. `identity` is what its own snapshots are tied to.

    Everything that a launch makes is on one exit stack. A launch that fails unwinds it; one that succeeds leaves it
    to `_watch`, which unwinds it when the process has ended, whoever ended it. A holder that goes away unwinds
    nothing: its machines stay for the next one to adopt.
    """

    def __init__(
        self,
        config: VMConfig,
        network: Network,
        host: HostThread,
        identity: Mapping[str, str],
        snapshot: Path | None = None,
    ) -> None:
        self.config = config
        self._identity = dict(identity)
        self._snapshot = snapshot
        self._network = network
        self._host = host
        self._files = RunFiles.of(config)
        self._state = State.STOPPED
        self._handle: MachineHandle | None = None
        self._process: Process | None = None
        self._end: asyncio.Task[ExitStatus] | None = None
        self._stopping = False
        self._given_away = False  # its memory is a template's
        self._forced = ""  # why we ended it, when we did

    # Launch and adoption

    @property
    def handle(self) -> MachineHandle | None:
        return self._handle

    def state(self) -> State:
        return self._state

    async def start(self) -> None:
        if self._state is not State.STOPPED:
            raise MachineError(f"{self.config.name} cannot be started", why=f"it is {self._state}")
        if pid := self._files.running_pid(self._mark):
            raise MachineError(f"{self.config.name} already runs", why=f"as process {pid}")
        self._state = State.STARTING
        self._stopping, self._given_away, self._forced = False, False, ""
        try:
            async with AsyncExitStack() as made:
                await self._launch(made)
                self._keep(made.pop_all(), State.PAUSED if self._snapshot else State.RUNNING)
        except BaseException as e:
            self._state, self._handle, self._process = State.STOPPED, None, None
            if isinstance(e, OSError):
                raise MachineError(f"{self.config.name} did not start", why=str(e)) from e
            raise

    async def _launch(self, made: AsyncExitStack) -> None:
        config, files = self.config, self._files
        was = saved.read(self._snapshot) if self._snapshot else None
        serial.prepare(config.serial_log, keep=was is not None)
        made.push_async_callback(self._network.detach, config.member, config.slot)
        tap = await self._network.attach(config.member, slot=config.slot, join=was is None)
        made.callback(files.remove)
        made.callback(self._clean)
        async with AsyncExitStack() as coming_up:
            with ExitStack() as ours:
                launch = Launch(made, coming_up, ours, tap, was)
                program = await self._program(launch)
                locks = ours.enter_context(disklock.locked_disks(config.disks))
                launched = await process.spawn(
                    self._host,
                    program.argv,
                    log_file=files.log,
                    pass_fds=(*program.pass_fds, *locks),
                    stdin=program.stdin,
                    stdout_file=program.stdout,
                    cwd=program.cwd,
                    confinement=Confinement(config.bound, program.keeps),
                )
            made.callback(launched.close)
            made.push_async_callback(launched.kill)  # does nothing once it has ended
            self._process = launched
            files.pidfile.write_text(f"{launched.pid}\n")
            made.push_async_callback(self._disconnect)
            await self._come_up(launched, self._connect(files.socket))
            await self._come_up(launched, self._bring_up(launch))
        # The program may be a wrapper (`FLEETBOX_QEMU`, …): by now it has become the hypervisor.
        self._handle = MachineHandle(identify(launched.pid) or launched.identity, str(files.socket))

    async def _come_up(self, launched: Process, step: Coroutine[Any, Any, None]) -> None:
        """Do a step of the launch; when it fails or the process ends first, say what the process said."""
        task = asyncio.create_task(step)
        ended = asyncio.create_task(launched.wait())
        try:
            await asyncio.wait({task, ended}, return_when=asyncio.FIRST_COMPLETED)
            if task.done() and task.exception() is None:
                return
            error = task.exception() if task.done() else None
            refused = error if isinstance(error, Refused) else None
            if not ended.done() and refused is None:  # a process that aborts closes its socket before it has ended
                await asyncio.wait({ended}, timeout=1)
            words = process.tail(self._files.log)
            said = ""
            if refused is not None:
                said = str(refused)  # better than what a process says that ends for it
            elif ended.done():
                said = self._cause(words) or endings.exit_words(self.hypervisor, ended.result(), words)
            raise MachineError(
                f"{self.config.name} did not start",
                why=said or str(error or "its process has ended"),
                hint="see `fleetbox doctor`",
                details=words,
            )
        finally:
            task.cancel()
            ended.cancel()
            await asyncio.gather(task, ended, return_exceptions=True)

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
            kept.push_async_callback(self._disconnect)
            state = await self._found_state(api_socket)
            kept.push_async_callback(self._network.detach, self.config.member, self.config.slot)
            kept.callback(api_socket.unlink, missing_ok=True)
            kept.callback(self._files.remove)
            kept.callback(self._clean)
            if self.config.memory_file is not None:
                kept.callback(self.config.memory_file.unlink, missing_ok=True)
            self._process, self._handle = found, handle
            self._keep(kept.pop_all(), state)
        return True

    async def _found_state(self, api_socket: Path) -> State:
        try:
            await self._connect(api_socket)
            return await self._ask_state()
        except MachineError as e:
            log.warning("%s: adopted without its API: %s", self.config.name, e)
            return State.UNKNOWN

    def _keep(self, made: AsyncExitStack, state: State) -> None:
        self._state = state
        self._end = asyncio.create_task(self._watch(made), name=f"watch {self.config.name}")

    async def _watch(self, made: AsyncExitStack) -> ExitStatus:
        assert self._process is not None
        code = await self._process.wait()
        await self._drained()
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
        said = self._ending(code)
        if self._stopping and said == endings.POWERED_OFF:
            return "shut down"
        return said or endings.exit_words(self.hypervisor, code, process.tail(self._files.log))

    # Pause and snapshot

    async def pause(self) -> None:
        await self._switch(self._hold, self._go_on, State.RUNNING, State.PAUSING, State.PAUSED)

    async def resume(self) -> None:
        if self._given_away:
            raise MachineError(f"{self.config.name} cannot be resumed", why="its memory has become a template's")
        await self._switch(self._go_on, self._hold, State.PAUSED, State.RESUMING, State.RUNNING)

    async def _switch(
        self,
        order: Callable[[], Awaitable[None]],
        undo: Callable[[], Awaitable[None]],
        before: State,
        meanwhile: State,
        after: State,
    ) -> None:
        if self._state is after:
            return
        if self._state is not before:
            raise MachineError(f"{self.config.name} cannot be {after}", why=f"it is {self._state}")
        self._state = meanwhile
        try:
            await order()
        except BaseException:
            # The order may be under way: take it back, without waiting for the answer's contents.
            if self._state in (meanwhile, after):
                self._state = before
                with contextlib.suppress(MachineError):
                    await undo()
            raise
        if self._state is meanwhile:
            self._state = after

    async def snapshot(self, folder: Path) -> None:
        if self._state is not State.PAUSED or self._given_away:
            why = "its memory has become a template's" if self._given_away else f"it is {self._state}, not paused"
            raise MachineError(f"{self.config.name} cannot be saved", why=why)
        try:
            await self._unless_ended(self._save(folder))
            control_line = self._files.control.exists()
            saved.write(folder, saved.describe(self.config, self._identity, control_line=control_line))
        except BaseException as e:
            with contextlib.suppress(OSError):
                for path in folder.iterdir():
                    path.unlink()
            if isinstance(e, (MachineError, OSError)):
                raise MachineError(f"{self.config.name} could not be saved", why=getattr(e, "why", "") or str(e)) from e
            raise
        self._given_away = self.config.memory_file is not None

    @property
    def control_line(self) -> Path:
        if not self._files.control.exists():
            raise MachineError(f"{self.config.name} has no control line", why="it was made without")
        return self._files.control

    async def statistics(self) -> Statistics:
        if self._process is None:
            raise MachineError(f"{self.config.name} has no statistics", why="it does not run")
        cost, disks = usage(self._process.identity), await self._disk_traffic()
        return Statistics(*cost, *disks, *await self._network.traffic(self.config.member, self.config.slot))

    # Ends

    async def stop(self, timeout_s: float) -> None:
        if self._end is None or self._end.done():
            return
        if self._given_away:  # to shut down it would have to run
            await self.kill()
            return
        before, self._state, self._stopping = self._state, State.STOPPING, True
        try:
            if not await self._shut_down(self._end, timeout_s, paused=before is State.PAUSED):
                self._forced = f"did not shut down in {timeout_s:.0f} s and was terminated"
                await self._terminate(self._end)
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
                    await self._go_on()
                while not end.done():
                    await self._press_power_button()
                    await asyncio.wait({end}, timeout=POWERDOWN_AGAIN_S)
        except (TimeoutError, MachineError):
            await asyncio.wait({end}, timeout=0)
        return end.done()

    async def _terminate(self, end: asyncio.Task[ExitStatus]) -> None:
        """End the process: by its own request where it has one, by SIGTERM, by SIGKILL."""
        grace_s = TERMINATE_GRACE_S * timeout_scale()
        with contextlib.suppress(TimeoutError, MachineError):
            async with asyncio.timeout(grace_s):
                if await self._quit():
                    await asyncio.wait({end})
        if self._process is not None:
            await self._process.terminate(grace_s)

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
        if self._snapshot is not None:
            return  # it was saved after that
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
