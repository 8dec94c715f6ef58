"""What an archive of a snapshot says of itself, and what is believed of it.

An archive is a tar of regular files. The first is `snapshot.json` (`Header`), the second its sha256; then comes one
member for every file that the header lists, in its order, and nothing else. A member holds the data of its file without
the holes: the header's `extents` say where it belongs. So an archive is written and read front to back, and all that
decides whether it is taken stands at its beginning.

An archive comes from anywhere. Nothing in it may name a file of this host: what does is replaced here, and every other
text is checked for what it is meant to be.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

import msgspec

from fleetbox.errors import FleetboxError, SnapshotError
from fleetbox.holder.images.store import ImageRecord
from fleetbox.holder.snapshots.store import blobs_under, check_name
from fleetbox.names import check_label
from fleetbox.records import SCHEMA, MemberRecord, MemberState
from fleetbox.shapes import UNDECODABLE
from fleetbox.sizes import format_size
from fleetbox.snapshot import Snapshot
from fleetbox.specs import (
    DEFAULT_IMAGE,
    MAX_DISK_BYTES,
    MAX_MEMBERS,
    NOWHERE,
    TEMPLATE_NAME,
    Fixture,
    check_fixture,
    check_member_spec,
)

FORMAT = 1
HEADER_MAX_BYTES = 64 << 20

_DIGEST = re.compile(r"[0-9a-f]{64}")
_ID = re.compile(r"[0-9a-f]{16}")
_FILE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_TEXT_MAX = 4096


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file: `members/MEMBER/FILE`, `blobs/DIGEST.FORMAT`, `images/DIGEST/kernel` or `images/DIGEST/initrd`.

    `extents` are (offset, length) of its data, in order; the rest of `size_bytes` is holes. `sha256` is that of the
    data in order. `backing` is the digest of the blob that a qcow2 file stands on.
    """

    path: str
    size_bytes: int
    sha256: str
    extents: tuple[tuple[int, int], ...]
    backing: str = ""

    @property
    def stored_bytes(self) -> int:
        """The size of its member in the archive."""
        return sum(length for _, length in self.extents)


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`snapshot.json` of an archive. `images` are the records of the images that the snapshot rests on."""

    format: int
    snapshot: Snapshot
    images: tuple[ImageRecord, ...]
    files: tuple[Entry, ...]


class _Format(msgspec.Struct):
    format: int


def refused(why: str, hint: str = "export the snapshot again where it came from") -> SnapshotError:
    """The error of an archive that is not taken."""
    return SnapshotError("the archive is refused", why=why, hint=hint)


def parse(data: bytes) -> Header:
    """The header, once everything in it has been checked, with what is of another host's concern left out.

    Raises SnapshotError.
    """
    try:
        found = msgspec.json.decode(data, type=_Format).format
        if found != FORMAT:
            raise refused(
                f"its format is {found}, this version knows {FORMAT}", "use a fleetbox of the version that wrote it"
            )
        header = msgspec.json.decode(data, type=Header)
    except UNDECODABLE as e:
        raise refused(f"its header cannot be understood: {e}") from e
    try:
        snapshot = _own(header.snapshot)
    except FleetboxError as e:
        raise refused(f"its header makes no sense: {e}") from e
    header = msgspec.structs.replace(header, snapshot=snapshot, images=tuple(map(_own_image, header.images)))
    _check_files(header)
    return header


def check_size(files: Iterable[Entry], max_bytes: int) -> None:
    """Raise SnapshotError when the files hold more than `max_bytes` (0: no limit)."""
    stored = sum(entry.stored_bytes for entry in files)
    if max_bytes and stored > max_bytes:
        raise SnapshotError(
            "the archive is refused",
            why=f"it holds {format_size(stored)}, {format_size(max_bytes)} are allowed",
            hint="allow more with --max-size, when you trust where it came from",
        )


def _own(snapshot: Snapshot) -> Snapshot:
    """The snapshot's record as it may stand here."""
    _require(bool(_ID.fullmatch(snapshot.id)), "id", snapshot.id)
    _require(snapshot.schema == SCHEMA, "schema of a record", str(snapshot.schema))
    _require(len(snapshot.description) <= _TEXT_MAX, "description", f"{len(snapshot.description)} characters")
    check_name(snapshot.name)
    check_label(snapshot.cluster, "cluster name")
    _require(0 < len(snapshot.members) <= MAX_MEMBERS, "number of members", str(len(snapshot.members)))
    _require(snapshot.kind == "cluster" or len(snapshot.members) == 1, "kind", snapshot.kind)
    try:
        _ = ipaddress.IPv4Network(snapshot.subnet) if snapshot.subnet else None
    except ValueError:
        _require(False, "subnet", snapshot.subnet)
    members = {name: _own_member(name, record) for name, record in snapshot.members.items()}
    blobs = blobs_under(members.values())
    if set(snapshot.blobs) != set(blobs):
        raise refused("its base disks are not those of its members")
    return msgspec.structs.replace(snapshot, members=members, blobs=blobs, files=(), folder="")


