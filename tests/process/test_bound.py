"""Bound clusters: whatever ends their process ends them, and nothing of them stays."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

import fleetbox
from fleetbox import host, paths, records
from fleetbox.errors import ConflictError, NotFoundError
from fleetbox.identity import ProcessIdentity, is_alive
from tests.fakeguests import Faults, handles
from tests.process.conftest import Script

Until = Callable[[Callable[[], object]], None]
StartScript = Callable[[str], Script]

READY = "print('ready', flush=True); sys.stdin.readline()"
UP = f"fleetbox.up('web', members=2, bound=True, cold=True); {READY}"


def wait_ready(script: Script) -> None:
    assert script.process.stdout is not None
    line = script.process.stdout.readline()
    assert line == "ready\n", (line, script.end())


def machines(cluster: str = "web") -> list[ProcessIdentity]:
    return [handle.process for handle in handles(fleetbox.Cluster(cluster)).values()]


def nothing_of(cluster: str) -> bool:
    """Whether neither record nor folder, socket or holder of the cluster is left."""
    return not any(
        path.exists()
        for path in (
            paths.cluster_state_dir(cluster),
            paths.cluster_data_dir(cluster),
            paths.cluster_runtime_dir(cluster),
        )
    )


@pytest.mark.parametrize(
    "end",
    [
        "os.kill(os.getpid(), signal.SIGKILL)",
        "raise SystemError('the test failed')",
        "sys.exit(0)",
        "os._exit(3)",
        "os.kill(os.getpid(), signal.SIGTERM)",
        "os.abort()",
    ],
    ids=["sigkill", "exception", "exit", "_exit", "sigterm", "abort"],
)
def test_whatever_ends_the_process_ends_its_cluster(home: Path, script: StartScript, until: Until, end: str) -> None:
    user = script(f"import os, signal, resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n{UP}; {end}")
    wait_ready(user)
    running = machines()
    assert fleetbox.Cluster("web").record.bound
    assert all(map(is_alive, running))
    user.process.communicate("\n")
    until(lambda: not any(map(is_alive, running)))
    until(lambda: nothing_of("web"))


def test_a_process_that_dies_during_up_leaves_nothing(
    home: Path, script: StartScript, until: Until, faults: Faults
) -> None:
    faults("start=hang")
    user = script("fleetbox.up('web', members=3, bound=True, cold=True)")
    until(lambda: (paths.cluster_data_dir("web") / "node-1" / "disk.raw").exists())
    user.process.kill()
    until(lambda: nothing_of("web"))


def test_a_stopped_bound_cluster_goes_too(home: Path, script: StartScript, until: Until) -> None:
    user = script(f"fleetbox.up('web', bound=True, cold=True).stop(); {READY}")
    wait_ready(user)
    assert records.live_holder("web") is not None, "somebody must watch"
    assert paths.cluster_data_dir("web").exists()
    fleetbox.Cluster("web").start()
    user.process.kill()
    until(lambda: nothing_of("web"))


def test_an_idle_holder_of_a_bound_cluster_can_be_used_again(home: Path) -> None:
    with fleetbox.up("web", bound=True, cold=True) as cluster:
        cluster.stop()
        assert fleetbox.up("web", members=2, bound=True, cold=True) == cluster
        assert {m.state for m in cluster.members} == {records.MemberState.RUNNING}
    assert nothing_of("web")
    with fleetbox.up("web", cold=True) as again:
        assert not again.record.bound


def test_the_holders_own_sigkill_takes_the_machines_with_it(home: Path, until: Until) -> None:
    cluster = fleetbox.up("web", members=2, bound=True, cold=True)
    running, holder = machines(), records.live_holder("web")
    assert holder is not None
    os.kill(holder.process.pid, signal.SIGKILL)
    until(lambda: not any(map(is_alive, running)))
    # Its process lives: the cluster is still wanted, and a new holder watches again.
    assert host.prune().items == () or cluster.record.bound
    cluster.start()
    assert all(map(is_alive, machines()))
    assert records.live_holder("web") is not None


def test_without_bound_machines_outlive_their_holder(home: Path, until: Until) -> None:
    fleetbox.up("web", cold=True)
    running, holder = machines(), records.live_holder("web")
    assert holder is not None
    os.kill(holder.process.pid, signal.SIGKILL)
    until(lambda: not is_alive(holder.process))
    assert all(map(is_alive, running))


@pytest.mark.parametrize("by", ["prune", "up", "destroy"])
def test_what_a_holder_that_died_with_its_owner_has_left_is_removed(
    home: Path, script: StartScript, until: Until, by: str
) -> None:
    user = script(UP.replace(READY, f"fleetbox.snapshots.save('web', name='of-it'); {READY}"))
    wait_ready(user)
    running, holder = machines(), records.live_holder("web")
    assert holder is not None
    old_id = fleetbox.Cluster("web").record.id
    os.kill(holder.process.pid, signal.SIGKILL)
    user.process.kill()
    user.process.communicate()
    until(lambda: not any(map(is_alive, running)))
    assert fleetbox.Cluster("web").record.abandoned
    if by == "prune":
        dry = host.prune(dry_run=True)
        assert ("cluster", "web") in {(i.kind, i.name) for i in dry.items}
        assert fleetbox.Cluster("web").record.id == old_id, "a dry run removes nothing"
        host.prune()
        assert nothing_of("web")
    elif by == "up":
        made = fleetbox.up("web", cold=True)
        assert made.record.id != old_id
        assert [m.name for m in made.members] == ["node-1"]
        assert not made.record.bound
    else:
        fleetbox.Cluster("web").destroy()
        until(lambda: nothing_of("web"))
    assert fleetbox.snapshots.list_snapshots() == []


def test_snapshots_of_a_bound_cluster_go_with_it_unless_kept(home: Path) -> None:
    with fleetbox.up("web", bound=True, cold=True) as cluster:
        fleetbox.snapshots.save(cluster, name="goes")
        fleetbox.snapshots.save(cluster, name="stays", keep=True)
        fleetbox.snapshots.export("goes", home / "goes.tar")
    assert [s.name for s in fleetbox.snapshots.list_snapshots()] == ["stays"]
    imported = fleetbox.snapshots.import_(home / "goes.tar")
    host.prune()
    assert imported.bound_to == ""
    assert {s.name for s in fleetbox.snapshots.list_snapshots()} == {"goes", "stays"}
    fleetbox.snapshots.remove(["goes", "stays"])


def test_a_snapshot_whose_bound_cluster_is_gone_is_collected_only_when_all_records_can_be_read(home: Path) -> None:
    cluster = fleetbox.up("web", bound=True, cold=True)
    fleetbox.snapshots.save(cluster, name="goes")
    unreadable = paths.cluster_record("other")
    unreadable.parent.mkdir(parents=True)
    unreadable.write_text("{")
    # As a crash between the cluster's end and its snapshots' would leave it.
    saved = paths.snapshots_dir() / fleetbox.snapshots.inspect("goes").id / "snapshot.json"
    saved.write_text(saved.read_text().replace(cluster.record.id, "f" * 16))
    host.prune()
    assert saved.exists(), "the record that cannot be read may be its cluster's"
    unreadable.unlink()
    host.prune()
    assert not saved.exists()


def test_a_cluster_that_exists_does_not_become_bound(home: Path, script: StartScript) -> None:
    fleetbox.up("web", cold=True)
    with pytest.raises(ConflictError, match="not bound"):
        fleetbox.up("web", bound=True)
    user = script(f"fleetbox.up('other', bound=True, cold=True); {READY}")
    wait_ready(user)
    with pytest.raises(ConflictError, match="bound to another process"):
        fleetbox.up("other", bound=True)
    fleetbox.up("other", members=2, cold=True)  # anybody may use it
    assert fleetbox.Cluster("other").record.bound
    with contextlib.suppress(NotFoundError):
        fleetbox.Cluster("other").destroy()


def test_its_holder_is_not_restarted(home: Path) -> None:
    cluster = fleetbox.up("web", bound=True, cold=True)
    holder, running = records.live_holder("web"), machines()
    assert holder is not None
    with pytest.raises(ConflictError, match="cannot be restarted"):
        fleetbox.holders.restart("web")
    os.kill(holder.process.pid, signal.SIGHUP)
    assert cluster.status().holder_running
    assert records.live_holder("web") == holder
    assert all(map(is_alive, running))


def test_in_threads_and_after_fork_and_nested(home: Path, script: StartScript, until: Until) -> None:
    """The owner is the process that asks: a thread's end ends nothing, a forked child's takes its own cluster alone."""
    user = script(
        f"""
        import os, threading
        thread = threading.Thread(target=lambda: fleetbox.up('threads', bound=True, cold=True))
        thread.start(); thread.join()
        with fleetbox.up('outer', bound=True, cold=True):
            fleetbox.up('inner', bound=True, cold=True)
            child = os.fork()
            if not child:
                fleetbox.up('forked', bound=True, cold=True)
                os._exit(0)
            os.waitpid(child, 0)
            {READY}
            os._exit(0)
        """
    )
    wait_ready(user)
    until(lambda: nothing_of("forked"))
    for name in ("threads", "outer", "inner"):
        assert all(map(is_alive, machines(name)))
        assert fleetbox.Cluster(name).record.owner is not None
        assert fleetbox.Cluster(name).record.owner.pid == user.process.pid  # type: ignore[union-attr]
    user.process.communicate("\n")
    until(lambda: all(map(nothing_of, ("threads", "outer", "inner"))))
