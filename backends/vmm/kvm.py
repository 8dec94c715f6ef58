"""KVM, for the hypervisors that cannot do without: whether it works, and what to say where it does not.

`FLEETBOX_ACCELERATOR` says how guest code is run and so leaves the probe out; whether that is true, the program itself
finds out when it starts. (The tests' simulators emulate: there it says `tcg`.)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from fleetbox.backends.qemu import accelerator as probing
from fleetbox.backends.qemu.accelerator import OVERRIDE, Accelerator
from fleetbox.errors import HostError

__all__ = ["NESTED", "OVERRIDE", "accelerator", "nested", "require"]

NESTED = tuple(Path(f"/sys/module/kvm_{vendor}/parameters/nested") for vendor in ("intel", "amd"))


def require(program: str, environ: Mapping[str, str] = os.environ) -> Accelerator:
    """How that program runs guest code here. Blocks as `accelerator.probe` does. Raises HostError without KVM."""
    found = probing.probe(environ)
    if found.kvm_works is False:
        raise HostError(
            f"{program} needs KVM, which does not work here",
            why=found.reason,
            hint="use --backend qemu, which emulates where it has to; `fleetbox doctor` says more",
        )
    return found


def accelerator(environ: Mapping[str, str] = os.environ) -> str:
    """`kvm`, or `tcg` where `FLEETBOX_ACCELERATOR` says that the program emulates."""
    return "tcg" if environ.get(OVERRIDE) == "tcg" else "kvm"


def nested(parameters: Iterable[Path] = NESTED) -> bool:
    """Whether guests can use KVM themselves, as the host's module says."""
    return any(parameter.read_text().strip() in ("1", "Y") for parameter in parameters if parameter.exists())
