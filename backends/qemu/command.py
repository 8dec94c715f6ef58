"""QEMU's command line for one machine: a pure function from its configuration to argv.

The machine is as plain as a guest allows: no default devices, no USB, SATA or SMBus for its firmware and kernel
to look for, virtio for everything else. What is said in QEMU's `key=value` syntax has its commas doubled
(qemu-options, "Escaping"); block devices are said in JSON, which needs no escaping.

A saved state fits only a machine of the same devices in the same places, so these hang on nothing that may differ
between a template and its clones: fixtures stand behind a bridge of their own, into which more can be plugged later.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fleetbox.backends.base import DirectBoot, Disk, VMConfig
from fleetbox.backends.host.saved import Saved
from fleetbox.backends.qemu.binary import MACHINE, SANDBOX, Qemu
from fleetbox.sizes import MIB

# The translation buffer of tcg grows to 1 GiB when it is not bounded; 128 MiB hold what a booting Debian runs.
TRANSLATION_BUFFER_MIB = 128

# The only second serial port of `virt` is a secure one; it has a usable one from QEMU 9.1 on.
HAS_CONTROL_LINE = MACHINE == "q35"

# The guest's name of its first serial port, its console.
CONSOLE_DEVICE = "ttyS0" if MACHINE == "q35" else "ttyAMA0"

# One bridge takes 31 fixtures and costs a booting guest less than as many ports; into it, a running guest's firmware
# tables (ACPI) plug at once, where PCI Express's own way waits 5 s for an attention button.
FIXTURE_BRIDGE = "pcie-pci-bridge"
FIXTURE_BRIDGE_ADDRESS = 0x10


@dataclass(frozen=True)
class Surroundings:
    """What the holder gives one launch besides the configuration.

    `qmp_fd` is a listening unix socket that QEMU inherits, as are `console_fd` (the first serial port's) and
    `control_fd` (the second one's; None for a machine without). `tap` is empty for a machine without a network. `vhost`
    says that /dev/vhost-net can be used. `saved` is what a restored machine was saved as, its RAM a private mapping of
    `saved_memory` when that is there.
    """

    qemu: Qemu
    accelerator: str
    qmp_fd: int
    console_fd: int
    control_fd: int | None = None
    tap: str = ""
    vhost: bool = False
    saved: Saved | None = None
    saved_memory: Path | None = None


def escape(value: str | Path) -> str:
    """A value for QEMU's `key=value,…` syntax."""
    return str(value).replace(",", ",,")


def build(config: VMConfig, surroundings: Surroundings) -> list[str]:
    """The argv that runs the machine."""
    argv = [
        str(surroundings.qemu.path),
        *("-name", name_option(config)),
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *_machine(config, surroundings.accelerator),
        *_memory(config, surroundings.saved_memory),
        *_boot(config),
        *_monitor(surroundings.qmp_fd),
        *_serial(surroundings.console_fd, config.serial_log),
        *_control_line(surroundings.control_fd),
        *("-object", "rng-random,id=rng0,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng0"),
    ]
    seed = (Disk(config.seed, "raw", read_only=True, serial="cidata"),) if config.seed else ()
    for number, disk in enumerate((*config.disks, *seed)):
        argv += _disk(disk, number)
    if surroundings.tap:
        argv += _network(config.mac, surroundings)
    argv += ["-device", f"{FIXTURE_BRIDGE},id=fixtures,addr={FIXTURE_BRIDGE_ADDRESS:#x}"]
    there = len(config.fixtures) if surroundings.saved is None else surroundings.saved.fixtures
    for number, disk in enumerate(config.fixtures[:there]):
        node, device = fixture(disk, number)
        options = ",".join(f"{key}={escape(value)}" for key, value in device.items()).removeprefix("driver=")
        argv += ["-blockdev", msgspec.json.encode(node).decode(), "-device", options]
    if surroundings.saved is not None:
        argv += ["-S", "-incoming", "defer"]
    if surroundings.qemu.sandbox:
        argv += ["-sandbox", SANDBOX]
    return argv


def name_option(config: VMConfig) -> str:
    """What tells this machine's process from others: its name, slot, and the run folder, which no other home shares."""
    return f"guest={escape(config.name)}{f'+{config.slot}' if config.slot else ''}@{escape(config.run_dir)}"


def _machine(config: VMConfig, accelerator: str) -> list[str]:
    machine = MACHINE
    if machine == "q35":
        machine += ",usb=off,sata=off,smbus=off,smm=off,vmport=off"
    machine += ",dump-guest-core=off,memory-backend=ram"
    accel = f"tcg,thread=multi,tb-size={TRANSLATION_BUFFER_MIB}" if accelerator == "tcg" else accelerator
    how = ["-accel", accel, "-cpu", cpu(accelerator)]
    # One socket: guests licensed or tuned by sockets see one, and the kernel need not look for more.
    smp = f"cpus={config.cpus},sockets=1,cores={config.cpus},threads=1"
    return ["-machine", machine, *how, "-smp", smp, "-m", f"size={_memory_mib(config)}M"]


def _memory_mib(config: VMConfig) -> int:
    return -(-config.memory_bytes // MIB)


def _memory(config: VMConfig, saved: Path | None) -> list[str]:
    """The RAM: of a template in the making a shared mapping of its file, of its clones a private one of the same.

    The id names it in the migration stream, so it is the same for every kind.
    """
    size = f"id=ram,size={_memory_mib(config)}M"
    if config.memory_file is not None:
        return ["-object", f"memory-backend-file,{size},mem-path={escape(config.memory_file)},share=on"]
    if saved is not None:
        return ["-object", f"memory-backend-file,{size},mem-path={escape(saved)},share=off"]
    return ["-object", f"memory-backend-ram,{size}"]


def cpu(accelerator: str) -> str:
    """The processor that a guest sees: emulated, a plain one boots faster than `max` with all that tcg knows."""
    if accelerator != "tcg":
        return "host"
    return "qemu64" if platform.machine() == "x86_64" else "cortex-a57"


def _boot(config: VMConfig) -> list[str]:
    boot = config.boot
    if isinstance(boot, DirectBoot):
        initrd = ["-initrd", str(boot.initrd)] if boot.initrd else []
        return ["-kernel", str(boot.kernel), *initrd, "-append", boot.cmdline]
    firmware = ["-bios", str(boot.firmware)] if boot.firmware else []
    return [*firmware, "-boot", "strict=on"]


def _monitor(qmp_fd: int) -> list[str]:
    # wait=off: the machine does not wait for us. The socket takes our connection already, as it is bound.
    return ["-chardev", f"socket,id=qmp,fd={qmp_fd},server=on,wait=off", "-mon", "chardev=qmp,mode=control"]


def _serial(fd: int, log: Path) -> list[str]:
    # logappend: with O_APPEND a log that is cut while the machine runs stays small, instead of growing a hole.
    how = f"socket,id=serial0,fd={fd},server=on,wait=off,logfile={escape(log)},logappend=on"
    return ["-chardev", how, "-serial", "chardev:serial0"]


def _control_line(fd: int | None) -> list[str]:
    if fd is None:
        return []
    return ["-chardev", f"socket,id=control,fd={fd},server=on,wait=off", "-serial", "chardev:control"]


def _node(disk: Disk, name: str) -> dict[str, object]:
    """A disk as QEMU opens it.

    Writeback through the host's page cache: members share the pages of their common image, a guest's flush is
    honoured (so a killed QEMU or host loses nothing that the guest was promised), and no file system refuses it as it
    may O_DIRECT. Threads do the work: io_uring is denied in many containers, native aio needs O_DIRECT. Discards
    reach the host's file, so `fstrim` gives space back.
    """
    discard = {} if disk.read_only else {"discard": "unmap"}
    file = {"driver": "file", "filename": str(disk.path), "aio": "threads", **discard}
    return {"node-name": name, "driver": disk.format, "read-only": disk.read_only, "file": file, **discard}


def _disk(disk: Disk, number: int) -> list[str]:
    name = f"disk{number}"
    device = f"virtio-blk-pci,drive={name}"
    if disk.serial:
        device += f",serial={escape(disk.serial)}"
    if number == 0:
        device += ",bootindex=1"  # 0 is what `-kernel` takes
    return ["-blockdev", msgspec.json.encode(_node(disk, name)).decode(), "-device", device]


def fixture(disk: Disk, number: int) -> tuple[dict[str, object], dict[str, str]]:
    """A fixture's node and device, as `-blockdev` and `-device` or `blockdev-add` and `device_add` take them."""
    name = f"fixture{number}"
    device = {
        "driver": "virtio-blk-pci",
        "id": f"{name}-device",
        "drive": name,
        "serial": disk.serial or name,
        "bus": "fixtures",
        "addr": f"{number + 1:#x}",
    }
    return _node(disk, name), device


def _network(mac: str, surroundings: Surroundings) -> list[str]:
    vhost = ",vhost=on" if surroundings.accelerator == "kvm" and surroundings.vhost else ""
    return [
        *("-netdev", f"tap,id=net0,ifname={escape(surroundings.tap)},script=no,downscript=no{vhost}"),
        # No option ROM: nothing boots from this network, and the firmware need not run one.
        *("-device", f"virtio-net-pci,netdev=net0,mac={mac},romfile="),
    ]
