"""The catalog: which pinned cloud image, and which release of the distribution's archive, an alias stands for."""

from __future__ import annotations

import functools
import importlib.resources
import platform

import msgspec

_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


class CloudImage(msgspec.Struct, frozen=True):
    """A published disk image, pinned by the digest of the file as it is downloaded."""

    url: str
    sha256: str


class Entry(msgspec.Struct, frozen=True):
    """What an alias stands for: a cloud image per architecture, and the archive's suite when it can be built from
    there.
    """

    snapshot: str
    images: dict[str, CloudImage]
    suite: str = ""


def host_architecture() -> str:
    """This host's architecture in Debian's words: amd64, arm64."""
    return _MACHINES.get(platform.machine(), platform.machine())


@functools.cache
def entries() -> dict[str, Entry]:
    """Every alias of the catalog."""
    data = importlib.resources.files("fleetbox.holder.images").joinpath("catalog.json").read_bytes()
    return msgspec.json.decode(data, type=dict[str, Entry])
