"""Which backend a cluster gets, and why.

The order: what the user said (flag, then `FLEETBOX_BACKEND`), what the existing cluster was made with, what suits the
host: cloud-hypervisor where KVM works, else qemu (ADR 12). A backend's module is imported only when it is chosen.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from typing import cast

from fleetbox.backends.base import Backend, BackendEnvironment, CreateBackend
from fleetbox.errors import ConflictError, UsageError

_MODULES = {
    "cloud-hypervisor": "fleetbox.backends.cloud_hypervisor",
    "qemu": "fleetbox.backends.qemu",
    "firecracker": "fleetbox.backends.firecracker",
    "fake": "fleetbox.backends.fake",
    "remote": "fleetbox.backends.remote",
}


@dataclass(frozen=True)
class Choice:
    """A backend's name and the reason for it, in words.

    `otherwise` is what to take when the chosen one turns out not to be usable, empty when it was asked for.
    """

    name: str
    reason: str
    otherwise: str = ""


def names() -> tuple[str, ...]:
    """All backends, by name."""
    return tuple(_MODULES)


def choose(flag: str = "", recorded: str = "") -> Choice:
    """Decide on a backend. Blocks for a second at most, the first time on a host.

    Raises UsageError for an unknown one, ConflictError when an existing cluster was made with another.
    """
    wanted, reason = (flag, "--backend") if flag else (os.environ.get("FLEETBOX_BACKEND", ""), "FLEETBOX_BACKEND")
    if wanted and wanted not in _MODULES:
        raise UsageError(f"there is no backend {wanted!r}", hint=f"choose one of {', '.join(_MODULES)}")
    if recorded:
        if flag and flag != recorded:
            raise ConflictError(
                f"the cluster was made with the backend {recorded}, not {flag}",
                hint="leave --backend out, or give the new cluster another name",
            )
        return Choice(recorded, "the cluster was made with it")
    if wanted:
        return Choice(wanted, reason)
    return _auto()


def _auto() -> Choice:
    """cloud-hypervisor where KVM works, qemu where guests have to be emulated."""
    from fleetbox.backends.qemu import accelerator

    found = accelerator.probe()
    if found.name != "kvm":
        return Choice("qemu", f"auto: it emulates, as KVM is not used: {found.reason}")
    return Choice("cloud-hypervisor", f"auto: KVM works: {found.reason}", otherwise="qemu")


def create(name: str, environment: BackendEnvironment) -> Backend:
    """Import and make the backend. Raises UsageError for an unknown name."""
    if name not in _MODULES:
        raise UsageError(f"there is no backend {name!r}", hint=f"choose one of {', '.join(_MODULES)}")
    factory = cast("CreateBackend", importlib.import_module(_MODULES[name]).create_backend)
    return factory(environment)
