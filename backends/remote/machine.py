"""One machine that runs with the helper."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from fleetbox.backends.base import ExitStatus, State, VMConfig
from fleetbox.backends.host import saved
from fleetbox.backends.remote import away, homecoming
from fleetbox.backends.remote.files import Parcel, Sender
from fleetbox.backends.remote.link import Link
from fleetbox.backends.remote.wire import Act, End, Heard, Start, Told, Watch, machine_id
from fleetbox.errors import DiskError, FleetboxError, HolderError, MachineError, NotFoundError
from fleetbox.names import new_id
from fleetbox.records import MachineHandle
from fleetbox.usage import Statistics

log = logging.getLogger(__name__)

T = TypeVar("T")

AGAIN_S = (0.1, 2.0)  # the first and the longest pause before a lost link is tried again


@dataclass
class Session:
    """What the machines of one holder share. `running` are the launches that it follows."""

    link: Link
    sender: Sender
    owner: str
    running: set[str] = field(default_factory=set)


class RemoteVM:
    """A machine of the contract (`fleetbox.backends.base.VM`, `Pauses`, `Snapshots`, `HasStatistics`).

    Its process, disk and log are the helper's. Here are a copy of the log, a pidfile, and in the end the disk. A task
    follows it from launch to end; when the link is lost, that tries until it is back, the state is `unknown`, and every
    call is an error that says what was known last.
    """

    def __init__(self, config: VMConfig, session: Session, folder: Path | None = None) -> None:
        self.config = config
        self.id = machine_id(config.name, config.slot)
        self._session = session
        self._link = session.link
        self._snapshot = folder
        self._generation = ""
        self._state = State.STOPPED
        self._at = 0.0  # when it had that state, by the helper's clock
        self._lost = asyncio.Event()
        self._handle: MachineHandle | None = None
        self._end: asyncio.Task[ExitStatus] | None = None
        self._serial_base = 0
        slot = f"+{config.slot}" if config.slot else ""
        self._pidfile = config.run_dir / f"{config.member}{slot}.pid"

    @property
    def handle(self) -> MachineHandle | None:
        return self._handle

    def state(self) -> State:
        return State.UNKNOWN if self._lost.is_set() else self._state

    # Launch and adoption

    async def start(self) -> None:
        if self._state is not State.STOPPED:
            raise MachineError(f"{self.config.name} cannot be started", why=f"it is {self.state()}")
        self._state = State.STARTING
        try:
            with _file_errors(self.config.name):
                await self._launch()
        except BaseException:
            self._state = State.STOPPED
            raise

    async def _launch(self) -> None:
        config, disks = self.config, homecoming.writable(self.config)
        await homecoming.settle(self._link, [disk for _, disk in disks], self._session.running)
        await homecoming.discard_earlier(self._link, self.id, self._session.running)
        parcel, generation = Parcel(), new_id()
        request = await asyncio.to_thread(self._pack, parcel, generation)
        await self._session.sender.send(self.id, parcel.paths)
        async with AsyncExitStack() as undo:
            if config.memory_file is not None:
                config.memory_file.touch(mode=0o600, exist_ok=False)
                undo.callback(self._forget_memory)
            undo.push_async_callback(self._give_up, generation)
            for stage in _STAGES:
                for number, disk in disks:
                    await asyncio.to_thread(away.write, disk.path, away.Away(self.id, generation, stage, number))
                if stage == "starting":
                    told = await self._link.call("start", request, Told)
            self._pidfile.write_text(f"{told.handle.process.pid}\n")
            undo.pop_all()
        self.take_over(told)

    def _pack(self, parcel: Parcel, generation: str) -> Start:
        """The request, with all that it needs in the parcel. Blocks; raises OSError, DiskError."""
        config = self.config
        log_file = config.serial_log
        log_file.touch(mode=0o600)
        if self._snapshot is None:
            os.truncate(log_file, 0)  # of a new boot; a restored machine goes on in it
        cluster, _, member = config.name.rpartition("/")
        return Start(
            owner=self._session.owner,
            generation=generation,
            cluster=cluster,
            member=member,
            slot=config.slot,
            disks=tuple(map(parcel.disk, config.disks)),
            fixtures=tuple(map(parcel.disk, config.fixtures)),
            seed=parcel.add(config.seed) if config.seed else "",
            boot=parcel.boot(config),
            mac=config.mac,
            cpus=config.cpus,
            memory_bytes=config.memory_bytes,
            assigned_ip=config.assigned_ip,
            memory_file=config.memory_file is not None,
            control_line=config.control_line,
            bound=config.bound,
            serial_base=log_file.stat().st_size,
            saved=parcel.folder(self._snapshot, (saved.STATE, saved.MACHINE, saved.MEMORY)),
        )

    async def _give_up(self, generation: str) -> None:
        """End a machine that may have been launched although its launch failed or was cancelled.

        Where the helper cannot be asked, the notes beside the disks stay, and the next start asks.
        """
        act = Act(self.id, generation)
        try:
            await self._link.order("kill", act)
            await self._link.order("forget", act)
        except HolderError as e:
            log.warning("%s: whether it was launched is not known: %s", self.config.name, e)
            return
        for _, disk in homecoming.writable(self.config):
            away.clear(disk.path)

    def take_over(self, told: Told) -> None:
        """Follow a machine that was launched just now, or by an earlier holder."""
        self._generation = told.generation
        self._serial_base = told.serial_base
        self._handle = told.handle
        self._lost.clear()
        self._heard(told.at, told.state)
        self._session.running.add(told.generation)
        self._end = asyncio.create_task(self._follow(), name=f"follow {self.config.name}")

    def _heard(self, at: float, state: State) -> None:
        if at >= self._at:
            self._at, self._state = at, state

    async def _follow(self) -> ExitStatus:
        end = await self._until_back(self._watch)
        failure = await self._until_back(self._come_home)
        if failure:
            end = ExitStatus(end.code, f"{end.reason}; its disk stays with the remote helper for now: {failure}")
        self._pidfile.unlink(missing_ok=True)
        self._forget_memory()
        self._session.running.discard(self._generation)
        self._lost.clear()
        self._state, self._handle = State.STOPPED, None
        log.info("%s ended: %s", self.config.name, end.reason)
        return end

    async def _until_back(self, step: Callable[[], Awaitable[T]]) -> T:
        """Do a step, again and again while the link is lost."""
        pause_s = AGAIN_S[0]
        while True:
            try:
                return await step()
            except HolderError as e:
                if not self._lost.is_set():
                    log.warning("%s: %s; it was %s", self.config.name, e, self._state)
                self._lost.set()
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, AGAIN_S[1])

    async def _watch(self) -> ExitStatus:
        """Follow the machine to its end. Raises HolderError when the link is lost."""
        with _log_file(self.config.serial_log) as log_file:

            def hear(heard: Heard) -> None:
                if self._lost.is_set():
                    log.info("%s: the link is back, it is %s", self.config.name, heard.state)
                    self._lost.clear()
                with contextlib.suppress(OSError):  # a full disk costs the log, not the machine
                    log_file.write(heard.serial)
                    log_file.flush()
                if self._state in _SETTLED and heard.state in _SETTLED:
                    self._heard(heard.at, heard.state)

            known = max(0, log_file.tell() - self._serial_base)
            watch = Watch(self.id, self._generation, known)
            try:
                end: End = await self._link.call("watch", watch, End, hear)
            except NotFoundError as e:
                return ExitStatus(None, f"{e}: what it wrote since its start is not here")
            except HolderError:
                raise
            except FleetboxError as e:
                raise HolderError(f"{self.config.name} cannot be followed", why=str(e)) from e
            return end.status

    async def _come_home(self) -> str:
        """Fetch the disks of the machine that has ended, and let the helper forget it; returns what prevents that.

        A disk without a note is nobody's any more: its member was destroyed.
        """
        try:
            for number, disk in homecoming.writable(self.config):
                note = away.read(disk.path)
                if note is not None and note.generation == self._generation:
                    await homecoming.fetch_disk(self._link, self.id, number, disk)
                    away.clear(disk.path)
            await self._link.order("forget", self._act())
        except HolderError:
            raise
        except FleetboxError as e:
            log.error("%s: its disk stays with the helper: %s", self.config.name, e)  # noqa: TRY400
            return str(e)
        return ""

    # Orders

    def _act(self, timeout_s: float = 0.0) -> Act:
        return Act(self.id, self._generation, timeout_s)

    async def _ask(self, operation: str, kind: Any, timeout_s: float = 0.0) -> Any:
        """Have the helper do something with the machine. Raises its error, or HolderError with what was known last."""
        try:
            return await self._link.call(operation, self._act(timeout_s), kind)
        except HolderError as e:
            raise self._unreachable(e) from e

    def _unreachable(self, error: HolderError) -> HolderError:
        return type(error)(
            f"{self.config.name} cannot be reached",
            why=f"it was {self._state} when last heard of; {error}",
            hint=error.hint,
        )

    async def pause(self) -> None:
        await self._switch("pause", State.RUNNING, State.PAUSING, State.PAUSED)

    async def resume(self) -> None:
        await self._switch("resume", State.PAUSED, State.RESUMING, State.RUNNING)

    async def _switch(self, order: str, before: State, meanwhile: State, after: State) -> None:
        if self.state() is after:
            return
        if self._state not in (before, after):
            raise MachineError(f"{self.config.name} cannot be {after}", why=f"it is {self.state()}")
        async with self._while(meanwhile):
            try:
                told: Told = await self._ask(order, Told)
            except asyncio.CancelledError:  # it may have been carried out all the same: take it back
                with contextlib.suppress(FleetboxError):
                    await self._link.order("resume" if order == "pause" else "pause", self._act())
                raise
            self._heard(told.at, told.state)

    @asynccontextmanager
    async def _while(self, meanwhile: State) -> AsyncIterator[None]:
        """The state during an order; what fails or is cancelled leaves the state that was before."""
        before, self._state = self._state, meanwhile
        try:
            yield
        finally:
            if self._state is meanwhile:
                self._state = before

    async def snapshot(self, folder: Path) -> None:
        if self._state is not State.PAUSED:
            raise MachineError(f"{self.config.name} cannot be saved", why=f"it is {self.state()}, not paused")
        if not folder.is_dir():
            raise MachineError(f"{self.config.name} cannot be saved", why=f"there is no folder {folder}")
        try:
            names: list[str] = await self._ask("save", list[str])
            await homecoming.fetch_saved(self._link, self.id, folder, names)
            for number, disk in homecoming.writable(self.config):
                await homecoming.fetch_disk(self._link, self.id, number, disk)
        except BaseException as e:
            for path in folder.iterdir():
                path.unlink()
            if isinstance(e, DiskError):
                raise MachineError(f"{self.config.name} could not be saved", why=str(e), hint=e.hint) from e
            raise

    async def stop(self, timeout_s: float) -> None:
        await self._finish("stop", timeout_s)

    async def kill(self) -> None:
        await self._finish("kill")

    async def _finish(self, order: str, timeout_s: float = 0.0) -> None:
        """Order the machine's end and wait until its disk is here. Raises HolderError when the link is lost."""
        if self._state is State.STARTING:
            raise MachineError(f"{self.config.name} cannot stop", why="it is starting")
        if self._end is None or self._end.done():
            return
        async with self._while(State.STOPPING):
            await self._ask(order, Any, timeout_s)
            lost = asyncio.create_task(self._lost.wait())
            try:
                await asyncio.wait({self._end, lost}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                lost.cancel()
            if not self._end.done():
                raise self._unreachable(self._link.lost("it vanished while its machine was ended"))

    async def wait(self) -> ExitStatus:
        if self._end is None:
            raise MachineError(f"{self.config.name} was never started")
        return await asyncio.shield(self._end)

    # Readiness

    async def wait_for_ip(self, timeout_s: float) -> str:
        if self._end is None or self._end.done():
            raise MachineError(f"{self.config.name} has no address", why="it does not run")
        ip: str = await self._ask("wait-for-ip", str, timeout_s)
        return ip

    async def booted_past_calibration(self, timeout_s: float) -> None:
        if self._end is not None and not self._end.done():
            with contextlib.suppress(MachineError):
                await self._ask("calibrated", Any, timeout_s)

    async def statistics(self) -> Statistics:
        if self._end is None or self._end.done():
            raise MachineError(f"{self.config.name} has no statistics", why="it does not run")
        statistics: Statistics = await self._ask("statistics", Statistics)
        return statistics

    def _forget_memory(self) -> None:
        if self.config.memory_file is not None:
            self.config.memory_file.unlink(missing_ok=True)


_SETTLED = (State.RUNNING, State.PAUSED, State.ERROR, State.UNKNOWN)


_STAGES: tuple[away.Stage, ...] = ("starting", "away")


def _log_file(path: Path) -> BinaryIO:
    """The serial log to append to; without its folder nobody wants it any more."""
    try:
        return path.open("ab")
    except OSError:
        return Path(os.devnull).open("ab")


@contextlib.contextmanager
def _file_errors(name: str) -> Iterator[None]:
    """Turn an OSError of one of the machine's files into the contract's error."""
    try:
        yield
    except OSError as e:
        raise MachineError(f"{name} did not start", why=str(e)) from e
