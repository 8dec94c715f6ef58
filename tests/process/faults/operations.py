"""The operations that are struck: what each begins with, its command line, and how what it did is taken back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import fleetbox
from fleetbox import Cluster, paths, snapshots
from fleetbox.errors import NotFoundError
from fleetbox.holder.images.store import ImageStore
from fleetbox.holder.snapshots.store import SnapshotStore
from fleetbox.holder.warm.templates import TemplateStore
from fleetbox.records import MemberState, cluster_names
from tests.fakeguests import write

WEB = Cluster("web")


@dataclass(frozen=True)
class Operation:
    """One command line. `words` are made from the bench's folder of files and the address of its files.

    `prepare` brings the installation to where it begins, from wherever the last case left it; `mess`, done before each
    case, leaves something behind that the command is to put in order. `whole`: it happens as a whole or not at all,
    else member by member. `afresh`: after an error it may have done without, so that its like is to be done from the
    beginning. `keeps`: members whose machines run on, whatever happens.
    """

    name: str
    words: Callable[[Path, str], tuple[str, ...]]
    prepare: Callable[[], None]
    mess: Callable[[object], None] | None = None
    whole: bool = False
    afresh: bool = False
    keeps: tuple[str, ...] = ()


def said(*words: str) -> Callable[[Path, str], tuple[str, ...]]:
    return lambda folder, url: words


def none() -> None:
    """No cluster `web`, no template, no snapshot, no image."""
    for name in cluster_names():
        if name != "other":
            Cluster(name).destroy()
    no_snapshots()
    store = TemplateStore()
    store.remove([t.key for t in store.templates()])
    images = ImageStore()
    images.remove([i.digest for i in images.images()])


def no_snapshots(*but: str) -> None:
    store = SnapshotStore()
    store.remove([s.id for s in store.readable()[0] if s.name not in but])


def web(*names: str) -> None:
    """The cluster `web` with these members, which run; each has its name on its disk."""
    with contextlib.suppress(NotFoundError):
        surplus = [m.name for m in WEB.members if m.name not in names]
        if surplus:
            WEB.destroy(surplus)
    fleetbox.up("web", names=names, cold=True)
    for member in WEB.members:
        write(member, member.name)


def two() -> None:
    web("node-1", "node-2")


def two_and_template() -> None:
    two()
    if not TemplateStore().templates():
        WEB.add(["node-3"])
        WEB.destroy(["node-3"])


def one_stopped() -> None:
    two()
    if WEB.member("node-2").state is not MemberState.STOPPED:
        WEB.stop(["node-2"])


def unsaved() -> None:
    two()
    no_snapshots()


def saved() -> None:
    """A snapshot `old`, and since then something else on the disks."""
    two()
    if "old" not in SnapshotStore().names():
        snapshots.save("web", name="old")
    no_snapshots("old")
    for member in WEB.members:
        write(member, member.name.upper())


def saved_one() -> None:
    two()
    if "one" not in SnapshotStore().names():
        snapshots.save("web/node-1", name="one")
    no_snapshots("one")


def saved_cluster() -> None:
    two()
    if "copy" in cluster_names():
        Cluster("copy").destroy()
    if "old" not in SnapshotStore().names():
        snapshots.save("web", name="old")
    no_snapshots("old")


def removable() -> None:
    two()
    if "new" not in SnapshotStore().names():
        snapshots.save("web", name="new")


def half_made(bench: object) -> None:
    """What a holder leaves that was killed between launching a machine and recording it; and a folder of nobody's."""
    bench.crash("member.launched", "up", "half", "--cold")  # type: ignore[attr-defined]
    (paths.runtime_dir() / "0123456789ab").mkdir(mode=0o700)


def orphaned(bench: object) -> None:
    """Machines whose holder was killed while it made another."""
    bench.crash("member.recorded", "add", "web", "node-3", "--cold")  # type: ignore[attr-defined]


OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation("up", said("up", "web", "--members", "2", "--cold"), none),
        Operation("template", said("up", "web"), none, afresh=True),
        Operation("add", said("add", "web", "node-3", "--cold"), two, whole=True, keeps=("node-1", "node-2")),
        Operation("clone-template", said("add", "web", "node-3"), two_and_template, keeps=("node-1", "node-2")),
        Operation("start", said("start", "web"), one_stopped, keeps=("node-1",)),
        Operation("stop", said("stop", "web"), two),
        Operation("destroy", said("destroy", "web", "--yes"), two),
        Operation("save", said("snapshot", "save", "web", "--name", "new"), unsaved, keeps=("node-1", "node-2")),
        Operation("restore", said("restore", "web", "old"), saved, whole=True),
        Operation("clone", said("clone", "one", "web/node-3"), saved_one, whole=True, keeps=("node-1", "node-2")),
        Operation("clone-cluster", said("clone", "old", "copy"), saved_cluster, keeps=("node-1", "node-2")),
        Operation("snapshot-rm", said("snapshot", "rm", "new"), removable, keeps=("node-1", "node-2")),
        Operation("import", lambda folder, url: ("image", "import", str(folder / "disk.raw"), "--name", "tiny"), none),
        Operation("pull", lambda folder, url: ("image", "pull", f"{url}/disk.raw"), none),
        Operation("prune", said("prune"), none, mess=half_made),
        Operation("takeover", said("start", "web"), two, mess=orphaned, keeps=("node-1", "node-2")),
    )
}
