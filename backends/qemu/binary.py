"""The QEMU program of this host: where it is, its version, what it accepts."""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from fleetbox.backends.base import timeout_scale
from fleetbox.backends.host import process, programs
from fleetbox.backends.host.process import ProgramFailed
from fleetbox.errors import FleetboxError, HostError
from fleetbox.shapes import UNDECODABLE

OVERRIDE = "FLEETBOX_QEMU"
MACHINE = "q35" if platform.machine() == "x86_64" else "virt"
OLDEST = (5, 2)

# What a machine's process never needs: seccomp refuses it, whatever a guest makes QEMU do.
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

_QUIT = b'{"execute":"qmp_capabilities"}{"execute":"quit"}'


@dataclass(frozen=True)
class Qemu:
    """A QEMU that was tried: `version` is (major, minor, micro); `sandbox` says whether it can confine itself."""

    path: Path
    version: tuple[int, int, int]
    sandbox: bool

    @property
    def version_text(self) -> str:
        return ".".join(str(part) for part in self.version)


def find(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Where QEMU is: `FLEETBOX_QEMU` (a path or a name), else on PATH; None when it is not there."""
    return programs.find(environ.get(OVERRIDE) or programs.QEMU)


def require(environ: Mapping[str, str] = os.environ) -> Qemu:
    """The host's QEMU, tried once. Blocks for some 100 ms. Raises HostError when it is missing, broken or too old."""
    path = find(environ)
    if path is None:
        if override := environ.get(OVERRIDE):
            raise HostError(
                f"there is no QEMU {override}", why=f"{OVERRIDE} names it", hint=f"correct or unset {OVERRIDE}"
            )
        raise programs.missing(programs.QEMU)
    qemu = _examine(path, path.stat().st_mtime_ns)
    if qemu.version[:2] < OLDEST:
        raise HostError(
            f"QEMU {qemu.version_text} is too old",
            why=f"fleetbox needs {OLDEST[0]}.{OLDEST[1]} or newer; this is {path}",
            hint=f"install a newer one, or name it by {OVERRIDE}",
        )
    return qemu


@functools.lru_cache(maxsize=4)
def _examine(path: Path, _mtime_ns: int) -> Qemu:
    none = ("-machine", "none")
    try:
        return Qemu(path, try_start(path, (*none, "-sandbox", SANDBOX)), sandbox=True)
    except HostError:
        return Qemu(path, try_start(path, none), sandbox=False)  # built without seccomp, or a host that denies it


def try_start(path: Path, options: Sequence[str]) -> tuple[int, int, int]:
    """Start QEMU with a machine that runs nothing and quit it at once; returns the version of its QMP greeting.

    Blocks for some 50 ms. Raises HostError with QEMU's own words when it does not start.
    """
    argv = [str(path), *options, "-nodefaults", "-no-user-config", "-display", "none", "-S", "-qmp", "stdio"]
    try:
        output = process.run_blocking(argv, stdin=_QUIT, timeout_s=20 * timeout_scale())
        greeting: dict[str, Any] = msgspec.json.decode(output.splitlines()[0])
        version = greeting["QMP"]["version"]["qemu"]
        return version["major"], version["minor"], version["micro"]
    except ProgramFailed as e:
        # The first line is the cause; an abort adds an assertion after it.
        why = e.details[0].removeprefix(f"{path.name}: ") if e.details else e.why
        raise HostError(f"{path} does not start a machine", why=why, hint="run `fleetbox doctor`") from e
    except OSError as e:
        raise HostError(f"{path} cannot be run", why=e.strerror or str(e), hint="run `fleetbox doctor`") from e
    except (*UNDECODABLE, LookupError, TypeError) as e:
        raise HostError(f"{path} is not a QEMU", why="it did not greet as one", hint=f"correct {OVERRIDE}") from e
    except FleetboxError as e:
        raise HostError(f"{path} does not start a machine", why=str(e), hint="run `fleetbox doctor`") from e
