"""QEMU's command line for one machine: a pure function from its configuration to argv.

The machine is as plain as a guest allows: no default devices, no USB, SATA or SMBus for its firmware and kernel
to look for, virtio for everything else. What is said in QEMU's `key=value` syntax has its commas doubled
(qemu-options, "Escaping"); block devices are said in JSON, which needs no escaping.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fleetbox.backends.base import DirectBoot, Disk, VMConfig
from fleetbox.backends.qemu.binary import MACHINE, SANDBOX, Qemu
from fleetbox.sizes import MIB

# The translation buffer of tcg grows to 1 GiB when it is not bounded; 128 MiB hold what a booting Debian runs.
TRANSLATION_BUFFER_MIB = 128


@dataclass(frozen=True)
class Surroundings:
    """What the holder gives one launch besides the configuration.

    `qmp_fd` is a listening unix socket that QEMU inherits. `tap` is empty for a machine without a network. `vhost`
    says that /dev/vhost-net can be used.
    """

    qemu: Qemu
    accelerator: str
    qmp_fd: int
    tap: str = ""
    vhost: bool = False


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
        *_boot(config),
        *_monitor(surroundings.qmp_fd),
        *_serial(config.serial_log),
        *("-object", "rng-random,id=rng0,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng0"),
    ]
    seed = (Disk(config.seed, "raw", read_only=True, serial="cidata"),) if config.seed else ()
    for number, disk in enumerate((*config.disks, *seed, *config.fixtures)):
        argv += _disk(disk, number)
    if surroundings.tap:
        argv += _network(config.mac, surroundings)
    if surroundings.qemu.sandbox:
        argv += ["-sandbox", SANDBOX]
    return argv


def name_option(config: VMConfig) -> str:
    """What tells this machine's process from others: its name, and the run folder, which no other home shares."""
    return f"guest={escape(config.name)}@{escape(config.run_dir)}"


def _machine(config: VMConfig, accelerator: str) -> list[str]:
    machine = MACHINE
    if machine == "q35":
        machine += ",usb=off,sata=off,smbus=off,smm=off,vmport=off"
    machine += ",dump-guest-core=off"
    if accelerator == "tcg":
        how = ["-accel", f"tcg,thread=multi,tb-size={TRANSLATION_BUFFER_MIB}", "-cpu", emulated_cpu()]
    else:
        how = ["-accel", accelerator, "-cpu", "host"]
    # One socket: guests licensed or tuned by sockets see one, and the kernel need not look for more.
    smp = f"cpus={config.cpus},sockets=1,cores={config.cpus},threads=1"
    return ["-machine", machine, *how, "-smp", smp, "-m", f"size={-(-config.memory_bytes // MIB)}M"]


def emulated_cpu() -> str:
    """The processor that an emulated guest sees: a plain one boots faster than `max` with all that tcg knows."""
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


def _serial(log: Path) -> list[str]:
    # append: with O_APPEND a log that is cut while the machine runs stays small, instead of growing a hole.
    return ["-chardev", f"file,id=serial0,path={escape(log)},append=on", "-serial", "chardev:serial0"]


def _disk(disk: Disk, number: int) -> list[str]:
    """A virtio disk.

    Writeback through the host's page cache: members share the pages of their common image, a guest's flush is
    honoured (so a killed QEMU or host loses nothing that the guest was promised), and no file system refuses it as it
    may O_DIRECT. Threads do the work: io_uring is denied in many containers, native aio needs O_DIRECT. Discards
    reach the host's file, so `fstrim` gives space back.
    """
    name = f"disk{number}"
    node: dict[str, object] = {
        "node-name": name,
        "driver": disk.format,
        "read-only": disk.read_only,
        "file": {"driver": "file", "filename": str(disk.path), "aio": "threads"},
    }
    if not disk.read_only:
        node["discard"] = "unmap"
        node["file"] = {"driver": "file", "filename": str(disk.path), "aio": "threads", "discard": "unmap"}
    device = f"virtio-blk-pci,drive={name}"
    if disk.serial:
        device += f",serial={escape(disk.serial)}"
    if number == 0:
        device += ",bootindex=1"  # 0 is what `-kernel` takes
    return ["-blockdev", msgspec.json.encode(node).decode(), "-device", device]


def _network(mac: str, surroundings: Surroundings) -> list[str]:
    vhost = ",vhost=on" if surroundings.accelerator == "kvm" and surroundings.vhost else ""
    return [
        *("-netdev", f"tap,id=net0,ifname={escape(surroundings.tap)},script=no,downscript=no{vhost}"),
        # No option ROM: nothing boots from this network, and the firmware need not run one.
        *("-device", f"virtio-net-pci,netdev=net0,mac={mac},romfile="),
    ]
