"""The way out of a private network: pasta, or slirp4netns where that is missing or does not start.

Either is a program of the user's own in the host's network that copies between the sockets it opens there and an
interface inside, `up0`, with the default route. What it must not do is let guests at the host's own loopback: both
are told so. It ends with the holder, by its parent-death signal, and is started again when it ends by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fleetbox import paths
from fleetbox.backends.base import timeout_scale
from fleetbox.backends.host import programs
from fleetbox.backends.host.confinement import Confinement
from fleetbox.backends.host.network import links
from fleetbox.backends.host.process import Process, spawn, tail
from fleetbox.backends.host.thread import HostThread
from fleetbox.errors import FleetboxError, HostError

log = logging.getLogger(__name__)

UPLINK = "up0"
_START_LIMIT_S = 5.0
_PAUSE_S = 0.02
_STOP_GRACE_S = 2.0
_AGAIN_S = 1.0  # between its end and its next start: one that cannot stay must not eat a core


@dataclass(frozen=True)
class Helper:
    """A program that makes the way out; `dns` is the address at which it answers for the host's resolvers."""

    name: str
    dns: str
    argv: Callable[[str, int], list[str]]


def _pasta(program: str, netns_fd: int) -> list[str]:
    # -t, -u none: nothing comes in. -T, -U none and no-map-gw: the host's loopback is not reached from inside.
    run_as = ["--runas", "0"] if os.geteuid() == 0 else []
    quiet = ["-f", "-q", "-4", *run_as, "--config-net", "-I", UPLINK]
    closed = ["-t", "none", "-u", "none", "-T", "none", "-U", "none", "--no-map-gw"]
    inside = ["--dns-forward", PASTA.dns, "--netns-only", "--netns", f"/proc/self/fd/{netns_fd}"]
    return [program, *quiet, *closed, *inside]


def _slirp4netns(program: str, netns_fd: int) -> list[str]:
    closed = ["--disable-host-loopback", "--configure", "--mtu=65520"]
    return [program, *closed, "--netns-type=path", f"/proc/self/fd/{netns_fd}", UPLINK]


PASTA = Helper("pasta", "169.254.77.53", _pasta)
SLIRP4NETNS = Helper("slirp4netns", "10.0.2.3", _slirp4netns)


class Egress:
    """The running way out. `host` is the thread inside; the program is started by a lasting thread outside."""

    def __init__(self, host: HostThread, log_file: Path) -> None:
        self._host = host
        self._outside = HostThread("egress")
        self._log_file = log_file
        self._process: Process | None = None
        self._watch: asyncio.Task[None] | None = None
        self.helper: Helper | None = None

    async def start(self) -> None:
        """Start the first program that works. Raises HostError when none is installed or none works."""
        problems: list[str] = []
        for helper in (PASTA, SLIRP4NETNS):
            found = programs.find(helper.name)
            if found is None:
                problems.append(f"{helper.name} is not installed")
                continue
            try:
                self._process = await self._launch(helper, str(found))
            except FleetboxError as e:
                problems.append(f"{helper.name}: {e.why or e.message}")
                continue
            self.helper = helper
            self._watch = asyncio.create_task(self._keep_up(helper, str(found)), name="egress")
            return
        await self.close()
        raise HostError(
            "members of a private network cannot reach the outside",
            why="; ".join(problems),
            hint="`fleetbox doctor --fix` installs what is missing",
        )

    async def _launch(self, helper: Helper, program: str) -> Process:
        """Start it and wait until the way is there. Raises HostError, with the program's own words."""
        inside = await self._host.run(_namespace)
        try:
            process = await spawn(
                self._outside,
                helper.argv(program, inside),
                log_file=self._log_file,
                pass_fds=(inside,),
                confinement=Confinement(bound=True, keeps=("net_admin", "sys_admin")),
            )
        finally:
            os.close(inside)
        ended = asyncio.ensure_future(process.wait())
        try:
            async with asyncio.timeout(_START_LIMIT_S * timeout_scale()):
                while not await self._host.run(_has_way_out):  # no event tells: the interface is the program's
                    await asyncio.wait({ended}, timeout=_PAUSE_S)
                    if ended.done():
                        raise _not_started(helper, self._log_file, "it ended")
        except TimeoutError:
            await self._end(process)
            raise _not_started(helper, self._log_file, f"no way out in {_START_LIMIT_S:.0f} s") from None
        except BaseException:
            await self._end(process)
            raise
        finally:
            ended.cancel()
        return process

    async def _keep_up(self, helper: Helper, program: str) -> None:
        while True:
            assert self._process is not None
            await self._process.wait()
            log.warning("%s ended and is started again: %s", helper.name, " | ".join(tail(self._log_file, 2)))
            self._process.close()
            while True:
                await asyncio.sleep(_AGAIN_S)
                try:
                    self._process = await self._launch(helper, program)
                    break
                except FleetboxError as e:
                    log.warning("%s", e)

    @staticmethod
    async def _end(process: Process) -> None:
        with contextlib.suppress(OSError):
            await process.terminate(_STOP_GRACE_S)
        process.close()

    async def close(self) -> None:
        """End it; repeatable."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
            self._watch = None
        if self._process is not None:
            await self._end(self._process)
            self._process = None
        self._outside.close()
        self._log_file.unlink(missing_ok=True)


def _not_started(helper: Helper, log_file: Path, what: str) -> HostError:
    words = tail(log_file, 5)
    return HostError(f"{helper.name} made no way out", why=words[-1] if words else what, details=words)


def _namespace() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _has_way_out() -> bool:
    with links.netlink() as ip:
        return UPLINK in links.uplinks(ip)


def log_file(cluster: str) -> Path:
    """What the program said."""
    return paths.private_dir(paths.cluster_runtime_dir(cluster)) / "egress.log"
