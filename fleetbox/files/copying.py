"""The copy itself: first what is to be done, all of it checked, then file after file.

What a guest says is data: a name that leads out of the folder that is copied, a link that does, a file that is neither
file, folder nor link, is refused and named, and the rest is copied. Nothing is written through a link. Files replace
what was there at once, when they are whole.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from fleetbox.errors import ConflictError, FleetboxError, MachineError, NotFoundError, PartialError, UsageError
from fleetbox.files.guest import GuestTree
from fleetbox.files.location import Location
from fleetbox.files.tree import BLOCK_BYTES, Entry, HostTree, Tree
from fleetbox.member import Member, OnEvent
from fleetbox.wire import Progress

DEPTH_MAX = 200
_TELL_EVERY_S = 0.1
_REMOTE = re.compile(r"[a-z0-9-]+/[a-z0-9-]+:")
_HOST_MODE = 0o777  # a guest's set-user-ID bit has no business on this host


@dataclass(frozen=True)
class Copied:
    """What was copied: files (links count) and their bytes."""

    files: int
    size_bytes: int


@dataclass(frozen=True)
class _Step:
    """One file, folder or link to make: `source` and `target` are paths in their trees."""

    entry: Entry
    source: str
    target: str


@dataclass
class _Copy:
    """A copy under way."""

    emit: OnEvent
    failures: dict[str, FleetboxError] = field(default_factory=dict)
    total_bytes: int = 0
    done_bytes: int = 0
    files: int = 0
    _told_at: float = 0.0

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """One step; what its side refuses is noted under its name, and the copy goes on."""
        try:
            yield
        except FleetboxError as e:
            self.failures[what] = e
        except OSError as e:
            why = e.strerror or str(e) or "it did not say why"
            self.failures[what] = FleetboxError(f"{what} cannot be copied", why=why)
            if _REMOTE.match(what):
                hint = "fleet may not do that: copy to its home folder, and move it there with sudo"
                self.failures[what] = MachineError(
                    f"{what} was refused", why=why, hint=hint if isinstance(e, PermissionError) else ""
                )

    def measured(self, content: Iterable[bytes]) -> Iterator[bytes]:
        for block in content:
            self.done_bytes += len(block)
            yield block
            self.tell()

    def tell(self, state: str = "update") -> None:
        now = time.monotonic()
        if state != "update" or now - self._told_at > _TELL_EVERY_S:
            self._told_at = now
            total = float(max(self.total_bytes, self.done_bytes))
            self.emit(
                Progress("copy", state, current=float(self.done_bytes), total=total, unit="bytes", at=time.time())
            )


def copy(
    sources: Sequence[Location],
    destination: Location,
    member_of: Callable[[str], Member],
    on_event: OnEvent | None = None,
) -> Copied:
    """Copy files and folders, with modes and times. `member_of` finds the member that a location's ref names.

    A destination that is a folder takes the sources in under their own names; with one source it may also be the new
    name. Raises NotFoundError, UsageError, ConflictError, MachineError; PartialError when some could not be copied.
    """
    if not sources:
        raise UsageError("nothing to copy is named")
    streams = [location for location in (*sources, destination) if location.is_stream]
    if streams and len(sources) > 1:
        raise UsageError("a stream is one file", why="several sources are named", hint="use tar through `fleetbox ssh`")
    running = _Copy(on_event or (lambda event: None))
    with contextlib.ExitStack() as sessions:
        trees: dict[str, Tree] = {"": HostTree()}

        def tree_of(location: Location) -> Tree:
            if location.ref not in trees:
                member = member_of(location.ref)
                same = next((tree for tree in trees.values() if tree.name == member.ref), None)
                trees[location.ref] = same or sessions.enter_context(GuestTree(member))
            return trees[location.ref]

        running.tell("begin")
        try:
            if streams:
                _copy_stream(running, sources[0], destination, tree_of)
            else:
                _copy_all(running, sources, destination, tree_of)
        except BaseException:
            running.tell("failed")
            raise
        running.tell("failed" if running.failures else "done")
    if len(running.failures) == 1 and running.files == 0:
        raise next(iter(running.failures.values()))
    if running.failures:
        raise PartialError(
            f"{len(running.failures)} of {running.files + len(running.failures)} could not be copied", running.failures
        )
    return Copied(running.files, running.done_bytes)


def _copy_stream(running: _Copy, source: Location, destination: Location, tree_of: Callable[[Location], Tree]) -> None:
    if source.is_stream:
        content: Iterable[bytes] = iter(lambda: os.read(0, BLOCK_BYTES), b"")
        entry = None
    else:
        tree = tree_of(source)
        [path] = _expand(tree, source)
        entry = tree.find(path, follow=True)
        if entry is None or entry.kind == "folder":
            raise UsageError(f"{source} is a folder", hint=f"fleetbox ssh {source.ref or 'node-1'} tar c … writes one")
        running.total_bytes = entry.size_bytes
        content = tree.read(path, entry.size_bytes)
    if destination.is_stream:
        for block in running.measured(content):
            sys.stdout.buffer.write(block)
        sys.stdout.buffer.flush()
    else:
        target = tree_of(destination)
        found = target.find(destination.path, follow=True)
        if destination.path.endswith("/") or (found is not None and found.kind == "folder"):
            raise UsageError(f"{destination} is a folder", why="a stream has no name", hint="name the file")
        path = destination.path if found is None else target.resolved(destination.path)
        with running.attempt(str(destination)):
            target.write(path, running.measured(content), None, None)
    running.files += not running.failures


def _copy_all(
    running: _Copy, sources: Sequence[Location], destination: Location, tree_of: Callable[[Location], Tree]
) -> None:
    named = [(tree_of(source), path) for source in sources for path in _expand(tree_of(source), source)]
    target = tree_of(destination)
    found = target.find(destination.path, follow=True)
    into = found is not None and found.kind == "folder"
    if not into and (len(named) > 1 or destination.path.endswith("/")):
        raise NotFoundError(f"there is no folder {destination}", hint="make it first")
    root = destination.path if found is None else target.resolved(destination.path)
    plans: list[tuple[Tree, list[_Step]]] = []
    for tree, path in named:
        top = tree.find(path, follow=True)
        assert top is not None  # _expand has seen it
        name = posixpath.basename(path.rstrip("/"))
        if name in ("", ".", ".."):
            name = posixpath.basename(tree.resolved(path)) if into else ""
        goal = posixpath.join(root, name) if into else root
        _refuse_itself(tree, tree.resolved(path), target, goal, top)
        steps = list(_walk(running, tree, path, goal, top))
        running.total_bytes += sum(step.entry.size_bytes for step in steps if step.entry.kind == "file")
        plans.append((tree, steps))
    for tree, steps in plans:
        _make(running, tree, target, steps)


def _expand(tree: Tree, source: Location) -> list[str]:
    """The paths that a source names; a pattern counts as one only where no file has that very name."""
    if tree.find(source.path, follow=True) is not None:
        return [source.path]
    found = tree.matches(source.path) if any(c in source.path for c in "*?[") else []
    found = [path for path in found if tree.find(path, follow=True) is not None]
    if not found:
        raise NotFoundError(f"there is no file {source}")
    return found


def _refuse_itself(tree: Tree, source: str, target: Tree, goal: str, top: Entry) -> None:
    if tree is not target:
        return
    goal = target.resolved(goal) if target.find(goal, follow=True) else goal
    if goal == source:
        raise ConflictError(f"{_shown(tree, source)} would be copied onto itself")
    if top.kind == "folder" and f"{goal}/".startswith(f"{source}/"):
        raise ConflictError(f"{_shown(tree, source)} would be copied into itself")


def _shown(tree: Tree, path: str) -> str:
    return f"{tree.name}:{path}" if tree.name else path


def _walk(running: _Copy, tree: Tree, source: str, target: str, top: Entry) -> Iterator[_Step]:
    """Every step of one source, folders before what is in them."""
    waiting = [(_Step(top, source, target), 0)]
    while waiting:
        step, depth = waiting.pop()
        what = _shown(tree, step.source)
        with running.attempt(what):
            if step.entry.kind == "other":
                raise FleetboxError(f"{what} is not copied", why="it is no file, folder or link")
            if step.entry.kind == "link":
                _check_link(tree, what, step.entry.target, depth)
            inside: list[tuple[_Step, int]] = []
            if step.entry.kind == "folder":
                if depth > DEPTH_MAX:
                    raise FleetboxError(f"{what} is not copied", why=f"it is more than {DEPTH_MAX} folders deep")
                inside = [
                    (_below(step, name, entry), depth + 1) for name, entry in _checked(running, tree, step.source)
                ]
            yield step
            waiting += reversed(inside)


def _below(step: _Step, name: str, entry: Entry) -> _Step:
    return _Step(entry, posixpath.join(step.source, name), posixpath.join(step.target, name))


def _checked(running: _Copy, tree: Tree, folder: str) -> Iterator[tuple[str, Entry]]:
    """A folder's entries without those whose names lead elsewhere, or come twice."""
    seen: set[str] = set()
    for name, entry in tree.entries(folder):
        what = _shown(tree, f"{folder}/{name}")
        with running.attempt(what):
            if name in ("", ".", "..") or "/" in name or "\0" in name:
                raise FleetboxError(f"{what} is refused", why="its name leads out of the folder that is copied")
            if name in seen:
                raise FleetboxError(f"{what} is refused", why="its name comes twice")
            seen.add(name)
            yield name, entry


