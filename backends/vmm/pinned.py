"""Hypervisor programs: the one that the user names, the one of the host, or the pinned release in the cache.

The order: the environment variable, PATH, the cache. What is on PATH in a version that fleetbox does not know is passed
over; what the environment names is taken or refused. The pinned release is downloaded on first use and checked by its
sha256 (`pinned.json`).
"""

from __future__ import annotations

import functools
import importlib.resources
import os
import platform
import re
import tarfile
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from fleetbox import paths
from fleetbox.backends.base import timeout_scale
from fleetbox.backends.host import process, programs
from fleetbox.backends.host.files import worker
from fleetbox.backends.host.files.download import discard, download
from fleetbox.backends.host.files.turns import one_at_a_time
from fleetbox.backends.host.files.worker import OnEvent, Stop
from fleetbox.errors import FleetboxError, HostError

MAX_PROGRAM_BYTES = 256 << 20
_CHUNK = 1 << 20
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_VERSION = re.compile(r"\bv?(\d+\.\d+(?:\.\d+)?)\b")

OVERRIDES = {"cloud-hypervisor": "FLEETBOX_CLOUD_HYPERVISOR", "firecracker": "FLEETBOX_FIRECRACKER"}


class Release(msgspec.Struct, frozen=True):
    """A published file. With a `member` it is a tar archive, of which that one file is taken."""

    url: str
    sha256: str
    member: str = ""


class Pin(msgspec.Struct, frozen=True):
    """A program's pinned version with its file per architecture, and which other versions can be used.

    `oldest` is the first, `before` the first that is too new (empty: none is).
    """

    version: str
    files: dict[str, Release]
    oldest: str = ""
    before: str = ""


@dataclass(frozen=True)
class Binary:
    """A program that was tried; `source` says in words how it was found."""

    path: Path
    version: str
    source: str


@functools.cache
def pins() -> dict[str, Pin]:
    """Every pinned program."""
    data = importlib.resources.files("fleetbox.backends.vmm").joinpath("pinned.json").read_bytes()
    return msgspec.json.decode(data, type=dict[str, Pin])


def find(name: str, environ: Mapping[str, str] = os.environ) -> Binary | None:
    """The hypervisor as it is here; None when it would have to be downloaded. Blocks for some milliseconds.

    Raises HostError for one that the environment names and that cannot be used.
    """
    override = OVERRIDES[name]
    if named := environ.get(override):
        path = programs.find(named)
        if path is None:
            there = Path(named).exists()
            raise HostError(
                f"{named} is not executable" if there else f"there is no {name} {named}",
                why=f"{override} names it",
                hint=f"make it executable: chmod +x {named}" if there else f"correct or unset {override}",
            )
        return Binary(path, _require_known(name, path), override)
    if path := programs.find(name):
        try:
            return Binary(path, _require_known(name, path), "PATH")
        except HostError:
            pass  # `passed_over` tells why
    cached = cached_path(name)
    return Binary(cached, _require_known(name, cached), "cache") if os.access(cached, os.X_OK) else None


def passed_over(name: str) -> str:
    """Why the program on PATH is not used, in words; empty when there is none, or it is."""
    path = programs.find(name)
    if path is not None:
        try:
            _require_known(name, path)
        except HostError as e:
            return str(e)
    return ""


async def ensure(name: str, on_event: OnEvent, environ: Mapping[str, str] = os.environ) -> Binary:
    """The hypervisor, downloaded when it is not here: once, however many ask. Raises HostError."""
    found = await worker.run(lambda _: find(name, environ))
    if found is not None:
        return found
    path = await ensure_file(name, on_event)
    return Binary(path, await worker.run(lambda _: _require_known(name, path)), "cache")


def cached_path(name: str) -> Path:
    """Where the pinned file of this host's architecture is, once it has been downloaded."""
    release = _release(name)
    # The digest is in the name: another pin of the same version is another file.
    return paths.bin_dir() / f"{name}-{pins()[name].version}-{release.sha256[:12]}"


