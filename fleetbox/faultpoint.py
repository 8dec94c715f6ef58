"""Named points of the code at which tests strike. In production they do nothing.

`reach("member.disk")` stands where something can go wrong: before a step that changes the host, and after it. Without
`FLEETBOX_FAULTPOINTS` in the environment of the process it returns at once. With it, that variable names a folder in
which a test plans one fault (`plan`: a point and an action) and learns what happened:

=========  =============================================================================================
`plan`     `POINT ACTION NUMBER TOKEN`, read anew at every point
`trace`    a line `PID POINT` for every point that any process has reached
`fired`    `PID WHERE` of the one process that did as planned: WHERE is `loop`, `thread` or `task` (below)
`go.TOKEN` lets the process that stands at the point of this plan go on
=========  =============================================================================================

The actions: `wait` stands still until `go.TOKEN` is there, so that a test can end any process with this one exactly
here; `error` raises FleetboxError; a name of errno(3), such as `ENOSPC`, raises that OSError. Whoever is at the point
for the NUMBERth time, of all processes together, does as planned, and nobody after. `reach` stands still where it is
called: in the thread of an event loop (`loop`) nothing else of the process goes on then, elsewhere (`thread`) the rest
does. `arrive` is for coroutines (`task`): the others go on, and a cancellation strikes right at the point.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from pathlib import Path

from fleetbox.errors import FleetboxError

VARIABLE = "FLEETBOX_FAULTPOINTS"
_POLL_S = 0.003

POINTS: dict[str, str] = {
    # The client
    "client.start": "before a holder is started",
    "client.started": "a holder has been started and serves",
    "client.request": "before an operation is asked for",
    "client.answered": "an operation is under way, none of its events is read",
    "client.ended": "an operation's end has been read",
    "client.job": "before a job process is started",
    "client.job.started": "a job process runs and has not been told what to do",
    # A holder's life
    "holder.locked": "the cluster's lock is taken, nothing is read",
    "holder.loaded": "the record is read, nothing is taken over",
    "holder.bound": "the socket listens, the lock file does not say so",
    "holder.announced": "the lock file says where it listens, nobody is answered",
    "holder.ending": "nothing runs any more, the socket still listens",
    "holder.silent": "nobody is answered any more, the socket's file is there",
    "holder.left": "socket and pidfile are removed, the lock is held",
    "operation.begin": "an operation begins",
    "operation.done": "an operation has done its work, its result is not sent",
    "operation.cancel": "an operation is about to be cancelled",
    # Taking over
    "takeover.orphans": "orphans are found, none is ended",
    "takeover.rollback": "before a half made member is erased",
    "takeover.network": "the network is taken over, no machine is",
    "takeover.adopt": "before a machine is adopted",
    "takeover.adopted": "a machine is adopted, its record is not written",
    "takeover.commit": "before the records of what was taken over are written",
    # Records
    "record.write": "before a record's new content is written",
    "record.written": "the new content is in a temporary file",
    "record.replaced": "the record is replaced, its folder not synced",
    "record.remove": "before a cluster's record is removed",
    # A cluster
    "cluster.created": "a new cluster's record is made, not written",
    "cluster.network": "before the network is made",
    "cluster.connected": "the network is made, no record says so",
    "cluster.placeholders": "placeholders are made, not written",
    "cluster.reserved": "placeholders are written and have addresses",
    "cluster.disconnect": "before the network is given back",
    "cluster.abandon": "before the record of a cluster without members is removed",
    # A member
    "member.create": "before anything of a member is made",
    "member.folder": "a member's folder is made",
    "member.lease": "a member has its address",
    "member.disk": "before a member's disk is made",
    "member.disk.made": "a member's disk is made",
    "member.seed": "before a member's seed is made",
    "member.hostkey": "a member's host key is made and known",
    "member.seed.made": "a member's seed is made",
    "member.launch": "before a member's machine is launched",
    "member.launched": "a member's machine runs, no record says so",
    "member.recorded": "a member's record has its machine",
    "member.resume": "before a cloned machine is let run",
    "member.resumed": "a cloned machine runs, with an identity that is not its own",
    "member.join": "before a clone joins the network",
    "member.ready": "a member is ready, no record says so",
    "member.finished": "a member's record says that it runs",
    "member.start": "before a stopped member is touched",
    "member.stop": "a member is about to be shut down",
    "member.stopped": "a member's machine has ended, its record says that it runs",
    "member.destroy": "before a member's machine is ended",
    "member.ended": "a member's machine has ended, its disk is there",
    "member.release": "a member's address is released, its disk is there",
    "member.erase": "before a member's folder is removed",
    "member.erased": "a member's folder is removed, its record is there",
    # A machine's process
    "machine.lock": "a machine's disks are locked, nothing of it is made",
    "machine.attached": "a machine has its interface, no process",
    "machine.spawned": "a machine's process runs, nothing else knows of it",
    "machine.pidfile": "a machine's pidfile is written",
    # Disks
    "disk.copy": "before a disk's content is copied",
    "disk.land": "a disk is whole under its temporary name",
    # Templates
    "template.lock": "the lock of a template that is to be made is taken",
    "template.boot": "before the machine of a template is launched",
    "template.booted": "a template's machine runs",
    "template.paused": "a template's machine stands still",
    "template.saved": "a template's machine is saved and still there",
    "template.land": "before a template is moved into place",
    "template.disk": "a template's disk is in place, its record is not",
    "template.landed": "a template is in place",
    "template.remove": "before a template is taken out of sight",
    "template.removed": "a template is removed, its disk is there",
    # Snapshots
    "save.staged": "a snapshot's staging folder is made",
    "save.announced": "the disks that a snapshot will stand on are pinned",
    "save.paused": "all machines that are saved stand still",
    "save.memory": "a machine's memory is saved, its disk is not",
    "save.disk": "a machine's disk is saved",
    "save.resumed": "all machines run again, nothing is in place",
    "save.publish": "before a snapshot is written down",
    "save.land": "before a snapshot is moved into place",
    "save.landed": "a snapshot is in place",
    "snapshot.remove": "before a snapshot is taken out of sight",
    "snapshot.removed": "a snapshot is out of sight, its files are there",
    "restore.check": "a restore is found to be possible",
    "restore.laid": "a saved disk stands beside the member's",
    "restore.paused": "the machines that are to be replaced stand still",
    "restore.up": "a saved machine is up, paused, beside the old one",
    "restore.left": "an old machine has left the network",
    "restore.joined": "a new machine has joined the network, the records name the old one",
    "restore.committed": "the records name the new machines, which stand still",
    "restore.resumed": "the new machines run, the old ones are there",
    "restore.replaced": "the old machines are gone, their disks are there",
    "clone.reserved": "the clones' placeholders are written",
    "clone.copied": "a clone's files are copied",
    "clone.made": "all clones run, no record says so",
    # Images
    "image.lock": "the lock of an image that is to be got is taken",
    "image.download": "before a download begins",
    "image.downloaded": "an image's file has come",
    "image.staged": "an image's staging folder is made",
    "image.converted": "an image's disk is made in the staging folder",
    "image.publish": "before an image is moved into place",
    "image.published": "an image is in place, its download is there",
    # Prune
    "prune.cluster": "a cluster's lock is taken by prune",
    "prune.erased": "prune has erased a half made member, its record is there",
    "prune.gone": "before prune removes the folders of a cluster that is gone",
    "prune.network": "before prune looks at the host's networks",
    # The host's network
    "network.journal": "a network is written down, nothing of it is made",
    "network.bridge": "the bridge is made",
    "network.forwarding": "forwarding is switched on",
    "network.table": "the firewall's table is made",
    "network.rules": "the accepts in other firewalls are made",
    "network.resolver": "the resolver runs, the journal does not say so",
    "network.built": "the network stands",
    "network.tap": "a tap is written down, not made",
    "network.tap.made": "a tap is made",
    "network.detach": "before a tap is removed",
    "network.demolish": "before the network is removed",
    "network.demolished": "all of the network is removed, its journal is there",
}
"""Every point, and what is so when it is reached. A test compares it with the code."""

_folder = Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None


def reach(point: str) -> None:
    """Be at a point; raises what a test has planned."""
    if _folder is not None and (go := _strikes(_folder, point, _thread_kind())):
        while not go.exists():
            time.sleep(_POLL_S)


async def arrive(point: str) -> None:
    """Be at a point in a coroutine; raises what a test has planned. Without a plan it never lets go of the loop."""
    if _folder is not None and (go := _strikes(_folder, point, "task")):
        from asyncio import sleep

        while not go.exists():  # noqa: ASYNC110 - another process makes it
            await sleep(_POLL_S)


def _thread_kind() -> str:
    asyncio = sys.modules.get("asyncio")
    return "loop" if asyncio is not None and asyncio._get_running_loop() is not None else "thread"


def _strikes(folder: Path, point: str, where: str) -> Path | None:
    """The file to wait for, if at all; raises the planned error."""
    _append(folder / "trace", f"{os.getpid()} {point}\n")
    try:
        planned, action, number, token = (folder / "plan").read_text().split()
    except FileNotFoundError:
        return None
    if planned != point or (folder / "trace").read_text().split()[1::2].count(point) < int(number):
        return None
    if not _first(folder / "fired", f"{os.getpid()} {where}\n"):
        return None
    if action == "error":
        raise FleetboxError(f"struck at {point}", why="a test has planned it")
    if action != "wait":
        number = getattr(errno, action)
        raise OSError(number, os.strerror(number), f"({point})")
    return folder / f"go.{token}"


def _append(path: Path, line: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # the test is over
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, line.encode())
        finally:
            os.close(fd)


def _first(path: Path, line: str) -> bool:
    """Make the file with the line in it, in one step; False when it is there already."""
    temporary = path.with_name(f"fired.{os.getpid()}.{time.monotonic_ns()}")
    temporary.write_text(line)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    return True