def _check_link(tree: Tree, what: str, target: str, depth: int) -> None:
    """Refuse a guest's link that could lead out of the tree that is copied; our own are the user's.

    It may climb from its folder, which is a real one, at most to the tree's root, and go down from there: through other
    links that were checked alike. A `..` behind a name could climb from wherever that name leads.
    """
    if not tree.name:
        return
    parts = [part for part in target.split("/") if part not in ("", ".")]
    climbs = 0
    while climbs < len(parts) and parts[climbs] == "..":
        climbs += 1
    if not target or target.startswith("/") or ".." in parts[climbs:] or climbs >= max(depth, 1):
        raise FleetboxError(f"{what} is not copied", why=f"it is a link that leads out: {target!r}")


def _make(running: _Copy, tree: Tree, target: Tree, steps: Sequence[_Step]) -> None:
    mask = 0o7777 if target.name or not tree.name else _HOST_MODE
    folders: list[_Step] = []
    missing: set[str] = set()  # folders that could not be made
    for step in steps:
        what = _shown(tree, step.source)
        if posixpath.dirname(step.target) in missing:
            missing.add(step.target)
            continue  # said once, of the folder
        failed = len(running.failures)
        with running.attempt(what if not target.name else _shown(target, step.target)):
            _make_one(running, tree, target, step, mask, top=step is steps[0])
            if step.entry.kind == "folder":
                folders.append(step)
            else:
                running.files += 1
        if len(running.failures) > failed and step.entry.kind == "folder":
            missing.add(step.target)
    for step in reversed(folders):
        with running.attempt(_shown(target, step.target)):
            target.finish_folder(step.target, step.entry.mode & mask, step.entry.times)


def _make_one(running: _Copy, tree: Tree, target: Tree, step: _Step, mask: int, *, top: bool) -> None:
    entry = step.entry
    before = target.find(step.target, follow=top and entry.kind == "folder")
    if entry.kind == "folder":
        if before is None:
            target.make_folder(step.target)
        elif before.kind != "folder":
            raise ConflictError(f"{_shown(target, step.target)} is no folder", why="it exists already")
    elif before is not None and before.kind == "folder":
        raise ConflictError(f"{_shown(target, step.target)} is a folder", why="it exists already")
    elif entry.kind == "link":
        target.make_link(step.target, entry.target)
    else:
        content = running.measured(tree.read(step.source, entry.size_bytes))
        target.write(step.target, content, entry.mode & mask, entry.times)
