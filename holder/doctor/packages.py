"""Installing the host programs that are missing, by apt on Debian, Ubuntu and what is made from them."""

from __future__ import annotations

import asyncio
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fleetbox.backends.base import timeout_scale
from fleetbox.backends.host import process, programs
from fleetbox.backends.host.thread import HostThread
from fleetbox.errors import FleetboxError, HostError
from fleetbox.wire import Event, Progress

OnEvent = Callable[[Event], None]

_INSTALL_LIMIT_S = 1800.0
_LOCK_LIMIT_S = 300.0
_EVENT_INTERVAL_S = 0.1
_STEP = "packages"


async def install_missing(on_event: OnEvent) -> None:
    """Install the packages of missing programs. Nothing is missing: nothing is done.

    Raises HostError on other distributions, without root or sudo, and when apt fails; it names the packages.
    """
    wanted = missing_packages()
    if wanted:
        await Apt(prefix_for(wanted), on_event).install(wanted)


def missing_packages() -> list[str]:
    """The packages of programs that are not on PATH, sorted."""
    return sorted({p.package for p in programs.PROGRAMS if programs.find(p.name) is None})


def prefix_for(packages: Sequence[str]) -> tuple[str, ...]:
    """What stands before apt-get here: nothing for root, sudo for others. Raises HostError where neither goes."""
    names = " ".join(packages)
    if not is_debian_like():
        raise HostError(
            f"host programs are missing: {names}",
            why="fleetbox installs them on Debian and Ubuntu only; elsewhere packages have other names",
            hint="install what `fleetbox doctor` names by your own package manager",
        )
    if os.geteuid() == 0:
        return ()
    try:
        process.run_blocking(["sudo", "-n", "true"], timeout_s=20)
    except FleetboxError as e:
        raise HostError(
            f"host programs are missing: {names}",
            why="installing them takes root, and sudo would ask for a password or is not there",
            hint=f"run: sudo apt-get install --no-install-recommends {names}",
        ) from e
    return ("sudo", "-n")


def is_debian_like() -> bool:
    """Whether this is Debian, Ubuntu or made from one, by os-release(5), and has apt."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return False
    kinds = {release.get("ID", ""), *release.get("ID_LIKE", "").split()}
    return bool(kinds & {"debian", "ubuntu"}) and programs.find("apt-get") is not None


@dataclass
class Apt:
    """apt-get, run to its end with its progress told to `on_event`."""

    prefix: tuple[str, ...]
    on_event: OnEvent
    program: str = "apt-get"

    async def install(self, packages: Sequence[str]) -> None:
        """Install packages, refreshing the lists when they do not know one of them or are out of date.

        Raises HostError with the end of apt's output.
        """
        install = ("install", "-y", "--no-install-recommends", *packages)
        self._tell("begin", f"installing {' '.join(packages)}")
        try:
            if not await self._knows(packages):
                await self._run("update")
                await self._run(*install)
            else:
                try:
                    await self._run(*install)
                except HostError:  # most often a list that names files which have been replaced since
                    await self._run("update")
                    await self._run(*install)
        except HostError:
            self._tell("failed", "apt-get failed")
            raise
        self._tell("done", f"installed {' '.join(packages)}")

    async def _knows(self, packages: Sequence[str]) -> bool:
        try:
            await process.run([self.program, "install", "--simulate", "--no-install-recommends", *packages])
        except FleetboxError:
            return False
        return True

    async def _run(self, *arguments: str) -> None:
        """One apt-get; while another package manager holds a lock, it is tried again for a while."""
        deadline = time.monotonic() + _LOCK_LIMIT_S * timeout_scale()
        while True:
            code, output = await self._run_once(arguments)
            if code == 0:
                return
            locked = any("Could not get lock" in line for line in output)
            if not locked or time.monotonic() > deadline:
                raise HostError(
                    f"apt-get {arguments[0]} failed",
                    why="another package manager is at work" if locked else _reason(output, code),
                    hint=f"run it yourself and see: {self.program} {' '.join(arguments)}",
                    details=output[-20:],
                )
            self._tell("update", "waiting for another package manager")
            await asyncio.sleep(1)

    async def _run_once(self, arguments: Sequence[str]) -> tuple[int | None, list[str]]:
        # Status lines go to standard output, not to a descriptor of their own, which sudo would close.
        options = ("-o", "APT::Status-Fd=1", "-o", f"DPkg::Lock::Timeout={_LOCK_LIMIT_S * timeout_scale():.0f}")
        surroundings = ("env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8")
        host = HostThread("apt")
        try:
            with tempfile.TemporaryDirectory(prefix="fleetbox-apt-") as folder:
                log_file = Path(folder, "output")
                argv = [*self.prefix, *surroundings, self.program, "-q", *options, *arguments]
                child = await process.spawn(host, argv, log_file=log_file)
                try:
                    async with asyncio.timeout(_INSTALL_LIMIT_S * timeout_scale()):
                        code = await self._follow(child, log_file)
                except BaseException:
                    # dpkg finishes its package on SIGTERM; SIGKILL would leave it half configured.
                    await asyncio.shield(child.terminate(grace_s=60))
                    raise
                finally:
                    child.close()
                lines = process.tail(log_file, lines=200)
                return code, [line for line in lines if not line.startswith(("dlstatus:", "pmstatus:"))]
        except TimeoutError:
            raise HostError(f"apt-get {arguments[0]} did not end in time", hint="run it yourself and see") from None
        finally:
            host.close()

    async def _follow(self, child: process.Process, log_file: Path) -> int | None:
        ended = asyncio.create_task(child.wait())
        try:
            with log_file.open(errors="replace") as output:
                while not ended.done():
                    await asyncio.wait({ended}, timeout=_EVENT_INTERVAL_S)
                    for line in output.readlines()[-1:]:
                        self._tell_line(line.strip())
            return ended.result()
        finally:
            ended.cancel()

    def _tell_line(self, line: str) -> None:
        kind, _, rest = line.partition(":")
        if kind in ("dlstatus", "pmstatus"):
            # `pmstatus:PACKAGE:PERCENT:TEXT` (apt's README.progress-reporting)
            _, percent, text = (*rest.split(":", 2), "", "")[:3]
            try:
                self._tell("update", text, float(percent))
            except ValueError:
                return  # half a line: the rest comes with the next look
        elif line:
            self._tell("update", line)

    def _tell(self, state: str, message: str, percent: float = 0.0) -> None:
        total, unit = (100.0, "percent") if percent else (0.0, "")
        self.on_event(Progress(_STEP, state, message=message, current=percent, total=total, unit=unit, at=time.time()))


def _reason(output: Sequence[str], code: int | None) -> str:
    errors = [line.removeprefix("E: ") for line in output if line.startswith("E: ")]
    return errors[0] if errors else f"exit code {code}"
