"""The one module that runs programs: argv lists, explicit surroundings, an end that is always awaited.

`run` is for programs that end by themselves, `spawn` for those that stay. A `Process` is identified by pid, start and
boot (`fleetbox.identity`) and signalled through a pidfd, so it works alike for our own children and for adopted ones,
and a reused pid is never hit.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fleetbox.backends.host import capabilities, programs
from fleetbox.backends.host.confinement import FREE, Confinement, confined, passed_on
from fleetbox.backends.host.thread import HostThread
from fleetbox.errors import FleetboxError, HostError
from fleetbox.faultpoint import reach
from fleetbox.identity import ProcessIdentity, identify, open_pidfd

log = logging.getLogger(__name__)


class ProgramFailed(FleetboxError):
    """A host program exited with an error; `stderr` is what it said, `returncode` its exit code."""

    def __init__(self, argv: Sequence[str], returncode: int, stderr: str) -> None:
        last = stderr.strip().splitlines()[-1:] or [f"exit code {returncode}"]
        super().__init__(f"{Path(argv[0]).name} failed", why=last[0], details=stderr.strip().splitlines()[-20:])
        self.returncode = returncode
        self.stderr = stderr


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The surroundings of a host program: ours, with plain messages and the administrators' folders on PATH."""
    return {**os.environ, "LC_ALL": "C.UTF-8", "PATH": programs.search_path(), **(extra or {})}


def _unusable(program: str, error: OSError) -> HostError:
    if isinstance(error, FileNotFoundError):
        return programs.missing(Path(program).name)
    return HostError(f"{program} cannot be run", why=error.strerror or str(error), hint="reinstall its package")


def run_blocking(
    argv: Sequence[str], *, stdin: bytes | None = None, timeout_s: float = 60.0, passing_on: Sequence[int] = ()
) -> bytes:
    """Run a short program in the calling thread and return its standard output.

    It is given the capabilities `passing_on` where the thread has them (see `capabilities`).

    Raises HostError when it is not installed or takes too long, ProgramFailed when it exits with an error.
    """
    log.debug("run %s", shlex.join(argv))
    try:
        with capabilities.passed_on(*passing_on):
            done = subprocess.run(
                list(argv),
                input=stdin,
                stdin=subprocess.DEVNULL if stdin is None else None,
                capture_output=True,
                timeout=timeout_s,
                env=environment(),
                check=False,
            )
    except OSError as e:
        raise _unusable(argv[0], e) from e
    except subprocess.TimeoutExpired:
        raise HostError(
            f"{Path(argv[0]).name} did not end in {timeout_s:.0f} s", hint="see `fleetbox doctor`"
        ) from None
    if done.returncode != 0:
        raise ProgramFailed(argv, done.returncode, done.stderr.decode(errors="replace"))
    return done.stdout


async def run(argv: Sequence[str], *, stdin: bytes | None = None, timeout_s: float = 60.0) -> bytes:
    """Run a short program and return its standard output; cancelled, it is ended first.

    For programs that touch no network: those run in the host thread, by `run_blocking`. Raises as `run_blocking` does.
    """
    log.debug("run %s", shlex.join(argv))
    try:
        child = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment(),
        )
    except OSError as e:
        raise _unusable(argv[0], e) from e
    try:
        async with asyncio.timeout(timeout_s):
            stdout, stderr = await child.communicate(stdin)
    except TimeoutError:
        raise HostError(
            f"{Path(argv[0]).name} did not end in {timeout_s:.0f} s", hint="see `fleetbox doctor`"
        ) from None
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    if child.returncode != 0:
        raise ProgramFailed(argv, child.returncode or 0, stderr.decode(errors="replace"))
    return stdout


