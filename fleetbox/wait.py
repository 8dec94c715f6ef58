"""What a test waits for on a member: a port, a unit, a command, a line of a log, cloud-init.

>>> from fleetbox import wait
>>> ready = wait.unit("postgresql") & wait.port(5432)
>>> print(ready)
postgresql.service active, then port 5432 open
>>> member.wait_for(wait.unit("ssh") & wait.port(22), timeout_s=60)    # doctest: +GUEST

`a & b` waits for one after the other, `a | b` for whichever comes first, `a.within(30)` limits a part of the whole.
Every limit is in seconds, multiplied by `FLEETBOX_TIMEOUT_SCALE`. A wait ends with TimedOut, which says what was seen
last; and at once with MachineError when the machine ends, or when what is waited for cannot come true any more.
"""

from __future__ import annotations

import abc
import concurrent.futures
import contextlib
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fleetbox import seriallog
from fleetbox.errors import FleetboxError, MachineError, PartialError, TimedOut, UsageError
from fleetbox.inotify import FileWatch
from fleetbox.timeouts import DEFAULT_LIMIT_S, stretch, timeout_scale
from fleetbox.watch import LINE_LIMIT_BYTES, PAUSE_S, SSH_FAILED, Cancelled, MachineEnded, Watch

if TYPE_CHECKING:
    from fleetbox.member import Member

CONNECT_LIMIT_S = 2.0
SEEN_LENGTH = 200


class Strategy(abc.ABC):
    """Something that can be waited for. `str()` says what, as it stands in errors.

    A strategy of one's own derives from this: it looks through the Watch that it is given, tells it what was `seen`,
    and returns when it is satisfied.
    """

    @abc.abstractmethod
    def wait_on(self, watch: Watch) -> None:
        """Return when it holds. Raises what the watch raises."""

    def __and__(self, other: Strategy) -> Strategy:
        return all_of(self, other)

    def __or__(self, other: Strategy) -> Strategy:
        return any_of(self, other)

    def within(self, timeout_s: float) -> Strategy:
        """The same, in at most so many seconds, whatever the whole wait is given."""
        return _Within(self, timeout_s)


def wait_for(member: Member, strategy: Strategy, *, timeout_s: float = 0.0) -> None:
    """Wait until `strategy` holds on a running member, for at most `timeout_s` seconds (0: 60, or 300 under emulation).

    Raises TimedOut with what was seen last, MachineError when the machine does not run or ends meanwhile.
    """
    __tracebackhide__ = True  # for pytest, here and in the methods that call this
    if timeout_s < 0:
        raise UsageError(f"cannot wait for {timeout_s:g} s", hint="a time limit is a number of seconds above 0")
    limit_s = timeout_s or DEFAULT_LIMIT_S * stretch(member.cluster_record.accelerator)
    with Watch(member, limit_s * timeout_scale(), str(strategy)) as watch:
        try:
            strategy.wait_on(watch)
        except MachineError as e:
            raise e.with_traceback(None)  # noqa: B904 - how the wait was made would only hide what was waited for


def wait_for_all(members: Sequence[Member], strategy: Strategy, *, timeout_s: float = 0.0) -> None:
    """`wait_for` on several members at once. Raises the error of the one that failed, PartialError for several."""
    __tracebackhide__ = True
    failures: dict[str, FleetboxError] = {}
    with concurrent.futures.ThreadPoolExecutor(max(1, len(members))) as pool:
        waits = {member.ref: pool.submit(wait_for, member, strategy, timeout_s=timeout_s) for member in members}
        for ref, future in waits.items():
            try:
                future.result()
            except FleetboxError as e:
                failures[ref] = e
    if len(failures) == 1:
        raise next(iter(failures.values()))
    if failures:
        raise PartialError(f"{len(failures)} of {len(members)} members: waited for {strategy} in vain", failures)


def port(number: int) -> Strategy:
    """TCP port `number` of the member takes connections on its address.

    >>> print(port(5432))
    port 5432 open
    """
    if not 0 < number < 65536:
        raise UsageError(f"{number} is no TCP port", why="a port is 1 to 65535")
    return _Port(number)


def unit(name: str) -> Strategy:
    """The systemd unit is active; a name without a type is a service.

    >>> print(unit("nginx"))
    nginx.service active
    """
    return _Unit(name if "." in name else f"{name}.service")


def command(line: str) -> Strategy:
    """The shell command `line`, run on the member again and again, ends with exit code 0.

    >>> print(command("pg_isready -q"))
    `pg_isready -q` to succeed
    """
    return _Command(line)


