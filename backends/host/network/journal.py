"""The write-ahead record of one network: `networks/<bridge>.json`.

It is on disk (fsynced) before the first resource is made and goes when the last one's removal has been verified, so it
always names at least what is there. The bridge, its table and the resolver's folder follow from the record's existence;
taps and rules in other people's chains are added before they are made. The uplinks' flags, which networks share, have
a record of their own (`forwarding`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from filelock import FileLock

from fleetbox import paths
from fleetbox.backends.host.network import naming
from fleetbox.errors import NotFoundError, RecordError
from fleetbox.identity import ProcessIdentity
from fleetbox.records import SCHEMA, read_record, unsound
from fleetbox.shapes import Interface, Label, Subnet, Word

T = TypeVar("T")


class ForeignRule(msgspec.Struct, frozen=True):
    """A rule of ours in a chain that is not ours, found again by its comment `tag`."""

    family: str
    table: str
    chain: str
    tag: str


class NetworkRecord(msgspec.Struct, frozen=True):
    """One network's host resources. `owner` is the holder; `namespace` the inode of the network namespace they are in,
    which with `private` is the cluster's own.

    `taps` maps members' slots (`tap_key`) to interfaces. `resolver` is empty while dnsmasq is being started: it is then
    found by its argv.
    """

    cluster: Label
    bridge: Interface
    table: str
    owner: ProcessIdentity
    boot_id: Word
    namespace: int
    subnet: Subnet
    schema: int = SCHEMA
    private: bool = False
    taps: dict[str, str] = msgspec.field(default_factory=dict)
    rules: tuple[ForeignRule, ...] = ()
    resolver: ProcessIdentity | None = None


def tap_key(member: str, slot: int = 0) -> str:
    """What a member's interface is filed under: its name, in slot 1 `name/1`."""
    return f"{member}/{slot}" if slot else member


def member_and_slot(key: str) -> tuple[str, int]:
    """The member and the slot of a `tap_key`."""
    member, _, slot = key.partition("/")
    return member, {"": 0, "1": 1}.get(slot, -1)


def path_of(bridge: str) -> Path:
    return paths.networks_dir() / f"{bridge}.json"


def read_network(bridge: str) -> NetworkRecord | None:
    """The record of a bridge, None without one. Raises RecordError when it cannot be understood.

    Everything that it names is removed in the end, so it may name nothing but what this network can have made.
    """
    path = path_of(bridge)
    try:
        record = read_record(path, NetworkRecord)
    except NotFoundError:
        return None
    if record.bridge != bridge or naming.bridge_name(record.cluster) != bridge:
        raise unsound(path, f"it is of the bridge {record.bridge} of {record.cluster}")
    if record.table != naming.table_name(bridge):
        raise unsound(path, f"its table is called {record.table!r}")
    for key, tap in record.taps.items():
        member, slot = member_and_slot(key)
        if slot not in (0, 1) or tap != naming.tap_name(record.cluster, member, slot):
            raise unsound(path, f"the interface of {key!r} is called {tap!r}")
    for rule in record.rules:
        if not rule.tag.startswith(f"fleetbox:{bridge}:"):
            raise unsound(path, f"it has a rule of {rule.tag!r}")
    return record


def read_networks() -> Iterator[NetworkRecord | RecordError]:
    """Every network of this installation; one that cannot be read comes as its error and hides no other."""
    for path in sorted(paths.networks_dir().glob("fb*.json")):
        try:
            record = read_network(path.stem)
        except RecordError as e:
            yield e
            continue
        if record is not None:
            yield record


class Journal:
    """The record that is being kept: change it *before* making a resource, and *after* having removed one.

    Only the owner keeps one. The one field that others add to is `rules` (`add_rules`), so those are taken from disk.
    """

    def __init__(self, record: NetworkRecord) -> None:
        self.record = record

    def write(self, **changes: Any) -> None:
        """Change fields of the record and put it on disk. Raises RecordError."""
        with _locked():
            on_disk = read_network(self.record.bridge)
            rules = union(on_disk.rules if on_disk else (), changes.pop("rules", self.record.rules))
            record = msgspec.structs.replace(self.record, rules=rules, **changes)
            _write(record)
        self.record = record

    def reload(self) -> NetworkRecord:
        """The record with what others have added."""
        self.record = read_network(self.record.bridge) or self.record
        return self.record

    def remove(self) -> None:
        """Everything is gone: drop the record."""
        with _locked():
            path_of(self.record.bridge).unlink(missing_ok=True)

    @contextlib.contextmanager
    def forgetting(self) -> Iterator[bool]:
        """Drop the record at the end, and meanwhile what goes with it; False when somebody has written another.

        A private network's new holder has a namespace, and so a lock, of its own: it waits here with its first write.
        """
        with _locked():
            same = read_network(self.record.bridge) == self.record
            yield same
            if same:
                path_of(self.record.bridge).unlink(missing_ok=True)


def union(first: tuple[T, ...], second: tuple[T, ...]) -> tuple[T, ...]:
    """Both, in order, without duplicates."""
    return tuple(dict.fromkeys((*first, *second)))


def add_rules(bridge: str, rules: tuple[ForeignRule, ...]) -> None:
    """Record rules that somebody else than the owner is about to make; nothing when the record is gone."""
    with _locked():
        record = read_network(bridge)
        if record is not None and not set(rules) <= set(record.rules):
            _write(msgspec.structs.replace(record, rules=union(record.rules, rules)))


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    paths.networks_dir().mkdir(mode=0o700, parents=True, exist_ok=True)
    with FileLock(paths.networks_dir() / ".lock"):
        yield


def _write(record: NetworkRecord) -> None:
    path = path_of(record.bridge)
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(record), indent=1))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _fsync_folder(path.parent)
    except OSError as e:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise RecordError(
            f"the network record {path} cannot be written",
            why=e.strerror or str(e),
            hint="free some space, or check the folder's owner and mode",
        ) from e


def _fsync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