@dataclass
class Process:
    """A lasting process, ours or adopted. Make it by `spawn` or `adopt`; `close` when it is not looked at any more."""

    identity: ProcessIdentity
    _pidfd: int
    _child: subprocess.Popen[bytes] | None = None
    _ended: asyncio.Future[None] | None = None

    @property
    def pid(self) -> int:
        return self.identity.pid

    async def wait(self) -> int | None:
        """Wait for its end: the exit code (negative for a signal), None for a process that we are not the parent of."""
        await asyncio.shield(self._end())
        return self._child.wait() if self._child is not None else None

    def _end(self) -> asyncio.Future[None]:
        # A pidfd becomes readable when its process ends, parent or not (pidfd_open(2)).
        if self._ended is None:
            loop = asyncio.get_running_loop()
            ended: asyncio.Future[None] = loop.create_future()

            def on_end() -> None:
                loop.remove_reader(self._pidfd)
                if not ended.done():
                    ended.set_result(None)

            loop.add_reader(self._pidfd, on_end)
            self._ended = ended
        return self._ended

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; a process that has ended, or that we have closed, gets none."""
        if self._pidfd < 0:
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    async def terminate(self, grace_s: float) -> int | None:
        """SIGTERM, then SIGKILL after `grace_s`; returns as `wait` does."""
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                return await self.wait()
        except TimeoutError:
            log.warning("pid %d ignored SIGTERM for %.0f s: SIGKILL", self.pid, grace_s)
            return await self.kill()

    def terminate_blocking(self, grace_s: float) -> bool:
        """SIGTERM, then SIGKILL after `grace_s`, for the host thread; whether it has ended (a moment after SIGKILL)."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        for number, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
            self.signal(number)
            if poll.poll(patience_s * 1000):
                if self._child is not None:
                    self._child.wait()
                return True
        return False

    async def kill(self) -> int | None:
        """SIGKILL; returns as `wait` does."""
        self.signal(signal.SIGKILL)
        return await self.wait()

    def close(self) -> None:
        """Forget the process, running or not."""
        if self._pidfd >= 0:
            if self._ended is not None and not self._ended.done():
                self._ended.get_loop().remove_reader(self._pidfd)
                self._ended.cancel()
            os.close(self._pidfd)
            self._pidfd = -1


def spawn_blocking(
    argv: Sequence[str],
    *,
    log_file: Path,
    pass_fds: Sequence[int] = (),
    extra_env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: int = subprocess.DEVNULL,
    stdout_file: Path | None = None,
    confinement: Confinement = FREE,
) -> Process:
    """Start a lasting program in the calling thread, in a session of its own, its output appended to `log_file`.

    Where there is a `stdout_file`, standard output is appended to that instead.

    Files and sockets that it makes are its user's only. One that is bound by its `confinement` dies with that thread.
    Raises HostError when the program is not installed or cannot be run.
    """
    log.debug("spawn %s", shlex.join(argv))
    if confinement != FREE and programs.find(argv[0]) is None:  # setpriv would say so too late
        raise programs.missing(Path(argv[0]).name)
    with log_file.open("ab") as output, (stdout_file or log_file).open("ab") as stdout:
        try:
            with passed_on(confinement):
                child = subprocess.Popen(
                    confined(argv, confinement),
                    stdin=stdin,
                    stdout=stdout,
                    stderr=output,
                    pass_fds=tuple(pass_fds),
                    env=environment(extra_env),
                    cwd=cwd,
                    umask=0o077,
                    start_new_session=True,
                )
        except OSError as e:
            raise _unusable(argv[0], e) from e
    # A child that has ended already is a zombie until we wait for it: its pid cannot have been reused. Its argv is not
    # read back from /proc: Popen returns when exec closes its error pipe, a moment before the kernel has set argv.
    try:
        reach("machine.spawned")
        pidfd = os.pidfd_open(child.pid)
    except BaseException as e:
        child.kill()
        child.wait()
        if isinstance(e, OSError):
            raise _unusable(argv[0], e) from e
        raise
    program = Path(argv[0]).name
    identity = identify(child.pid, program) or ProcessIdentity(child.pid, 0, "", program)
    return Process(identity, pidfd, child)


async def spawn(
    host: HostThread,
    argv: Sequence[str],
    *,
    log_file: Path,
    pass_fds: Sequence[int] = (),
    extra_env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: int = subprocess.DEVNULL,
    stdout_file: Path | None = None,
    confinement: Confinement = FREE,
) -> Process:
    """`spawn_blocking` in the host thread; cancelled in the middle, the program is ended again."""

    def start() -> Process:
        return spawn_blocking(
            argv,
            log_file=log_file,
            pass_fds=pass_fds,
            extra_env=extra_env,
            cwd=cwd,
            stdin=stdin,
            stdout_file=stdout_file,
            confinement=confinement,
        )

    def undo(process: Process) -> None:
        process.signal(signal.SIGKILL)
        if process._child is not None:
            process._child.wait()
        process.close()

    return await host.run(start, undo=undo)


def adopt(identity: ProcessIdentity) -> Process | None:
    """The process of that identity, when it still runs; it need not be our child."""
    pidfd = open_pidfd(identity)
    return None if pidfd is None else Process(identity, pidfd)


def tail(path: Path, lines: int = 20, limit_bytes: int = 16384) -> list[str]:
    """The last lines of a log, without control characters; empty when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - limit_bytes))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    clean = ("".join(c for c in line if c.isprintable() or c == "\t") for line in text.replace("\r", "\n").split("\n"))
    return [line for line in clean if line.strip()][-lines:]