def log(pattern: str | re.Pattern[str], *, unit: str | None = None) -> Strategy:
    """A line that the regular expression is found in: in the serial log since the start of the member, or with `unit`
    in that systemd unit's journal since the boot. Lines that are there already count.

    >>> print(log("login:"))
    a line like /login:/ in the serial log
    >>> print(log("ready to accept connections", unit="postgresql"))
    a line like /ready to accept connections/ of postgresql
    """
    compiled = re.compile(pattern)
    return _SerialLog(compiled) if unit is None else _Journal(compiled, unit)


def cloud_init() -> Strategy:
    """cloud-init has done everything that it was told; fails at once when it ends with an error.

    >>> print(cloud_init())
    cloud-init done
    """
    return _CloudInit()


def condition(holds: Callable[[Member], object], what: str) -> Strategy:
    """A function of one's own, asked again and again with the member, answers something true.

    What it answers else is what was seen. What it raises ends the wait.

    >>> print(condition(lambda member: member.record.warm, "a warm member"))
    a warm member
    """
    return _Condition(holds, what)


def all_of(*strategies: Strategy) -> Strategy:
    """One after the other, in this order.

    >>> print(all_of(cloud_init(), unit("nginx"), port(80)))
    cloud-init done, then nginx.service active, then port 80 open
    """
    return _All(_parts(strategies))


def any_of(*strategies: Strategy) -> Strategy:
    """The first of several; they are looked for at the same time. Fails when all of them have.

    >>> print(any_of(port(80), port(443).within(10)))
    port 80 open or port 443 open (within 10 s)
    """
    return _Any(_parts(strategies))


def _parts(strategies: tuple[Strategy, ...]) -> tuple[Strategy, ...]:
    if strategies:
        return strategies
    raise UsageError("there is nothing to wait for", hint="name a strategy, for example wait.port(22)")


@dataclass(frozen=True)
class _Port(Strategy):
    number: int

    def __str__(self) -> str:
        return f"port {self.number} open"

    def wait_on(self, watch: Watch) -> None:
        for _ in watch.pauses():
            try:
                watch.member.connect(self.number, timeout_s=min(CONNECT_LIMIT_S, watch.remaining_s or 0.001)).close()
                return
            except OSError as e:
                watch.seen = f"connecting to {watch.member.ip} port {self.number}: {e.strerror or e}"


@dataclass(frozen=True)
class _Unit(Strategy):
    name: str

    def __str__(self) -> str:
        return f"{self.name} active"

    def wait_on(self, watch: Watch) -> None:
        # systemd has no call that blocks until a unit is active; this is one multiplexed command a look.
        properties = "LoadState,ActiveState,SubState,Result"
        for _ in watch.pauses():
            code, lines = watch.run(f"systemctl show --property={properties} -- {shlex.quote(self.name)}")
            found = dict(line.split("=", 1) for line in lines if "=" in line)
            if found.get("ActiveState") == "active":
                return
            if code != 0 or not found:
                watch.seen = _said(code, lines)
            elif found.get("LoadState") == "not-found":
                watch.seen = f"{self.name} is not there"
            else:
                watch.seen = f"{self.name} is {found.get('ActiveState')} ({found.get('SubState')})"
                if found.get("Result") not in ("success", None):
                    watch.seen += f", its last result was {found['Result']}"


@dataclass(frozen=True)
class _Command(Strategy):
    line: str

    def __str__(self) -> str:
        return f"`{self.line}` to succeed"

    def wait_on(self, watch: Watch) -> None:
        for _ in watch.pauses():
            code, lines = watch.run(self.line)
            if code == 0:
                return
            watch.seen = _said(code, lines)


@dataclass(frozen=True)
class _SerialLog(Strategy):
    pattern: re.Pattern[str]

    def __str__(self) -> str:
        return f"a line like /{self.pattern.pattern}/ in the serial log"

    def wait_on(self, watch: Watch) -> None:
        lines = _Lines(watch.member.serial_log)
        ended: MachineEnded | None = None
        with contextlib.ExitStack() as stack:
            changes: FileWatch | None = None
            with contextlib.suppress(OSError):  # this user watches too many files already
                changes = stack.enter_context(contextlib.closing(FileWatch(lines.path)))
            while True:
                for line in lines.new():
                    if self.pattern.search(line):
                        return
                    watch.seen = line[:SEEN_LENGTH] if line.strip() else watch.seen
                if ended:  # one more look after the end: what was written just before it counts
                    raise ended
                try:
                    if changes is None:
                        watch.until_readable(None, PAUSE_S)
                    elif watch.until_readable(changes.fileno()):
                        changes.wait(0)
                except MachineEnded as e:
                    ended = e


