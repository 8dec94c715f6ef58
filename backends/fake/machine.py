"""One fake machine: a shell that plays hypervisor and guest, told what to do through a FIFO.

Lines that it understands: `power-button` and `poweroff` end it, `reboot` boots it anew in the same process, `panic`
ends it with an error; any other line is shown on its console, the serial log.
"""

from __future__ import annotations

import asyncio
import errno
import math
import os
import signal
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

from fleetbox.backends.base import ExitStatus, State, VMConfig
from fleetbox.backends.fake.faults import Faults
from fleetbox.backends.host import process
from fleetbox.backends.host.disklock import locked_disks
from fleetbox.backends.host.process import Process
from fleetbox.backends.host.thread import HostThread
from fleetbox.errors import MachineError
from fleetbox.records import MachineHandle

TERM_GRACE_S = 1.0

# $1 name, $2 descriptor of the FIFO, $3 descriptor that says "guest code runs", $4 how to start, $5 how to take a stop
_SCRIPT = r"""
boot() {
    echo "[    0.000000] Linux version 0.0.0-fake"
    echo "[    0.004000] Calibrating delay loop (skipped)"
    echo "[    0.010000] fake: $name has booted"
    echo "${name##*/} login:"
}
name=$1
case $5 in deaf) trap '' TERM ;; *) trap 'echo "fake: ended by SIGTERM"; exit 0' TERM ;; esac
case $4 in
    fail) echo "fake: $name refuses to start"; exit 1 ;;
    die) kill -KILL $$ ;;
    hang) ;;
    *) echo >"/dev/fd/$3" ;;
esac
exec 3<>"/dev/fd/$2"
[ "$4" = hang ] || boot
while read -r line <&3; do
    case $line in
        power-button) [ "$5" = deaf ] || { echo "reboot: Power down"; exit 0; } ;;
        poweroff) echo "reboot: Power down"; exit 0 ;;
        reboot) echo "reboot: Restarting system"; boot ;;
        panic) echo "Kernel panic - not syncing: told so"; exit 1 ;;
        *) printf '%s\n' "$line" ;;
    esac
done
"""


def tell(handle: MachineHandle, line: str) -> bool:
    """Tell a fake machine's guest something, from any process of this user; False when it has ended."""
    return _write(Path(handle.api_socket), line)


def _write(fifo: Path, line: str) -> bool:
    try:
        descriptor = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)  # fails when nobody has it open for reading (fifo(7))
    except OSError as e:
        if e.errno in (errno.ENXIO, errno.ENOENT):
            return False
        raise
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)
    return True


class FakeVM:
    """See `fleetbox.backends.base.VM`. May be started again after its end."""

    def __init__(self, config: VMConfig, host: HostThread, faults: Faults) -> None:
        self.config = config
        self._host = host
        self._faults = faults
        self._pidfile = config.run_dir / f"{config.member}.pid"
        self._fifo = config.run_dir / f"{config.member}.fifo"
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
        deaf = self._faults.find("stop", config.name)
        async with AsyncExitStack() as undo:
            with ExitStack() as descriptors:
                locks = descriptors.enter_context(locked_disks(config.disks))  # from here on the member is ours
                self._fifo.unlink(missing_ok=True)
                os.mkfifo(self._fifo, 0o600)
                undo.callback(self._fifo.unlink, missing_ok=True)
                fifo = os.open(self._fifo, os.O_RDWR)  # the child inherits it: what is written from now on is read
                descriptors.callback(os.close, fifo)
                ready, running = os.pipe()
                descriptors.callback(os.close, ready)
                with ExitStack() as until_spawned:
                    until_spawned.callback(os.close, running)
                    child = await process.spawn(
                        self._host,
                        [
                            *("/bin/sh", "-c", _SCRIPT, "fleetbox-fake", config.name, str(fifo), str(running)),
                            fault.action if fault else "run",
                            "deaf" if deaf and deaf.action == "hang" else "listen",
                        ],
                        log_file=config.serial_log,
                        pass_fds=(fifo, running, *locks),
                    )
                undo.callback(child.close)
                undo.push_async_callback(child.kill)
                undo.callback(self._pidfile.unlink, missing_ok=True)
                self._pidfile.write_text(f"{child.pid}\n")
                if not await _read_byte(ready):
                    code = await child.wait()
                    details = process.tail(config.serial_log)
                    why = (
                        f"killed by signal {-code}" if code and code < 0 else (details[-1:] or [f"exit code {code}"])[0]
                    )
                    raise self._error("did not start", why, details)
                if fault and fault.action == "slow":
                    await asyncio.sleep(fault.seconds)
            undo.pop_all()
            return child

    def take_over(self, child: Process) -> None:
        """Watch over a process, just started or adopted: the machine runs from now on."""
        self._process = child
        self._state = State.RUNNING
        self._boots_until_s = 0.0
        self._end = asyncio.get_running_loop().create_task(self._watch(child), name=f"watch {self.config.name}")

    async def _watch(self, child: Process) -> ExitStatus:
        try:
            code = await child.wait()
        finally:
            child.close()
        self._process = None
        self._pidfile.unlink(missing_ok=True)
        self._fifo.unlink(missing_ok=True)
        self._state = State.STOPPED
        if code is not None and code < 0:
            return ExitStatus(code, f"killed by signal {-code}")
        if code == 0:
            return ExitStatus(code, "powered off by the guest")
        return ExitStatus(code, (process.tail(self.config.serial_log, 1) or ["its process ended"])[0])

    async def stop(self, timeout_s: float) -> None:
        if self._state is State.STARTING:
            raise self._error("cannot stop", "it is starting")
        if self._process is None:
            return
        self._state = State.STOPPING
        try:
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
            if self._process is not None:
                self._state = State.RUNNING  # cancelled or failed: it runs on

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
        return _write(self._fifo, line)

    def _tail(self) -> list[str]:
        return process.tail(self.config.serial_log)

    def _error(self, what: str, why: str, details: list[str] | None = None) -> MachineError:
        return MachineError(f"the machine {self.config.name} {what}", why=why, details=details or ())


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