async def ensure_file(name: str, on_event: OnEvent) -> Path:
    """The pinned file, executable, in the cache; for what has no version to ask for, such as firmware, as well."""
    path, release = cached_path(name), _release(name)
    if path.exists():
        return path
    what = f"{name} {pins()[name].version}"
    try:
        async with one_at_a_time(path.with_name(f"{path.name}.lock"), what, on_event):
            if not path.exists():
                part = await download(release.url, release.sha256, on_event)
                await worker.run(lambda stop: _land(part, release.member, path, stop))
                discard(part)
    except (FleetboxError, OSError) as e:
        override = OVERRIDES.get(name)
        further = e.hint if isinstance(e, FleetboxError) else ""
        raise HostError(
            f"{what} cannot be had",
            why=str(e),
            hint=f"install {name}, or name one by {override}; or: {further}" if override else further,
        ) from e
    return path


def _release(name: str) -> Release:
    architecture = _ARCHITECTURES.get(platform.machine(), platform.machine())
    release = pins()[name].files.get(architecture)
    if release is None:
        raise HostError(f"there is no {name} for {architecture}", hint="choose another with --backend")
    return release


def _land(part: Path, member: str, target: Path, stop: Stop) -> None:
    """Make `target` of a download whose digest was found right; it appears whole and executable, or not at all."""
    fd, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(fd, "wb") as file:
            if member:
                _extract(part, member, file, stop)
            else:
                with part.open("rb") as source:
                    _copy(source, file, stop)
            os.fchmod(file.fileno(), 0o755)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _extract(archive: Path, member: str, target: BinaryIO, stop: Stop) -> None:
    try:
        with tarfile.open(archive) as tar:
            found = tar.getmember(member)
            source = tar.extractfile(found) if found.isreg() else None
            if source is None:
                raise HostError(f"the archive's {member} is no file")
            _copy(source, target, stop)
    except KeyError:
        raise HostError(f"the archive has no {member}") from None
    except (tarfile.TarError, EOFError, zlib.error) as e:
        raise HostError("the archive cannot be read", why=str(e)) from e


def _copy(source: object, target: BinaryIO, stop: Stop) -> None:
    total = 0
    while chunk := source.read(_CHUNK):  # type: ignore[attr-defined]
        stop.check()
        total += len(chunk)
        if total > MAX_PROGRAM_BYTES:
            raise HostError("the file is larger than any hypervisor")
        target.write(chunk)


def _require_known(name: str, path: Path) -> str:
    """The version of a program. Raises HostError when it does not tell one that fleetbox knows."""
    version = _version_of(name, path, path.stat().st_mtime_ns)
    pin = pins()[name]
    if _numbers(version) < _numbers(pin.oldest) or (pin.before and _numbers(version) >= _numbers(pin.before)):
        known = f"{pin.oldest} or newer" + (f", before {pin.before}" if pin.before else "")
        raise HostError(
            f"{path} is {name} {version}",
            why=f"fleetbox knows {known}",
            hint=f"install {pin.version}, or leave {OVERRIDES[name]} and PATH to the pinned one",
        )
    return version


@functools.lru_cache(maxsize=16)
def _version_of(name: str, path: Path, _mtime_ns: int) -> str:
    hint = f"correct or unset {OVERRIDES[name]}"
    try:
        said = process.run_blocking([str(path), "--version"], timeout_s=10 * timeout_scale()).decode(errors="replace")
    except FleetboxError as e:
        raise HostError(f"{path} is not a {name} that runs", why=e.why or str(e), hint=hint) from e
    first = said.strip().split("\n", 1)[0]
    found = _VERSION.search(first)
    if found is None or name.replace("-", " ") not in first.lower().replace("-", " "):
        raise HostError(f"{path} is not a {name}", why=f"asked for its version it said {first[:80]!r}", hint=hint)
    return found[1]


def _numbers(version: str) -> tuple[int, ...]:
    numbers = tuple(int(part) for part in version.split("."))
    return numbers + (0,) * (3 - len(numbers))