class _Lines:
    """What is added to a log file, line by line. A prompt ends no line: what stands after the last one comes too."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._rest = b""

    def new(self) -> list[str]:
        try:
            if self.path.stat().st_size < self._offset:  # cut: the member was started anew
                self._offset, self._rest = 0, b""
            data = b"".join(seriallog.read(self.path, self._offset))
        except FileNotFoundError:
            return []
        self._offset += len(data)
        *whole, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[-LINE_LIMIT_BYTES:]
        return [line.decode(errors="replace").rstrip("\r") for line in [*whole, self._rest]] if data else []


@dataclass(frozen=True)
class _Journal(Strategy):
    pattern: re.Pattern[str]
    unit: str

    def __str__(self) -> str:
        return f"a line like /{self.pattern.pattern}/ of {self.unit}"

    def wait_on(self, watch: Watch) -> None:
        follow = "exec sudo journalctl --boot --follow --no-tail --quiet --output=cat --unit"
        for _ in watch.pauses():  # the guest may reboot, which ends the command
            with contextlib.closing(watch.lines(f"{follow} {shlex.quote(self.unit)}")) as lines:
                for line in lines:
                    if isinstance(line, int):
                        watch.seen = watch.seen or _said(line, [])
                    elif self.pattern.search(line):
                        return
                    else:
                        watch.seen = line[:SEEN_LENGTH]


@dataclass(frozen=True)
class _CloudInit(Strategy):
    def __str__(self) -> str:
        return "cloud-init done"

    def wait_on(self, watch: Watch) -> None:
        for _ in watch.pauses():
            code, lines = watch.run("cloud-init status --wait --long")
            if code == 0:
                return
            watch.seen = _said(code, lines)
            if code != SSH_FAILED:
                raise watch.failed(watch.seen, lines)


@dataclass(frozen=True)
class _Condition(Strategy):
    holds: Callable[[Member], object]
    what: str

    def __str__(self) -> str:
        return self.what

    def wait_on(self, watch: Watch) -> None:
        for _ in watch.pauses():
            answer = self.holds(watch.member)
            if answer:
                return
            watch.seen = repr(answer)[:SEEN_LENGTH]


@dataclass(frozen=True)
class _Within(Strategy):
    strategy: Strategy
    timeout_s: float

    def __str__(self) -> str:
        return f"{self.strategy} (within {self.timeout_s:g} s)"

    def wait_on(self, watch: Watch) -> None:
        with watch.narrowed(self.timeout_s * timeout_scale(), str(self.strategy)):
            self.strategy.wait_on(watch)


@dataclass(frozen=True)
class _All(Strategy):
    parts: tuple[Strategy, ...]

    def __str__(self) -> str:
        return ", then ".join(map(str, self.parts))

    def wait_on(self, watch: Watch) -> None:
        for part in self.parts:
            with watch.narrowed(watch.remaining_s + 1, str(part)):  # an error names the part
                part.wait_on(watch)


@dataclass(frozen=True)
class _Any(Strategy):
    parts: tuple[Strategy, ...]

    def __str__(self) -> str:
        return " or ".join(map(str, self.parts))

    def wait_on(self, watch: Watch) -> None:
        with contextlib.ExitStack() as stack:
            branches = [stack.enter_context(watch.branch(str(part))) for part in self.parts]
            pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(len(self.parts)))
            for branch in branches:
                stack.callback(branch.cancel)  # before the pool is waited for, also on Ctrl-C
            under_way = {pool.submit(part.wait_on, branch) for part, branch in zip(self.parts, branches, strict=True)}
            errors: list[BaseException] = []
            for future in concurrent.futures.as_completed(under_way):
                error = future.exception()
                if error is None:
                    return
                if not isinstance(error, FleetboxError | Cancelled):
                    raise error
                errors.append(error)
            watch.seen = "; ".join(branch.seen for branch in branches if branch.seen)
            if all(isinstance(error, TimedOut) for error in errors):
                raise watch.timed_out()
            raise next(error for error in errors if not isinstance(error, TimedOut))


def _said(code: int, lines: list[str]) -> str:
    """How a command ended, and the last that it printed."""
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    how = "no connection by SSH" if code == SSH_FAILED else f"exit code {code}"
    return f"{how}: {last[:SEEN_LENGTH]}" if last else how
