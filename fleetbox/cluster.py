"""A cluster, for Python: make it, add to it, start, stop and destroy it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from fleetbox import names as naming
from fleetbox import paths
from fleetbox.errors import FleetboxError, HolderEnding, HolderError, HostError, MachineError, PartialError, RecordError
from fleetbox.events import LoggedEvent, events
from fleetbox.identity import is_alive, this_process
from fleetbox.member import Member, OnEvent, SSHResult
from fleetbox.records import (
    ClusterRecord,
    HolderRecord,
    MemberState,
    cluster_names,
    live_holder,
    read_cluster,
    read_clusters,
)
from fleetbox.specs import Fixture, MemberSpec, NetworkMode, check_member_spec, member_names
from fleetbox.wire import AddRequest, ClusterStatistics, ClusterStatus, Request, TargetsRequest, UpRequest, spec_change

if TYPE_CHECKING:
    from fleetbox.timeline import Timeline
    from fleetbox.wait import Strategy

MOST_AT_ONCE = 32
"""Members that a command is run on at the same time."""


ATTEMPTS = 20  # how often a holder may end just when it is asked, before we give up


class Cluster:
    """One cluster, by name. Nothing is cached: every property reads the records as they are now.

    As a context manager it is destroyed at the end.

    >>> with fleetbox.up("short-lived") as cluster:
    ...     print(cluster, cluster.members)
    Cluster('short-lived') [Member('short-lived/node-1')]
    >>> fleetbox.clusters()
    [Cluster('demo')]
    """

    def __init__(self, name: str) -> None:
        self.name = naming.check_label(name, "cluster name")

    def __repr__(self) -> str:
        return f"Cluster({self.name!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cluster) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.destroy()

    @property
    def record(self) -> ClusterRecord:
        """The cluster's record. Raises NotFoundError when it is gone, RecordError when it cannot be read."""
        return read_cluster(self.name)

    @property
    def members(self) -> list[Member]:
        """Its members, in order of creation."""
        return [Member(self.name, name) for name in self.record.members]

    def member(self, name: str) -> Member:
        """One member by its name. Raises NotFoundError.

        >>> cluster.member("node-2").ref
        'demo/node-2'
        """
        member = Member(self.name, name)
        _ = member.record
        return member

    def status(self) -> ClusterStatus:
        """The records, with what only a live holder knows. Starts no holder.

        >>> cluster.status().holder_running
        True
        """
        from fleetbox.launch import find_holder

        record = self.record
        control = find_holder(self.name)
        if control is not None:
            with contextlib.suppress(HolderEnding):
                return control.get("/v1/status", ClusterStatus)
        return ClusterStatus(record, holder_running=False)

    def statistics(self) -> ClusterStatistics:
        """What its running members use now: counters, of which two make rates. Starts no holder; without one there are
        none.
        """
        from fleetbox.launch import find_holder

        control = find_holder(self.name)
        if control is not None:
            with contextlib.suppress(HolderEnding):
                return control.get("/v1/statistics", ClusterStatistics)
        return ClusterStatistics(time.monotonic(), {})

    def timeline(self) -> Timeline:
        """Where the time of each member's last boot or clone went, from the event log. Raises NotFoundError."""
        from fleetbox.timeline import timeline

        return timeline(self.name, self.events())

    def events(self, *, follow: bool = False, since: int = 0) -> Iterator[LoggedEvent]:
        """What happened to the cluster after event number `since`, in order; with `follow`, also all to come.

        Reads the cluster's log, so it starts no holder, and goes on when one ends. Following ends when the cluster is
        removed. A slow reader costs no memory. Raises NotFoundError.
        """
        return events(self.name, follow=follow, since=since)

    def add(
        self,
        names: Sequence[str] = (),
        count: int | None = None,
        *,
        image: str | None = None,
        cpus: int | None = None,
        memory_bytes: int | None = None,
        disk_bytes: int | None = None,
        fixtures: Sequence[Fixture] | None = None,
        boot: str | None = None,
        kernel: str | None = None,
        cold: bool = False,
        control_line: bool = True,
        timeout_s: float = 0.0,
        on_event: OnEvent | None = None,
    ) -> list[Member]:
        """Add members and return them once they are ready; what is not given is as the cluster was made with.

        `cold` and `control_line` as for `up`.

        Raises ConflictError when a name is taken, and as `up` does.

        >>> cluster.add(["db"], memory_bytes=512 << 20)
        [Member('demo/db')]
        >>> cluster.add(count=2)
        [Member('demo/node-4'), Member('demo/node-5')]
        """
        spec = spec_change(image, cpus, memory_bytes, disk_bytes, fixtures, boot, kernel)
        check_member_spec(spec.apply(self.record.spec))
        request = AddRequest(
            names=tuple(names), count=count, spec=spec, cold=cold, control_line=control_line, timeout_s=timeout_s
        )
        added = self._run("add", request, on_event)
        return [Member(self.name, name) for name in added["members"]]

    def start(self, names: Sequence[str] = (), *, timeout_s: float = 0.0, on_event: OnEvent | None = None) -> None:
        """Start the named members, or all; those that run are left alone. Raises PartialError, MachineError.

        >>> cluster.stop()
        >>> cluster.start(["node-1"])
        >>> [str(member.state) for member in cluster.members]
        ['running', 'stopped', 'stopped']
        """
        self._targets("start", names, timeout_s, on_event)

    def stop(self, names: Sequence[str] = (), *, timeout_s: float = 0.0, on_event: OnEvent | None = None) -> None:
        """Shut down the named members, or all; those that do not end in `timeout_s` (0: the default) are ended."""
        self._targets("stop", names, timeout_s, on_event)

    def destroy(self, names: Sequence[str] = (), *, on_event: OnEvent | None = None) -> None:
        """End the named members, or all, and delete their disks. Without members the cluster is gone. Repeatable.

        >>> cluster.destroy(["node-3"])
        >>> [member.name for member in cluster.members]
        ['node-1', 'node-2']
        """
        if self.name not in cluster_names():
            return
        self._targets("destroy", names, 0.0, on_event)

    def fork(self, name: str = "", *, timeout_s: float = 0.0, on_event: OnEvent | None = None) -> Cluster:
        """A second cluster that is as this one is now: memory, disks, addresses, names and open connections.

        Both go on from there, each on a private network of its own. `name` empty: this one's with a number. A fork of a
        bound cluster is bound to the calling process. Raises HostError when the network is not private: two clusters
        with the same addresses cannot share the host's; ConflictError for a name that is taken.
        """
        from fleetbox import snapshots

        record = self.record
        if record.network != "private":
            raise HostError(
                f"{self.name!r} cannot be forked",
                why="its network is the host's, where its addresses are taken",
                hint="make it with network='private', or clone a snapshot: its members get addresses of their own",
            )
        taken = snapshots.save(self.name, on_event=on_event)
        try:
            made = snapshots.clone(
                taken.id, name, network="private", timeout_s=timeout_s, bound=record.bound, on_event=on_event
            )
        finally:
            snapshots.remove([taken.id])
        assert isinstance(made, Cluster)
        return made

    def wait_for(self, *strategies: Strategy, timeout_s: float = 0.0) -> None:
        """Wait until each strategy of `fleetbox.wait` holds on every member; all members are watched at once.

        `timeout_s` limits each, as for `Member.wait_for`. Raises TimedOut or MachineError for one member, PartialError
        for several.

        >>> cluster.wait_for(wait.log("login:"), timeout_s=30)
        """
        from fleetbox import wait

        __tracebackhide__ = True
        wait.wait_for_all(self.members, wait.all_of(*strategies), timeout_s=timeout_s)

    def exec(self, command: str, *, timeout_s: float | None = None, check: bool = False) -> dict[str, SSHResult]:
        """Run a shell command on all members that run, at once; what each printed, by its name.

        Raises MachineError when none runs, PartialError with the errors of those where it failed as `Member.ssh` says.

        >>> cluster.exec("hostname")["node-2"].stdout                   # doctest: +GUEST
        'node-2\\n'
        """
        running = [member for member in self.members if member.state is MemberState.RUNNING]
        if not running:
            raise MachineError(
                f"no member of {self.name!r} is running", hint=f"`fleetbox start {self.name}` starts its members"
            )
        results: dict[str, SSHResult] = {}
        failures: dict[str, FleetboxError] = {}
        with ThreadPoolExecutor(min(MOST_AT_ONCE, len(running))) as pool:
            started = {m.name: pool.submit(m.ssh, command, timeout_s=timeout_s, check=check) for m in running}
            for name, future in started.items():
                try:
                    results[name] = future.result()
                except FleetboxError as e:
                    failures[name] = e
        if failures:
            raise PartialError(f"{command!r} failed on {', '.join(failures)}", failures)
        return results

    def ssh_config(self) -> str:
        """Its members as a configuration of OpenSSH, for ssh, scp, rsync and Ansible (`fleetbox ssh-config`).

        >>> cluster.ssh_config().count("HostKeyAlias")
        3
        """
        from fleetbox import ssh

        return ssh.configuration([self.record])[0]

    def enter_argv(self, command: Sequence[str]) -> list[str]:
        """The command line that runs a program of this host on the cluster's network (`fleetbox enter`). Where that is
        the host's network, the program's own.

        >>> import subprocess
        >>> subprocess.run(cluster.enter_argv(["echo", "inside"]), capture_output=True, text=True).stdout
        'inside\\n'
        """
        from fleetbox.inside import enter_argv

        return enter_argv(self.record, command)

    def _targets(self, operation: str, names: Sequence[str], timeout_s: float, on_event: OnEvent | None) -> None:
        _ = self.record
        self._run(operation, TargetsRequest(members=tuple(names), timeout_s=timeout_s), on_event)

    def _run(self, operation: str, request: Request, on_event: OnEvent | None) -> Any:
        """Run an operation in the cluster's holder. When it was the last, the holder's end is waited for."""
        from fleetbox.launch import ensure_holder

        for attempts_left in reversed(range(ATTEMPTS)):
            control = ensure_holder(self.name, getattr(request, "network", "auto"))
            holder = live_holder(self.name)
            try:
                result = control.run(operation, request, on_event)
                break
            except HolderEnding:
                if not attempts_left:
                    raise
                _await_end(holder)  # it was about to end when we came
            except HolderError as e:
                if type(e) is not HolderError or not _ended_by_itself(self.name, holder):
                    raise  # what it was doing is not known
        if result["ends"]:
            _await_end(holder)
        return result


