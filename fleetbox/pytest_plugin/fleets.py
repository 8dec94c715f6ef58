"""Clusters of a test, a module or a session: named so that nobody else has the name, bound, destroyed together."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from typing import NoReturn, Unpack

import pytest

from fleetbox import snapshots
from fleetbox.cluster import Cluster, up
from fleetbox.errors import FleetboxError, HostError, OperationInterrupted, UsageError
from fleetbox.member import Member
from fleetbox.pytest_plugin.wish import UpWords, Wish, wish_of
from fleetbox.snapshot import Snapshot
from fleetbox.timeouts import stretch, timeout_scale
from fleetbox.wire import Event

LABEL_LENGTH = 40


class FleetCluster(Cluster):
    """A cluster of a test; everything that `fleetbox.Cluster` is, and `reset`.

    `seen` are the events of the operations that made it, each with the host's time at which it came (Unix seconds).
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.seen: list[tuple[float, Event]] = []
        self._first: Snapshot | None = None
        self._unsaved = UsageError(
            f"the cluster {name!r} has no first state to go back to",
            why="only a shared cluster is saved when it is made",
            hint='@pytest.mark.fleetbox(scope="module") shares one, `fleet.up(save=True)` saves one',
        )

    def saw(self, event: Event) -> None:
        """Take down an event."""
        self.seen.append((time.time(), event))

    def keep(self) -> None:
        """Save the state as it is now for `reset`; where the backend cannot save, `reset` will say so."""
        try:
            self._first = snapshots.save(self, on_event=self.saw)
        except HostError as e:
            self._unsaved = UsageError(f"the cluster {self.name!r} was not saved", why=str(e), hint=e.hint)

    def reset(self) -> None:
        """Put the cluster back to the state that it was handed out in first: memory, disks, members.

        Raises UsageError where there is no such state, and as `fleetbox.snapshots.restore` does.
        """
        if self._first is None:
            raise self._unsaved
        with ctrl_c_ends_the_run():
            added = [name for name in self.record.members if name not in self._first.members]
            if added:
                self.destroy(added)
            snapshots.restore(self, self._first.id, on_event=self.saw)

    def limit_s(self, seconds: float) -> float:
        """A time limit for something in the guests that takes at most so many seconds on KVM: longer under emulation,
        and multiplied by FLEETBOX_TIMEOUT_SCALE. (`wait_for` scales by itself.)
        """
        return seconds * stretch(self.record.accelerator) * timeout_scale()


class Fleet:
    """Makes clusters for one test, module or session, and destroys them all in the end."""

    def __init__(self, node: pytest.Item | pytest.Collector) -> None:
        self.clusters: list[FleetCluster] = []
        self._label = _label(node)
        self._config = node.config
        self._shared: dict[Wish, FleetCluster] = {}
        self._failed: dict[Wish, FleetboxError] = {}

    def up(self, *, save: bool = False, **words: Unpack[UpWords]) -> FleetCluster:
        """Make a cluster; the words are those of `fleetbox.up`. With `save` it can be `reset`.

        Skips the test where this host cannot run machines. Raises as `fleetbox.up` does.
        """
        __tracebackhide__ = True
        with skipped_where_impossible(self._config):
            return self._up(save, words)

    def member(self, **words: Unpack[UpWords]) -> Member:
        """Make a cluster of one, and return its member. As `up`."""
        __tracebackhide__ = True
        return self.up(**words).members[0]

    def shared(self, wish: Wish) -> FleetCluster:
        """The cluster of this wish, made when it is first asked for; when that failed, it is not tried again."""
        if wish in self._failed:
            raise self._failed[wish]
        if wish in self._shared:
            if wish.reset:
                self._shared[wish].reset()
            return self._shared[wish]
        try:
            self._shared[wish] = self._up(True, wish.up_words())
        except FleetboxError as e:
            self._failed[wish] = e
            raise
        return self._shared[wish]

    def close(self) -> None:
        """Destroy all clusters, the last one first. Every one is tried; the first error is raised."""
        with ctrl_c_ends_the_run(), contextlib.ExitStack() as stack:
            for cluster in self.clusters:
                stack.callback(cluster.destroy)
            self.clusters.clear()

    def _up(self, save: bool, words: UpWords) -> FleetCluster:
        cluster = FleetCluster(f"{self._label}-{secrets.token_hex(3)}")
        self.clusters.append(cluster)  # before it is made: what a failure leaves is looked at, then destroyed
        words = words.copy()
        words["backend"] = words.get("backend") or self._config.getoption("--fleetbox-backend")
        with ctrl_c_ends_the_run():
            up(cluster.name, **words, bound=True, on_event=cluster.saw)
            if save:
                cluster.keep()
        return cluster


