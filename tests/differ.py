"""What is on the host of an installation, as facts: processes, links, addresses, nft tables, sockets, files, locks.

A fact is `(group, text)`. The group says what it belongs to: a member (`web/node-1`), a cluster (`web`), or
`templates`, `snapshots`, `images`, `network` and so on; the text tells no pid, random id or time, so that two states
that mean the same have the same facts. Files are named with their content where a user owns it (disks, snapshots,
images). Locks count while they are held: the file of one means nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import stat
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil

from fleetbox import paths
from fleetbox.backends.host import programs
from fleetbox.records import ClusterRecord, RecordError, observed_state, read_clusters
from tests.home import processes_of

Facts = frozenset[tuple[str, str]]

# Files that come and go as they like: locks and logs (which say what happened), and caches that cost time only.
_UNTOLD = re.compile(
    r"(.*/)?(\.lock|\.templates\.lock|[^/]*\.lock|.*\.log(\.\d+)?|events[^/]*)|cache/(verified|kvm|downloads)(/.*)?"
)
_CONTENT = re.compile(r"(.*/)?(disk(\.1)?\.(raw|qcow2)|state|memory|fixture-\d+\.img)|data/blobs/.*|data/keys/.*")
_ID = re.compile(r"\b[0-9a-f]{16}\b")
_SHELVES = ("data/clusters/", "run/", "state/clusters/")
_DIGESTS: dict[str, str] = {}  # of `cluster digest`, by which the files of a machine are named, the member
_TEMPORARY = re.compile(r"(\.(?:new|gone)-)[A-Za-z0-9_-]+")


def facts(home: Path) -> Facts:
    """All facts of the installation at `home`, which FLEETBOX_HOME names, in this network namespace."""
    return frozenset(_all(home))


def _all(home: Path) -> Iterator[tuple[str, str]]:
    clusters = [c for c in read_clusters() if isinstance(c, ClusterRecord)]
    for name in paths.clusters_dir().glob("*"):
        for member in ("template", *(f"node-{number}" for number in range(1, 10))):
            for slot in ("", "+1"):
                digest = hashlib.sha256(f"{name.name}/{member}{slot}".encode()).hexdigest()[:12]
                _DIGESTS[f"{name.name} {digest}"] = member
    runtime = {paths.cluster_runtime_dir(p.name).name: p.name for p in paths.clusters_dir().glob("*")}
    runtime |= {paths.cluster_runtime_dir(c.name).name: c.name for c in clusters}
    yield from _processes(home)
    yield from _files(home, runtime)
    yield from _locks(home, runtime)
    yield from _records()
    yield from _network()


def by_group(state: Iterable[tuple[str, str]]) -> dict[str, frozenset[str]]:
    """The facts of each group."""
    groups: dict[str, set[str]] = {}
    for group, text in state:
        groups.setdefault(group, set()).add(text)
    return {group: frozenset(texts) for group, texts in groups.items()}


def difference(before: Facts, after: Facts) -> str:
    """What is gone and what is new, for a person; empty when nothing is."""
    lines = [f"- {group}: {text}" for group, text in sorted(before - after)]
    return "\n".join(lines + [f"+ {group}: {text}" for group, text in sorted(after - before)])


def outside(found: Facts, *allowed: Facts, whole: bool = False) -> str:
    """In which groups `found` is like none of the `allowed` states; empty when in none.

    With `whole` all groups must be like the same one of them.
    """
    wanted = [by_group(state) for state in allowed]
    groups = by_group(found)
    names = set(groups).union(*wanted)
    if whole:
        return "" if any(found == state for state in allowed) else f"like none:\n{difference(allowed[0], found)}"
    strange = [g for g in sorted(names) if all(groups.get(g) != w.get(g) for w in wanted)]
    return "\n".join(f"{group}:\n{difference(_only(group, allowed[0]), _only(group, found))}" for group in strange)


def _only(group: str, state: Facts) -> Facts:
    return frozenset(fact for fact in state if fact[0] == group)


def _processes(home: Path) -> Iterator[tuple[str, str]]:
    for pid, argv in processes_of(home).items():
        words = argv.split()
        if "tests.commandline" in argv:
            continue
        status = _state(pid)
        if status in "ZX":
            continue
        paused = " (stopped)" if status == "T" else ""
        if "fleetbox-fake" in words:
            name = words[words.index("fleetbox-fake") + 1]
            yield name, f"process: fake machine {name}{paused}"
        elif "fleetbox.holder" in words:
            yield words[-1], f"process: holder{paused}"
        elif (match := re.search(r"-name (?:guest=)?([a-z0-9-]+/[a-z0-9-]+)", argv)) is not None:
            yield match[1], f"process: {Path(words[0]).name}{paused}"
        else:
            yield "processes", f"process: {argv[:200]}{paused}"


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def _place(path: str, runtime: dict[str, str]) -> tuple[str, str]:
    """(group, name) of a path below the home."""
    path = _TEMPORARY.sub(r"\1*", _ID.sub("ID", path))
    parts = path.split("/")
    match parts:
        case ["data" | "state", "clusters", cluster, member, *rest] if rest:
            return f"{cluster}/{member}", path.replace("/disk.1.", "/disk.")  # either slot is as good
        case ["data", "clusters", cluster, member]:
            return f"{cluster}/{member}", path
        case ["data" | "state", "clusters", cluster, *_]:
            return cluster, path
        case ["run", digest, name] if digest in runtime:
            cluster = runtime[digest]
            machine = re.fullmatch(r"([a-z0-9-]+?)(?:\+1)?\.(pid|fifo|memory|qmp|log|control|ctl|sock|con)", name)
            if machine is None or machine[1] == "holder":
                return cluster, f"run/{cluster}/{name}"
            member = _DIGESTS.get(f"{cluster} {machine[1]}") or machine[1]
            return f"{cluster}/{member}", f"run/{cluster}/{member}.{machine[2]}"
        case ["run", digest] if digest in runtime:
            return runtime[digest], f"run/{runtime[digest]}"
        case ["data" | "cache", "templates" | "snapshots" | "images" | "blobs" as kind, *_]:
            return kind, path
    return "home", path


def _files(home: Path, runtime: dict[str, str]) -> Iterator[tuple[str, str]]:
    for folder, folders, names in os.walk(home):
        for name in (*folders, *names):
            path = Path(folder, name)
            relative = str(path.relative_to(home))
            if _UNTOLD.fullmatch(relative):
                continue
            try:
                info = path.lstat()
                kind = "socket" if stat.S_ISSOCK(info.st_mode) else "folder" if stat.S_ISDIR(info.st_mode) else "file"
                content = f" {_digest(path)}" if kind == "file" and _CONTENT.fullmatch(relative) else ""
            except FileNotFoundError:
                continue
            half_made = any(part.startswith((".new-", ".gone-")) for part in path.parts)
            if kind == "folder" and not half_made and not relative.startswith(_SHELVES):
                continue  # an empty shelf
            group, shown = _place(relative, runtime)
            yield group, f"{kind}: {shown} {stat.S_IMODE(info.st_mode):o}{content}"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _locks(home: Path, runtime: dict[str, str]) -> Iterator[tuple[str, str]]:
    held = {
        tuple(line.split()[5].split(":")) for line in Path("/proc/locks").read_text().splitlines() if " FLOCK " in line
    }
    for path in home.rglob("*"):
        try:
            info = path.lstat()
        except FileNotFoundError:
            continue
        if (f"{os.major(info.st_dev):02x}", f"{os.minor(info.st_dev):02x}", str(info.st_ino)) in held:
            group, shown = _place(str(path.relative_to(home)), runtime)
            yield group, f"lock: {shown}"


def _records() -> Iterator[tuple[str, str]]:
    for cluster in read_clusters():
        if isinstance(cluster, RecordError):
            yield "records", f"unreadable: {cluster}"
            continue
        yield cluster.name, f"record: {cluster.backend} {cluster.network} subnet {cluster.subnet}"
        for member in cluster.members.values():
            state = observed_state(member)
            yield (
                f"{cluster.name}/{member.name}",
                f"record: {state} {member.ip} {member.mac} image {member.image_digest}",
            )


def _network() -> Iterator[tuple[str, str]]:
    digest = paths.installation_digest()
    for _, name in socket.if_nameindex():
        if name.startswith(f"fb{digest}"):
            yield "network", f"link: {name}"
    for name, addresses in psutil.net_if_addrs().items():
        if name.startswith(f"fb{digest}"):
            for address in addresses:
                if address.family == socket.AF_INET:
                    yield "network", f"address: {name} {address.address}"
    for folder in paths.host_dir().glob(f"names/fb{digest}*"):
        yield "network", f"names: {folder.name}"
    if os.geteuid() == 0 and programs.find("nft"):
        done = subprocess.run(["nft", "-j", "list", "tables"], capture_output=True, check=False)
        for entry in json.loads(done.stdout)["nftables"] if done.returncode == 0 else []:
            if digest in entry.get("table", {}).get("name", ""):
                yield "network", f"nft table: {entry['table']['name']}"