def _await_end(holder: HolderRecord | None, limit_s: float = 20.0) -> None:
    """Wait until the holder's process is gone, and with it the last of its files."""
    deadline = time.monotonic() + limit_s
    while holder is not None and is_alive(holder.process) and time.monotonic() < deadline:
        time.sleep(0.005)


def _ended_by_itself(cluster: str, holder: HolderRecord | None) -> bool:
    """Whether the holder had done all that it was asked, and ended while we came: it then has removed its pidfile."""
    _await_end(holder, 5.0)
    if holder is None or is_alive(holder.process):
        return False
    try:
        return paths.holder_pidfile(cluster).read_text().strip() != str(holder.process.pid)
    except OSError:
        return True


def up(
    name: str,
    *,
    members: int | None = None,
    names: Sequence[str] = (),
    image: str | None = None,
    cpus: int | None = None,
    memory_bytes: int | None = None,
    disk_bytes: int | None = None,
    fixtures: Sequence[Fixture] | None = None,
    boot: str | None = None,
    kernel: str | None = None,
    backend: str = "",
    network: NetworkMode = "auto",
    cold: bool = False,
    control_line: bool = True,
    timeout_s: float = 0.0,
    bound: bool = False,
    on_event: OnEvent | None = None,
) -> Cluster:
    """Make the cluster exist with all its members ready, and return it.

    Repeatable: missing members are made, stopped ones started, running ones left alone. A new cluster without `members`
    and `names` has one member; an existing one keeps its own. `timeout_s` limits each member's boot (0: by
    accelerator).

    New members are cloned from a template, which is made when it is missing, unless they are to be `cold`.
    `control_line` False gives the guests no second serial port: they are then told who they are by SSH.

    A `bound` cluster belongs to the calling process: when that ends, in whatever way, the cluster is destroyed, and the
    snapshots of it that were not kept. A cluster that exists does not become bound.

    Raises UsageError for what can never work, HostError for what this host cannot do, ImageError, NetworkError,
    MachineError (its details end with the serial log), PartialError when some members failed and the others are up.

    >>> cluster = fleetbox.up("web", members=2, memory_bytes=512 << 20, bound=True)
    >>> [member.name for member in cluster.members]
    ['node-1', 'node-2']
    >>> cluster.record.bound
    True
    """
    cluster = Cluster(name)
    spec = spec_change(image, cpus, memory_bytes, disk_bytes, fixtures, boot, kernel)
    base = cluster.record.spec if name in cluster_names() and not cluster.record.abandoned else MemberSpec()
    check_member_spec(spec.apply(base))
    if members is not None or names:
        member_names(members, names)
    request = UpRequest(
        members=members,
        names=tuple(names),
        spec=spec,
        backend=backend,
        network=network,
        cold=cold,
        control_line=control_line,
        timeout_s=timeout_s,
        owner=this_process() if bound else None,
    )
    cluster._run("up", request, on_event)
    return cluster


def clusters() -> list[Cluster]:
    """All clusters whose records can be read, by name (see `fleetbox.records.read_clusters` for the others).

    >>> fleetbox.clusters()
    [Cluster('demo')]
    """
    return [Cluster(entry.name) for entry in read_clusters() if not isinstance(entry, RecordError)]
