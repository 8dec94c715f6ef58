"""A home where one operation is struck again and again, at one point after another, in one way after another."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http.server
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import fleetbox
from fleetbox import Cluster, paths
from fleetbox.errors import NotFoundError
from fleetbox.holder.collection.prune import prune
from fleetbox.identity import ProcessIdentity, identify, is_alive
from fleetbox.records import cluster_names, live_holder
from tests.commandline import Command, CommandLines
from tests.differ import Facts, difference, facts, outside
from tests.diskimages import make_ext4, make_tree, root_files
from tests.home import leftovers, processes_of
from tests.process.faults.operations import Operation
from tests.process.faults.plan import Fired, Plan, until

# How a command line may end: its own errors, or as if it had never been struck. 5 is a holder that is gone.
EXIT_CODES = {
    "holder": {0, 5},
    "cli": {-signal.SIGKILL},
    "interrupt": {0, 130},
    "error": {0, 1, 5, 6},
}
TOLD_LIMIT_S = 2.0
NEVER_SAID = ("Traceback", "internal error", "did not foresee")


class Bench:
    """One operation's home. Beside its cluster there is another one, `other`, which nothing may touch."""

    def __init__(self, operation: Operation, lines: CommandLines) -> None:
        self.operation = operation
        self.plan = Plan(Path(tempfile.mkdtemp(prefix="fb-plan-", dir="/tmp")))
        self.home = Path(tempfile.mkdtemp(prefix="fb-", dir="/tmp"))
        self._lines = lines
        self._files = Path(tempfile.mkdtemp(prefix="fb-files-", dir="/tmp"))
        self._server = _serve(self._files)
        self.words = operation.words(self._files, f"http://127.0.0.1:{self._server.server_port}")
        self.trace: list[str] = []
        self._before: Facts = frozenset()
        self._after: Facts = frozenset()
        self._bystanders: dict[str, ProcessIdentity | None] = {}
        if operation.name in ("import", "pull"):
            make_ext4(self._files / "disk.raw", make_tree(self._files / "tree", root_files()))

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """With the environment of this home."""
        with pytest.MonkeyPatch.context() as environment:
            environment.delenv("FLEETBOX_CLUSTER", raising=False)
            environment.delenv("FLEETBOX_FAKE_FAULTS", raising=False)
            environment.setenv("FLEETBOX_HOME", str(self.home))
            environment.setenv("FLEETBOX_BACKEND", "fake")
            environment.setenv("NO_PROXY", "127.0.0.1")
            for name, value in self.plan.environment.items():
                environment.setenv(name, value)
            yield

    def set_up(self) -> None:
        """Make the bystander, and learn what the operation does when nothing strikes it."""
        fleetbox.up("other", cold=True)
        self._bystanders = self._running("other")
        self.operation.prepare()
        self._before = self._settled()
        if self.operation.mess is not None:
            self.operation.mess(self)
        self.plan.clear()
        self._lines.run(*self.words)
        self.trace = self.plan.reached()
        self._after = self._settled()
        self.plan.clear()
        self._back()

    def _settled(self) -> Facts:
        """The facts once holders that have nothing to do have ended."""

        def idle() -> bool:
            return all(
                live_holder(p.name) is None
                or (p.name in cluster_names() and any(m.handle for m in Cluster(p.name).record.members.values()))
                for p in paths.clusters_dir().glob("*")
            )

        until(idle)
        return facts(self.home)

    def _running(self, cluster: str, *members: str) -> dict[str, ProcessIdentity | None]:
        """The processes of a cluster: its holder's and its machines'."""
        record = Cluster(cluster).record
        found = {name: m.handle.process if m.handle else None for name, m in record.members.items()}
        if members:
            return {name: found[name] for name in members}
        holder = live_holder(cluster)
        return found | {"": holder.process if holder else None}

    def _back(self) -> None:
        """Back to where the operation begins: nothing at all may be left of it."""
        self.operation.prepare()
        until(
            lambda: facts(self.home) == self._before,
            lambda: f"not as it was:\n{difference(self._before, facts(self.home))}",
        )
        assert self._running("other") == self._bystanders, "the other cluster was touched"

    def crash(self, point: str, *words: str) -> None:
        """Run a command line whose holder is killed at a point."""
        self.plan.set(point, "wait")
        command = self._lines.start(*words)
        _kill(self._reached(command, point).pid)
        command.wait()
        self.plan.clear()

    def _reached(self, command: Command, point: str) -> Fired:
        until(lambda: self.plan.fired() or command.ended)
        fired = self.plan.fired()
        assert fired is not None, f"{point} was never reached:\n{command.output}"
        return fired

    # --- a case

    def strike(self, point: str, number: int, how: str, *, prune_first: bool) -> None:
        """Strike the operation at a point, then demand that all is well."""
        operation = self.operation
        kept = self._running("web", *operation.keeps) if operation.keeps else {}
        if operation.mess is not None:
            operation.mess(self)
        self.plan.set(point, "wait" if how in EXIT_CODES and how != "error" else how, number)
        command = self._lines.start(*self.words)
        self._act(command, point, how)
        code = command.wait()
        assert code in EXIT_CODES[how if how in EXIT_CODES else "error"], f"exit code {code}:\n{command.output}"
        assert not any(words in command.output for words in NEVER_SAID), command.output
        assert self.plan.fired() is not None, "the fault did not fire"
        self.plan.clear()
        self._repair(prune_first=prune_first)
        if operation.keeps:
            assert self._running("web", *operation.keeps) == kept, "a machine did not run on"
        if not (operation.mess or facts(self.home) == self._after):
            if operation.afresh:
                self._back()
            again = self._lines.start(*self.words)  # the cluster is usable: the same command works now
            code = again.wait()
            gone = operation.name == "destroy" and code == 3  # its holder was just about to end
            assert code == 0 or gone, f"the next time: exit code {code}:\n{again.output}"
            until(
                lambda: facts(self.home) == self._after,
                lambda: f"the next time it did something else:\n{difference(self._after, facts(self.home))}",
            )
        self._back()

    def _act(self, command: Command, point: str, how: str) -> None:
        fired = self._reached(command, point)
        if how == "holder":
            pid = fired.pid
            if pid == command.pid:  # the client is at the point: its holder dies meanwhile
                holder = live_holder("web")
                assert holder is not None, "there is no holder to kill"
                pid = holder.process.pid
            _kill(pid)
        elif how in ("cli", "interrupt"):
            cancelled = self._count("operation.cancel")
            command.signal(signal.SIGKILL if how == "cli" else signal.SIGINT)
            if fired.pid != command.pid and fired.where != "loop" and cancelled < self._count("operation.begin"):
                self._cancelled(cancelled)
        self.plan.go()

    def _count(self, point: str) -> int:
        return self.plan.reached().count(point)

    def _cancelled(self, before: int) -> None:
        """Wait until the operation is told, so that this strikes at the point; it may be past being told."""
        deadline = time.monotonic() + TOLD_LIMIT_S
        while self._count("operation.cancel") == before and time.monotonic() < deadline:
            time.sleep(0.003)

    def _repair(self, *, prune_first: bool) -> None:
        """The next command, and prune, in either order; then nothing is half done."""
        for step in (self._prune, self._next_command) if prune_first else (self._next_command, self._prune):
            step()
        until(lambda: not self._half_done(), lambda: f"half done:\n{self._half_done()}")

    def _half_done(self) -> str:
        """What is neither as before nor as after the operation."""
        found = facts(self.home)
        for name in (p.name for p in paths.clusters_dir().glob("*")):
            if name not in cluster_names() and live_holder(name) is not None:
                # A holder that nobody has asked for anything ends by itself, after a while; the next command finds it.
                found = frozenset(fact for fact in found if fact[0] != name)
        return outside(found, self._before, self._after, whole=self.operation.whole)

    def _prune(self) -> None:
        asyncio.run(prune())

    def _next_command(self) -> None:
        """One that needs the cluster, when there is one, and starts what is stopped."""
        for name in cluster_names():
            if name != "other":
                with contextlib.suppress(NotFoundError):
                    Cluster(name).start()

    def close(self) -> list[str]:
        """End everything; what nobody should have left, in words."""
        self.plan.clear()
        for cluster in fleetbox.clusters():
            cluster.destroy()
        with contextlib.suppress(AssertionError):
            until(lambda: not leftovers(self.home))
        return leftovers(self.home)

    def give_up(self) -> None:
        """End whatever still runs, and remove all files."""
        self._server.shutdown()
        self._server.server_close()
        for pid in processes_of(self.home):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for folder in (self.home, self.plan.folder, self._files):
            shutil.rmtree(folder, ignore_errors=True)


def _kill(pid: int) -> None:
    """SIGKILL a process and wait for its end; what it held may still be held a moment longer."""
    process = identify(pid)
    os.kill(pid, signal.SIGKILL)
    until(lambda: not is_alive(process))


def _serve(folder: Path) -> http.server.ThreadingHTTPServer:
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server
