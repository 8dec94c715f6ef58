"""A guest as firecracker would make it, on QEMU's `microvm`: virtio-mmio, one serial line, a keyboard controller.

So the guest needs the same of its kernel, initrd and command line as it would on the real thing: an ELF kernel, drivers
for virtio-mmio, `reboot=k`. It sees one processor only: QEMU describes more by ACPI alone, and with that a kernel has
no clock but the emulated TSC, whose calibration fails on a busy host for ever.
"""

from __future__ import annotations

import json

from tests.simulators.guest import Guest


def argv(guest: Guest, qmp_fd: int) -> list[str]:
    """QEMU's arguments."""
    size = f"id=ram,size={guest.memory_bytes}"
    memory = f"memory-backend-file,{size},mem-path={guest.memory_file},share={'on' if guest.shared else 'off'}"
    arguments = [
        *(guest.name, "-L", guest.mark, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-machine", "microvm,acpi=off,pit=on,pic=on,rtc=on,isa-serial=off,memory-backend=ram"),
        *("-accel", "tcg,thread=multi,tb-size=128", "-cpu", "qemu64"),
        *("-smp", f"cpus={guest.cpus},sockets=1,cores={guest.cpus},threads=1"),
        *("-m", f"size={guest.memory_bytes >> 20}M", "-object", memory),
        *("-chardev", f"socket,id=qmp,fd={qmp_fd}", "-mon", "chardev=qmp,mode=control"),
        *("-chardev", "stdio,id=serial0,signal=off", "-device", "isa-serial,chardev=serial0", "-device", "i8042"),
        *("-object", "rng-random,id=rng0,filename=/dev/urandom", "-device", "virtio-rng-device,rng=rng0"),
    ]
    if guest.kernel:
        arguments += ["-kernel", guest.kernel, "-append", guest.cmdline]
        arguments += ["-initrd", guest.initrd] if guest.initrd else []
    if guest.tap:
        arguments += ["-netdev", f"tap,id=net0,ifname={guest.tap},script=no,downscript=no"]
        arguments += ["-device", f"virtio-net-device,netdev=net0,mac={guest.mac}"]
    for disk in guest.disks:
        file = {"driver": "file", "filename": disk.path, "locking": "off"}
        node = {"node-name": disk.name, "driver": "raw", "read-only": disk.read_only, "file": file}
        arguments += ["-blockdev", json.dumps(node), "-device", f"virtio-blk-device,drive={disk.name}"]
    return [*arguments, *(("-S", "-incoming", "defer") if guest.incoming else ())]
