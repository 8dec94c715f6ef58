"""A guest as firecracker would make it, on QEMU's `microvm`: virtio-mmio, one serial line, a keyboard controller.

So the guest needs the same of its kernel, initrd and command line as it would on the real thing: an ELF kernel, drivers
for virtio-mmio that ACPI names, `reboot=k`. Its one clock is the TSC, which an emulated kernel cannot calibrate on a
busy host, and then waits for ever: it is told the frequency.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.simulators.guest import Guest


def argv(guest: Guest, qmp_fd: int) -> list[str]:
    """QEMU's arguments."""
    size = f"id=ram,size={guest.memory_bytes}"
    memory = f"memory-backend-file,{size},mem-path={guest.memory_file},share={'on' if guest.shared else 'off'}"
    arguments = [
        *(guest.name, "-L", guest.mark, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-machine", "microvm,acpi=on,pit=on,pic=on,rtc=on,isa-serial=off,memory-backend=ram"),
        *("-accel", "tcg,thread=multi,tb-size=128", "-cpu", "qemu64"),
        *("-smp", f"cpus={guest.cpus},sockets=1,cores={guest.cpus},threads=1"),
        *("-m", f"size={guest.memory_bytes >> 20}M", "-object", memory),
        *("-chardev", f"socket,id=qmp,fd={qmp_fd}", "-mon", "chardev=qmp,mode=control"),
        *("-chardev", "stdio,id=serial0,signal=off", "-device", "isa-serial,chardev=serial0", "-device", "i8042"),
        *("-object", "rng-random,id=rng0,filename=/dev/urandom", "-device", "virtio-rng-device,rng=rng0"),
    ]
    if guest.kernel:
        arguments += ["-kernel", guest.kernel, "-append", f"{guest.cmdline} tsc_early_khz={_tsc_khz()}"]
        arguments += ["-initrd", guest.initrd] if guest.initrd else []
    if guest.tap:
        arguments += ["-netdev", f"tap,id=net0,ifname={guest.tap},script=no,downscript=no"]
        arguments += ["-device", f"virtio-net-device,netdev=net0,mac={guest.mac}"]
    for disk in guest.disks:
        file = {"driver": "file", "filename": disk.path, "locking": "off"}
        node = {"node-name": disk.name, "driver": "raw", "read-only": disk.read_only, "file": file}
        arguments += ["-blockdev", json.dumps(node), "-device", f"virtio-blk-device,drive={disk.name}"]
    return [*arguments, *(("-S", "-incoming", "defer") if guest.incoming else ())]


def _tsc_khz() -> int:
    """The frequency of this host's TSC, which is the guest's as well."""
    found = re.search(r"^cpu MHz\s*: ([0-9.]+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return int(float(found[1]) * 1000) if found else 0
