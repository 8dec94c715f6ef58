"""A snapshot as users, client and holder see it: the saved state of a member, or of a whole cluster at one instant."""

from __future__ import annotations

from typing import Literal

import msgspec

from fleetbox.records import SCHEMA, MemberRecord
from fleetbox.shapes import Digest, Id, Label, MemberFile, OptionalDigest, Word

Kind = Literal["member", "cluster"]


class Blob(msgspec.Struct, frozen=True):
    """An immutable disk that a snapshot's disks stand on; `digest` is the sha256 of its file.

    `image` says that it is the disk of an image, which has a kernel beside it; else it is a template's. `backing` is
    the digest of the blob that it stands on itself, empty for none.
    """

    digest: Digest
    format: Literal["raw", "qcow2"]
    image: bool
    backing: OptionalDigest = ""


class SnapshotFile(msgspec.Struct, frozen=True):
    """One file of the snapshot's folder; `path` is `member/file`. A sparse file stores less than its size."""

    path: MemberFile
    size_bytes: int
    stored_bytes: int


class Snapshot(msgspec.Struct, frozen=True):
    """One snapshot, which is also its record `snapshot.json`. `created_at` is Unix seconds.

    `cluster` is where it was taken; `subnet`, `backend` and `accelerator` are that cluster's. `identity` is what the
    saved device state is tied to: it can only be restored where that is the same. `members` are the records as they
    were, by name; `blobs` every base disk that theirs stand on, each after the one that it stands on itself. One that
    is `bound_to` a cluster, by its id, goes with it. `folder` is where it was made.
    """

    id: Id
    name: str
    description: str
    kind: Kind
    created_at: float
    cluster: str
    subnet: str
    backend: str
    accelerator: str
    identity: dict[str, str]
    members: dict[Label, MemberRecord]
    blobs: tuple[Blob, ...] = ()
    files: tuple[SnapshotFile, ...] = ()
    bound_to: Word = ""
    folder: str = ""
    schema: int = SCHEMA

    @property
    def size_bytes(self) -> int:
        """What its files hold, holes included."""
        return sum(file.size_bytes for file in self.files)

    @property
    def stored_bytes(self) -> int:
        """What its files occupied when it was taken, base disks left out."""
        return sum(file.stored_bytes for file in self.files)

    @property
    def images(self) -> tuple[str, ...]:
        """Digests of the images that it rests on."""
        return tuple(blob.digest for blob in self.blobs if blob.image)
