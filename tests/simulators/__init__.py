"""Stand-ins for hypervisors that need KVM: the real programs' command lines and APIs, with guests that QEMU emulates.

The executables `cloud-hypervisor` and `firecracker` of this folder refuse what the real ones refuse: unknown options
and fields, requests in the wrong order or state. Every request is checked against the project's own table of what it
uses, and against the published API description where `shared/specs` is found beside the checkout.

`FLEETBOX_SIMULATOR_FAULTS` makes one fail, see `tests.simulators.faults`.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
CLOUD_HYPERVISOR = FOLDER / "cloud-hypervisor"
EMULATED = "FLEETBOX_ACCELERATOR"  # set to "tcg", it tells a backend that its program emulates
