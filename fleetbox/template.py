"""A template as users, client and holder see it: the saved machine that members are cloned from."""

from __future__ import annotations

from typing import Literal

import msgspec

from fleetbox.records import SCHEMA
from fleetbox.shapes import Digest, OptionalDigest


class Origin(msgspec.Struct, frozen=True):
    """Who a template was when it was saved, and each of its clones is when it wakes. `host_key` is the public one."""

    cluster: str
    ip: str
    mac: str
    prefix_length: int
    gateway: str
    dns: tuple[str, ...]
    host_key: str


class Template(msgspec.Struct, frozen=True):
    """One template, which is also its record `template.json`. Times are Unix seconds.

    `key` is the digest of everything that shaped it; `base` that of its disk among the blobs, empty where clones get a
    whole copy of it. `image` is the image's name as it was asked for, empty where a backend needs none. `control_line`
    says that a clone can be told by one who it is. `stored_bytes` is what it occupied when it was made, in `folder`.
    It may vanish at any time: it is a cache, and made again when it is wanted.
    """

    key: Digest
    created_at: float
    image: str
    image_digest: OptionalDigest
    backend: str
    accelerator: str
    cpus: int
    memory_bytes: int
    disk_bytes: int
    control_line: bool
    origin: Origin
    disk_format: Literal["raw", "qcow2"] = "raw"
    base: OptionalDigest = ""
    stored_bytes: int = 0
    used_at: float = 0.0
    folder: str = ""
    schema: int = SCHEMA
