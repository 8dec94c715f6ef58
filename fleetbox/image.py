"""An image as users, client and holder see it."""

from __future__ import annotations

from typing import Literal

import msgspec


class Image(msgspec.Struct, frozen=True):
    """An immutable base disk with its kernel. Paths are absolute; `created_at` is Unix seconds.

    `digest` is the sha256 of `disk`, which is always raw and mostly sparse: `size_bytes` is what a guest sees,
    `stored_bytes` what it occupies here. With `boot` "direct" a machine starts from `kernel` and `initrd` with `root`
    ("UUID=…") as the value of `root=`; with "firmware" these are empty and `boot_reason` says why.
    """

    digest: str
    names: tuple[str, ...]
    source: str
    architecture: str
    size_bytes: int
    stored_bytes: int
    created_at: float
    disk: str
    kernel: str
    initrd: str
    root: str
    boot: Literal["direct", "firmware"]
    boot_reason: str
    has_systemd: bool
