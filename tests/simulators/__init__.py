"""Stand-ins for hypervisors that need KVM: the real programs' command lines and APIs, with guests that QEMU emulates.

The executables `cloud-hypervisor` and `firecracker` of this folder refuse what the real ones refuse: unknown options
and fields, requests in the wrong order or state. Every request is checked against the project's own table of what it
uses, and against the published API description where `shared/specs` is found beside the checkout.

`FLEETBOX_SIMULATOR_FAULTS` makes one fail, see `tests.simulators.faults`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

FOLDER = Path(__file__).parent
PROGRAMS = {
    "cloud-hypervisor": ("FLEETBOX_CLOUD_HYPERVISOR", FOLDER / "cloud-hypervisor"),
    "firecracker": ("FLEETBOX_FIRECRACKER", FOLDER / "firecracker"),
}


def stand_in(backend: str, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The settings by which a backend takes its simulator: none for the others, nor where a program is named already.

    Guest code is emulated then, and the firmware that is named is not looked at.
    """
    variable, program = PROGRAMS.get(backend, ("", FOLDER))
    if not variable or environ.get(variable):
        return {}
    emulated = {"FLEETBOX_ACCELERATOR": "tcg", "FLEETBOX_HYPERVISOR_FIRMWARE": str(program)}
    return {variable: str(program), **emulated}
