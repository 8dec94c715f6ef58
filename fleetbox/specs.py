"""What a user asks for: a member's resources and a cluster's members.

`check_*` functions raise UsageError for what can never work; what this host cannot do is the holder's to say.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from fleetbox.errors import UsageError
from fleetbox.names import check_label
from fleetbox.sizes import GIB, MIB, TIB, format_size

DEFAULT_IMAGE = "debian-12"
MAX_MEMBERS = 200
MIN_MEMORY_BYTES = 128 * MIB
MAX_MEMORY_BYTES = 4 * TIB
MIN_DISK_BYTES = 64 * MIB
MAX_DISK_BYTES = 64 * TIB
NOWHERE = "/nonexistent"
"""The host folder of a fixture that came with a snapshot from elsewhere: only its packed disk is here."""

TEMPLATE_NAME = "fleetbox-template"
"""The name of the machine that is booted to become a template, while it is; no member may be called that."""

BootMode = Literal["auto", "direct", "firmware"]
NetworkMode = Literal["auto", "host", "private"]


class Fixture(msgspec.Struct, frozen=True):
    """A host folder shown read-only in the guest. Both paths are absolute."""

    host: str
    guest: str


class MemberSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One member's resources. `disk_bytes` 0 keeps the image's size; a disk can grow, never shrink."""

    image: str = DEFAULT_IMAGE
    cpus: int = 2
    memory_bytes: int = 1 * GIB
    disk_bytes: int = 0
    boot: BootMode = "auto"
    kernel: str = ""
    fixtures: tuple[Fixture, ...] = ()


def check_member_spec(spec: MemberSpec, *, host_cpus: int | None = None) -> MemberSpec:
    """Return `spec` when it can work; raise UsageError for absurd values or fixtures and kernels that are not there."""
    if spec.cpus < 1 or (host_cpus is not None and spec.cpus > host_cpus):
        raise UsageError(
            f"a member cannot have {spec.cpus} cpus",
            why=f"this host has {host_cpus}" if spec.cpus > 0 and host_cpus else "it needs at least one",
            hint=f"use --cpus 1 to {host_cpus}" if host_cpus else "use --cpus 1 or more",
        )
    _check_range("memory", spec.memory_bytes, MIN_MEMORY_BYTES, MAX_MEMORY_BYTES)
    if spec.disk_bytes:
        _check_range("disk", spec.disk_bytes, MIN_DISK_BYTES, MAX_DISK_BYTES)
    if not spec.image:
        raise UsageError("no image is named", hint="see `fleetbox image ls` for those that are known")
    if spec.kernel and not Path(spec.kernel).is_file():
        raise UsageError(f"there is no kernel file {spec.kernel}", hint="--kernel takes a file on this host")
    for fixture in spec.fixtures:
        check_fixture(fixture)
    guests = [f.guest for f in spec.fixtures]
    if len(set(guests)) < len(guests):
        raise UsageError("two fixtures share one guest path", hint="give every --fixture its own guest folder")
    return spec


def _check_range(what: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise UsageError(
            f"a member cannot have {format_size(value)} of {what}",
            why=f"{what} must be {format_size(low)} to {format_size(high)}",
            hint=f"for example --{what} 1G",
        )


def absolute_image(image: str) -> str:
    """An image that is named by a path of the caller's, as an absolute path: the holder works in another folder."""
    is_path = "://" not in image and (image.startswith(("~", ".")) or "/" in image)
    return str(Path(image).expanduser().absolute()) if is_path else image


def parse_fixture(text: str) -> Fixture:
    """`HOST:GUEST` as a Fixture with an absolute host path; raises UsageError."""
    host, colon, guest = text.rpartition(":")
    if not colon or not host:
        raise UsageError(
            f"{text!r} is not a fixture",
            why="it needs a host folder and a guest path",
            hint="for example --fixture ./data:/srv/data",
        )
    # Path.expanduser raises for an unknown user; here that is a folder which does not exist.
    folder = Path(os.path.expanduser(host)).absolute()  # noqa: PTH111
    return check_fixture(Fixture(str(folder), guest.rstrip("/") or "/"))


def check_fixture(fixture: Fixture) -> Fixture:
    """Return the fixture when its host folder exists and its guest path is a plain absolute path; else UsageError."""
    if not Path(fixture.host).is_dir():
        raise UsageError(
            f"there is no folder {fixture.host} for the fixture", hint="a fixture is a folder on this host"
        )
    parts = fixture.guest.split("/")
    if (
        not fixture.guest.startswith("/")
        or not {"", ".", ".."}.isdisjoint(parts[1:])
        or not fixture.guest.isprintable()
        or any(c in fixture.guest for c in " \\,")
    ):
        raise UsageError(
            f"{fixture.guest!r} is not a guest path for a fixture",
            why="it must be an absolute path below /, without spaces or '..'",
            hint="for example --fixture ./data:/srv/data",
        )
    return fixture


def member_names(count: int | None, names: Sequence[str], taken: Sequence[str] = ()) -> list[str]:
    """The names that a cluster of `count` members gets: the given ones, then `node-1`, `node-2`, … as needed.

    Raises UsageError for a count that is no sensible number, for a name given twice, and for an invalid name.
    """
    for name in names:
        check_label(name, "member name")
        if name == TEMPLATE_NAME:
            raise UsageError(f"the name {name!r} is reserved", hint="choose another one")
    if len(set(names)) < len(names):
        raise UsageError(
            "a member name is given twice", why=", ".join(sorted({n for n in names if list(names).count(n) > 1}))
        )
    wanted = len(names) if count is None else count
    if wanted < max(1, len(names)) or wanted > MAX_MEMBERS:
        raise UsageError(
            f"a cluster cannot have {wanted} members",
            why=f"it takes 1 to {MAX_MEMBERS}" if not 1 <= wanted <= MAX_MEMBERS else f"{len(names)} names are given",
            hint="for example --members 3",
        )
    result = list(names)
    number = 0
    while len(result) < wanted:
        number += 1
        candidate = f"node-{number}"
        if candidate not in result and candidate not in taken:
            result.append(candidate)
    return result
