"""What is asked of firecracker's API for one machine, in the order in which it takes it.

Bodies follow `src/firecracker/swagger/firecracker.yaml` of its sources. It refuses fields that it does not know, and
resources once the machine has started; a snapshot it loads before any other resource than the logger.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from fleetbox.backends.base import DirectBoot, Disk, VMConfig
from fleetbox.sizes import MIB

INTERFACE = "eth0"

# `reboot=k`: a reboot, which is all that Ctrl-Alt-Del asks for, resets by the keyboard controller, and that ends the
# process; `panic=1` makes a panic end so, too. The rest keeps the kernel from looking for what is not there
# (docs/api_requests/actions.md; DEFAULT_KERNEL_CMDLINE in vmm_config/boot_source.rs).
HAS_KEYBOARD = platform.machine() == "x86_64"
CMDLINE = "reboot=k panic=1 pci=off i8042.noaux i8042.nomux i8042.dumbkbd" if HAS_KEYBOARD else "panic=1 pci=off"
MAX_CMDLINE_BYTES = 2048  # CMDLINE_MAX_SIZE in arch/


class Request(NamedTuple):
    """A request with its body."""

    method: str
    path: str
    body: dict[str, object]


def logger(log: Path) -> Request:
    """Where firecracker's own words go: its standard output is the guest's console."""
    return Request("PUT", "/logger", {"log_path": str(log), "level": "Warning", "show_level": True})


def configuration(
    config: VMConfig, boot: DirectBoot, kernel: Path, drives: Iterable[tuple[str, Disk]], tap: str
) -> list[Request]:
    """Everything up to the start of a machine. `drives` are its disks by their names in the working folder.

    No drive is the root device: firecracker would then append a `root=` of its own.
    """
    source: dict[str, object] = {"kernel_image_path": str(kernel), "boot_args": cmdline(boot)}
    if boot.initrd is not None:
        source["initrd_path"] = str(boot.initrd)
    memory_mib = -(-config.memory_bytes // MIB)
    found = [
        Request("PUT", "/boot-source", source),
        Request("PUT", "/machine-config", {"vcpu_count": config.cpus, "mem_size_mib": memory_mib}),
    ]
    for name, disk in drives:
        drive: dict[str, object] = {
            "drive_id": name,
            "path_on_host": name,
            "is_root_device": False,
            "is_read_only": disk.read_only,
            # Flushes are honoured, as what a guest was promised has to survive.
            "cache_type": "Writeback",
        }
        found.append(Request("PUT", f"/drives/{name}", drive))
    if tap:
        interface: dict[str, object] = {"iface_id": INTERFACE, "host_dev_name": tap, "guest_mac": config.mac}
        found.append(Request("PUT", f"/network-interfaces/{INTERFACE}", interface))
    return [*found, Request("PUT", "/entropy", {}), action("InstanceStart")]


def cmdline(boot: DirectBoot) -> str:
    """The kernel's command line."""
    return f"{boot.cmdline} {CMDLINE}"


def action(name: str) -> Request:
    """InstanceStart or SendCtrlAltDel."""
    return Request("PUT", "/actions", {"action_type": name})


def state(name: str) -> Request:
    """Make the machine Paused or Resumed."""
    return Request("PATCH", "/vm", {"state": name})


def save(state_file: Path, memory: Path) -> Request:
    """Save a paused machine."""
    body: dict[str, object] = {
        "snapshot_type": "Full",
        "snapshot_path": str(state_file),
        "mem_file_path": str(memory),
    }
    return Request("PUT", "/snapshot/create", body)


def load(state_file: Path, memory: Path, tap: str) -> Request:
    """Load a machine, which stays paused, its memory a private mapping of the file.

    Its drives are found by the names that they were saved with, in the working folder; its tap alone can be said.
    """
    body: dict[str, object] = {
        "snapshot_path": str(state_file),
        "mem_backend": {"backend_type": "File", "backend_path": str(memory)},
        "resume_vm": False,
    }
    if tap:
        body["network_overrides"] = [{"iface_id": INTERFACE, "host_dev_name": tap}]
    return Request("PUT", "/snapshot/load", body)
