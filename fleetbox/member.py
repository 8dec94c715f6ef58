"""A member, for Python: run commands on it, copy files, read its console."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from fleetbox import paths, reach, ssh
from fleetbox.errors import MachineError, NotFoundError, TimedOut
from fleetbox.records import LIVE_STATES, ClusterRecord, MemberRecord, MemberState, observed_state, read_cluster

if TYPE_CHECKING:
    import fabric

    from fleetbox.console import ConsoleConnection
    from fleetbox.files.copying import Copied
    from fleetbox.forward import Forward
    from fleetbox.wait import Strategy
    from fleetbox.wire import Event

OnEvent = Callable[["Event"], None]


class SSHResult(NamedTuple):
    """What a command on a member printed, and its exit code."""

    stdout: str
    stderr: str
    exit_code: int


class Member:
    """One member of a cluster, by name. Nothing is cached: every property reads the record as it is now.

    As a context manager it is destroyed at the end.
    """

    def __init__(self, cluster: str, name: str) -> None:
        self.cluster = cluster
        self.name = name

    def __repr__(self) -> str:
        return f"Member({self.ref!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Member) and other.ref == self.ref

    def __hash__(self) -> int:
        return hash(self.ref)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.destroy()

    @property
    def ref(self) -> str:
        """`cluster/name`, which is never ambiguous."""
        return f"{self.cluster}/{self.name}"

    @property
    def record(self) -> MemberRecord:
        """The member's record. Raises NotFoundError when it is gone, RecordError when it cannot be read."""
        try:
            return read_cluster(self.cluster).members[self.name]
        except KeyError:
            raise NotFoundError(f"there is no member {self.ref!r}", hint="`fleetbox ls` lists what there is") from None

    @property
    def cluster_record(self) -> ClusterRecord:
        """The record of its cluster. Raises NotFoundError, RecordError."""
        return read_cluster(self.cluster)

    @property
    def state(self) -> MemberState:
        """The state as it is now, checked against the machine's process.

        >>> member.state
        <MemberState.RUNNING: 'running'>
        """
        return observed_state(self.record)

    @property
    def ip(self) -> str:
        """Its address inside the cluster's network."""
        return self.record.ip

    @property
    def serial_log(self) -> Path:
        """The serial console since the last start."""
        return paths.serial_log(self.cluster, self.name)

    def logs(self, *, follow: bool = False) -> Iterator[str]:
        """The lines of its serial console since the last start; with `follow`, also all to come until it stops.

        Raises NotFoundError when there is no log yet and none is waited for.

        >>> any("login:" in line for line in member.logs())
        True
        """
        from fleetbox import seriallog

        if not follow and not self.serial_log.exists():
            raise NotFoundError(f"{self.ref} has no console output yet", hint=f"`fleetbox start {self.ref}` starts it")
        return seriallog.lines(seriallog.follow(self) if follow else seriallog.read(self.serial_log))

    def require_running(self) -> MemberRecord:
        """The record of a member that runs. Raises MachineError when it does not.

        >>> member.require_running().name
        'node-1'
        """
        record = self.record
        state = observed_state(record)
        if state is MemberState.RUNNING:
            return record
        raise MachineError(
            f"{self.ref} is not running",
            why=record.error or f"it is {state}",
            hint=f"`fleetbox start {self.ref}` starts it" if state is MemberState.STOPPED else "see `fleetbox status`",
        )

    def ssh_argv(self, command: Sequence[str] = (), *, tty: bool | None = None, multiplex: bool = True) -> list[str]:
        """The OpenSSH command line for this member, strict, and with `multiplex` over the connection that all share.

        Raises MachineError when it is not running.

        >>> member.ssh_argv(["uptime"])[0], member.ssh_argv(["uptime"])[-1]
        ('ssh', 'uptime')
        """
        record, cluster = self.require_running(), read_cluster(self.cluster)
        if cluster.network == "private":
            reach.dial_socket(cluster.name)  # its holder makes the connection, and keeps names and the way out alive
        return ssh.argv(cluster, record, command, tty=tty, multiplex=multiplex)

    def connection(self) -> fabric.Connection:
        """A fabric connection to the member, host key checked strictly; use it as a context manager.

        Raises MachineError when the member is not running.

        >>> with member.connection() as connection:                     # doctest: +GUEST
        ...     connection.run("hostname", hide=True, in_stream=False).stdout
        'node-1\\n'
        """
        import fabric
        import paramiko

        record = self.require_running()
        connection = fabric.Connection(
            record.ip,
            user=ssh.USER,
            config=fabric.Config(overrides={"load_ssh_configs": False}),
            connect_kwargs={
                "key_filename": str(paths.keys_dir() / "id_ed25519"),
                "look_for_keys": False,
                "allow_agent": False,
                "sock": self.connect(22, timeout_s=20.0),
            },
            connect_timeout=20,
        )
        connection.client.load_host_keys(str(paths.known_hosts(self.cluster)))
        connection.client.set_missing_host_key_policy(paramiko.RejectPolicy())
        return connection

    def connect(self, port: int, *, timeout_s: float = 10.0) -> socket.socket:
        """A TCP connection to a port of the member, on its address; a context manager, as every socket is.

        `timeout_s` limits connecting only. Raises MachineError when the member is not running, OSError when nobody
        takes the connection.

        >>> with member.connect(22) as connection:                      # doctest: +GUEST
        ...     connection.recv(8)
        b'SSH-2.0-'
        """
        return reach.connect(read_cluster(self.cluster), self.require_running(), port, timeout_s)

    def forward(self, port: int, *, local_port: int = 0) -> Forward:
        """Open a port of this host's loopback (0: any free one) that leads to a port of the member; close it after use.

        Its `port` is the local one. Raises MachineError when the member is not running, ConflictError when the local
        port is taken.

        >>> with member.forward(80) as web:
        ...     print(f"http://127.0.0.1:{web.port}/")
        http://127.0.0.1:.../
        """
        from fleetbox.forward import Forward

        self.require_running()
        return Forward(lambda: self.connect(port), local_port)

    def wait_for(self, *strategies: Strategy, timeout_s: float = 0.0) -> None:
        """Wait until each strategy of `fleetbox.wait` holds, one after the other, for at most `timeout_s` seconds
        in all (0: 60, or 300 under emulation; times FLEETBOX_TIMEOUT_SCALE).

        Raises TimedOut with what was seen last, and MachineError at once when the machine ends.

        >>> member.wait_for(wait.log("login:"), timeout_s=30)
        """
        from fleetbox import wait

        __tracebackhide__ = True
        wait.wait_for(self, wait.all_of(*strategies), timeout_s=timeout_s)

    def ssh(self, command: str, *, timeout_s: float | None = None, check: bool = False) -> SSHResult:
        """Run a shell command on the member and return what it printed.

        Raises MachineError when the member does not run or cannot be reached, and with `check` when the command's exit
        code is not 0; TimedOut when it does not end in `timeout_s` seconds (None: no limit).

        >>> member.ssh("echo hello; exit 3")                            # doctest: +GUEST
        SSHResult(stdout='hello\\n', stderr='', exit_code=3)
        """
        import invoke
        import paramiko

        try:
            with self.connection() as connection:
                done = connection.run(command, hide=True, warn=True, in_stream=False, timeout=timeout_s)
        except invoke.CommandTimedOut:
            raise TimedOut(f"{command!r} did not end on {self.ref} in {timeout_s:g} s") from None
        except (paramiko.SSHException, OSError, EOFError) as e:
            raise MachineError(
                f"{self.ref} cannot be reached by SSH", why=str(e), hint=f"see `fleetbox logs {self.ref}`"
            ) from e
        result = SSHResult(done.stdout, done.stderr, done.exited)
        if check and result.exit_code != 0:
            raise MachineError(
                f"{command!r} failed on {self.ref}",
                why=f"exit code {result.exit_code}",
                details=(result.stderr or result.stdout).splitlines()[-20:],
            )
        return result

    def copy_to(self, local: str | os.PathLike[str], remote: str = "", *, on_event: OnEvent | None = None) -> Copied:
        """Copy a file or folder to the member, modes and times kept: `fleetbox cp LOCAL MEMBER:REMOTE`.

        An existing remote folder takes it in under its own name; a relative `remote` counts from the home folder.
        Raises NotFoundError without the local file, MachineError when the member cannot be reached or refuses,
        PartialError when it refuses some of several files.
        """
        from fleetbox.files.copying import copy
        from fleetbox.files.location import Location, here

        return copy([here(local)], Location(self.ref, remote or "."), lambda _: self, on_event)

    def copy_from(self, remote: str, local: str | os.PathLike[str], *, on_event: OnEvent | None = None) -> Copied:
        """Copy a file or folder from the member, modes and times kept: `fleetbox cp MEMBER:REMOTE LOCAL`.

        `remote` may be a pattern (`/var/log/*.log`). An existing local folder takes it in under its own name. What a
        guest makes up to write elsewhere (names, links) is refused. Raises as `copy_to` does.

        >>> member.copy_from("/etc/hostname", "/tmp/name-of-node-1").files       # doctest: +GUEST
        1
        """
        from fleetbox.files.copying import copy
        from fleetbox.files.location import Location, here

        return copy([Location(self.ref, remote)], here(local), lambda _: self, on_event)

    def console(self) -> ConsoleConnection:
        """Its serial console, opened for this caller alone; use it as a context manager.

        Raises MachineError when the member does not run or has none, ConflictError when somebody else has it open.
        """
        from fleetbox.console import ConsoleConnection
        from fleetbox.launch import ensure_holder
        from fleetbox.wire import ConsoleFile

        record = self.record
        if observed_state(record) not in LIVE_STATES | {MemberState.CREATING}:
            self.require_running()
        where = ensure_holder(self.cluster).get(f"/v1/consoles/{self.name}", ConsoleFile)
        return ConsoleConnection(self.ref, where)

    def start(self, *, on_event: OnEvent | None = None) -> None:
        """Start the member when it is stopped.

        >>> member.stop()
        >>> str(member.state)
        'stopped'
        >>> member.start()
        """
        self._owner.start([self.name], on_event=on_event)

    def stop(self, *, timeout_s: float = 0.0, on_event: OnEvent | None = None) -> None:
        """Shut the member down; after `timeout_s` (0: the default) it is ended."""
        self._owner.stop([self.name], timeout_s=timeout_s, on_event=on_event)

    def destroy(self, *, on_event: OnEvent | None = None) -> None:
        """End the member and delete its disk."""
        self._owner.destroy([self.name], on_event=on_event)

    @property
    def _owner(self) -> Any:
        from fleetbox.cluster import Cluster

        return Cluster(self.cluster)