FLEET = pytest.StashKey[Fleet]()
SHARED = pytest.StashKey[Fleet]()
"""The fleet of the module or session that a test shares a cluster of."""


def fleet_of(node: pytest.Item | pytest.Collector, finalize: Callable[[Fleet], object] | None = None) -> Fleet:
    """The fleet of a test, module or session, made when it is first asked for and then given to `finalize`."""
    fleet = node.stash.get(FLEET, None)
    if fleet is None:
        fleet = node.stash[FLEET] = Fleet(node)
        if finalize is not None:
            finalize(fleet)
    return fleet


def cluster_for(request: pytest.FixtureRequest) -> FleetCluster:
    """The cluster that a test's marker describes."""
    __tracebackhide__ = True
    item: pytest.Item = request.node
    try:
        wish = wish_of(item)
    except FleetboxError as e:
        fail(e)
    backend = wish.backend or request.config.getoption("--fleetbox-backend") or os.environ.get("FLEETBOX_BACKEND")
    if wish.real and backend == "fake":
        pytest.skip("needs real guests: the backend is fake")
    try:
        with skipped_where_impossible(request.config):
            if wish.scope == "function":
                own: Fleet = request.getfixturevalue("fleet")
                return own.up(**wish.up_words())
            node = request.session if wish.scope == "session" else item.getparent(pytest.Module)
            assert node is not None, "a test stands in a module"
            shared = fleet_of(node, lambda fleet: node.addfinalizer(fleet.close))
            item.stash[SHARED] = shared
            return shared.shared(wish)
    except FleetboxError as e:
        fail(e)


@contextlib.contextmanager
def skipped_where_impossible(config: pytest.Config) -> Iterator[None]:
    """Skip the test with the reason when this host cannot run machines, unless the user wants that to fail."""
    __tracebackhide__ = True
    try:
        yield
    except HostError as e:
        if config.getoption("--fleetbox-require"):
            raise
        pytest.skip(f"this host cannot run it: {e}" + (f" ({e.hint})" if e.hint else ""))


@contextlib.contextmanager
def ctrl_c_ends_the_run() -> Iterator[None]:
    """An operation that Ctrl-C or SIGTERM has stopped, and undone, stops pytest as well."""
    try:
        yield
    except OperationInterrupted as e:
        raise KeyboardInterrupt from e


def fail(error: FleetboxError) -> NoReturn:
    """Fail the test with the error as users know it, without frames of ours."""
    __tracebackhide__ = True
    raise pytest.fail.Exception(told(error), pytrace=False) from None


def told(error: FleetboxError) -> str:
    """An error with all that it knows."""
    lines = [f"fleetbox: {error.message}"]
    lines += [f"  why: {error.why}"] if error.why else []
    lines += [f"  hint: {error.hint}"] if error.hint else []
    lines += [f"  | {line}" for line in error.details]
    for name, inner in getattr(error, "failures", {}).items():
        lines += [f"  {name}:", *(f"  {line}" for line in told(inner).splitlines())]
    return "\n".join(lines)


def _label(node: pytest.Item | pytest.Collector) -> str:
    """The beginning of a cluster's name: what it is for, and the worker of pytest-xdist, when there is one."""
    words = re.sub(r"[^a-z0-9]+", "-", (node.name or "session").lower()).strip("-")[:LABEL_LENGTH].strip("-")
    return "-".join(filter(None, ["t", words, os.environ.get("PYTEST_XDIST_WORKER", "")]))