def _own_member(name: str, record: MemberRecord) -> MemberRecord:
    check_label(name, "member name")
    _require(record.name == name != TEMPLATE_NAME, "member", record.name)
    _require(bool(_ID.fullmatch(record.id)), "member's id", record.id)
    _require(not record.mac or bool(_MAC.fullmatch(record.mac)), "MAC", record.mac)
    for digest in (record.image_digest, record.base):
        _require(not digest or bool(_DIGEST.fullmatch(digest)), "digest", digest)
    _require(len(record.instance) <= 128 and record.instance.isprintable(), "instance", record.instance)
    try:
        _ = ipaddress.IPv4Address(record.ip) if record.ip else None
    except ValueError:
        _require(False, "address", record.ip)
    # Image, kernel and fixtures could name any file of this host.
    spec = msgspec.structs.replace(record.spec, image=record.image_digest or DEFAULT_IMAGE, kernel="", fixtures=())
    check_member_spec(spec)
    fixtures = tuple(Fixture(NOWHERE, check_fixture(Fixture("/", f.guest)).guest) for f in record.spec.fixtures)
    return msgspec.structs.replace(
        record,
        spec=msgspec.structs.replace(spec, fixtures=fixtures),
        state=MemberState.RUNNING if record.state is MemberState.RUNNING else MemberState.STOPPED,
        folder="",
        handle=None,
        slot=0,
        error="",
    )


def _own_image(record: ImageRecord) -> ImageRecord:
    """The image's record without its names: an archive must not take the name of an image that is here."""
    if not _DIGEST.fullmatch(record.digest):
        raise refused(f"{record.digest!r} is no digest of an image")
    for text in (record.root, record.architecture, record.boot_reason):
        if len(text) > _TEXT_MAX or not text.isprintable():
            raise refused("the record of its image makes no sense")
    return msgspec.structs.replace(
        record, names=(), source="a snapshot's archive", source_sha256="", source_stamp="", schema=SCHEMA
    )


def _require(condition: bool, what: str, value: str) -> None:
    if not condition:
        raise refused(f"{value[:80]!r} is no {what}")


def _check_files(header: Header) -> None:
    """Every file is one that the snapshot can have, none is missing, and each describes itself in a sound way."""
    snapshot, images = header.snapshot, {image.digest: image for image in header.images}
    blobs = {blob.digest: blob for blob in snapshot.blobs}
    if len(images) < len(header.images) or set(images) != set(snapshot.images):
        raise refused("its images are not those of its members")
    wanted = {f"blobs/{blob.digest}.{blob.format}" for blob in blobs.values()}
    wanted |= {
        f"images/{image.digest}/{part}"
        for image in images.values()
        if image.boot == "direct"
        for part in ("kernel", "initrd")
    }
    seen: set[str] = set()
    for entry in header.files:
        if entry.path in seen:
            raise refused(f"it lists {entry.path[:200]!r} twice")
        seen.add(entry.path)
        if entry.path not in wanted and not _is_member_file(entry.path, snapshot):
            raise refused(f"{entry.path[:200]!r} has no place in a snapshot")
        if not _DIGEST.fullmatch(entry.sha256):
            raise refused(f"{entry.path} has no sha256")
        image = images.get(entry.path.removeprefix("blobs/").removesuffix(".raw"))
        if image and entry.size_bytes != image.size_bytes:
            raise refused(f"{entry.path} has another size than its image")
        _check_extents(entry)
        _check_backing(entry, snapshot)
    if missing := wanted - seen:
        raise refused(f"it lacks {min(missing)}")
    if without := [name for name in snapshot.members if not any(p.startswith(f"members/{name}/") for p in seen)]:
        raise refused(f"it holds nothing of {without[0]}")


def _is_member_file(path: str, snapshot: Snapshot) -> bool:
    folder, _, rest = path.partition("/")
    member, _, file = rest.partition("/")
    return folder == "members" and member in snapshot.members and bool(_FILE.fullmatch(file))


def _check_extents(entry: Entry) -> None:
    end = 0
    for offset, length in entry.extents:
        if offset < end or length <= 0:
            raise refused(f"the extents of {entry.path} are out of order")
        end = offset + length
    if not end <= entry.size_bytes <= MAX_DISK_BYTES:
        raise refused(f"{entry.path} is larger than it says")


def _check_backing(entry: Entry, snapshot: Snapshot) -> None:
    """A member's qcow2 disk stands on that member's own base, a template's on the image's."""
    if not entry.backing:
        if entry.path.startswith("blobs/") and entry.path.endswith(".qcow2"):
            raise refused(f"{entry.path} stands on nothing")
        return
    folder, _, rest = entry.path.partition("/")
    if folder == "members":
        member = snapshot.members[rest.partition("/")[0]]
        right = member.base or member.image_digest
    else:
        right = next((b.backing for b in snapshot.blobs if rest == f"{b.digest}.{b.format}"), "")
    if not entry.path.endswith(".qcow2") or entry.backing != right:
        raise refused(f"{entry.path} does not stand on its own base disk")
