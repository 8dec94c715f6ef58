"""The guest behind a simulated hypervisor: its QEMU command line, and what the hypervisor does with it over QMP.

Devices stand at fixed places, so that a saved state fits a machine made of the same configuration: disks after the
first are behind a bridge, into which more can be plugged.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.simulators.qmp import QMP, QMPFailed

PROGRAM = f"qemu-system-{platform.machine()}"
_UNDER_WAY = {"none", "setup", "active", "device", "cancelling", "wait-unplug", "pre-switchover"}


@dataclass(frozen=True)
class GuestDisk:
    """A disk; `name` is its device id."""

    name: str
    path: str
    read_only: bool
    serial: str = ""


@dataclass(frozen=True)
class Guest:
    """What QEMU has to emulate. `memory_file` backs the RAM, for all to see (`shared`) or privately.

    `serial` is the file that the first console goes to, empty for our standard output. `mark` is an argument for others
    to find the process by. `incoming` waits for a state, paused; `held` does not run before it is told to.
    """

    name: str
    mark: str
    cpus: int
    memory_bytes: int
    serial: str
    disks: tuple[GuestDisk, ...]
    memory_file: str = ""
    shared: bool = False
    kernel: str = ""
    initrd: str = ""
    cmdline: str = ""
    tap: str = ""
    mac: str = ""
    balloon: bool = False
    incoming: bool = False
    append_serial: bool = False
    reboots: bool = True
    extra: tuple[str, ...] = field(default=())


def _escape(value: str) -> str:
    return value.replace(",", ",,")


def program() -> str:
    """Where QEMU is."""
    found = shutil.which(PROGRAM)
    if found is None:
        raise SystemExit(f"the simulator needs {PROGRAM}")
    return found


def argv(guest: Guest, qmp_fd: int, console_fd: int | None) -> list[str]:
    """QEMU's arguments; `console_fd` is a connected socket for the virtio console."""
    size = f"id=ram,size={guest.memory_bytes}"
    if guest.memory_file:
        how = "on" if guest.shared else "off"
        memory = f"memory-backend-file,{size},mem-path={_escape(guest.memory_file)},share={how}"
    else:
        memory = f"memory-backend-ram,{size}"
    serial = f"file,id=serial0,path={_escape(guest.serial or '/dev/stdout')}"
    if guest.append_serial or not guest.serial:
        serial += ",append=on"
    arguments = [
        *(guest.name, "-L", guest.mark, "-nodefaults", "-no-user-config", "-display", "none"),
        *("-machine", "q35,usb=off,sata=off,smbus=off,smm=off,vmport=off,memory-backend=ram"),
        *("-accel", "tcg,thread=multi,tb-size=128", "-cpu", "qemu64"),
        *("-smp", f"cpus={guest.cpus},sockets=1,cores={guest.cpus},threads=1"),
        *("-m", f"size={guest.memory_bytes >> 20}M", "-object", memory),
        *("-chardev", f"socket,id=qmp,fd={qmp_fd}", "-mon", "chardev=qmp,mode=control"),
        *("-chardev", serial, "-serial", "chardev:serial0"),
        *("-object", "rng-random,id=rng0,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng0,addr=0x3"),
    ]
    if guest.kernel:
        arguments += ["-kernel", guest.kernel, "-append", guest.cmdline]
        arguments += ["-initrd", guest.initrd] if guest.initrd else []
    else:
        arguments += ["-boot", "strict=on"]
    if guest.tap:
        arguments += ["-netdev", f"tap,id=net0,ifname={_escape(guest.tap)},script=no,downscript=no"]
        arguments += ["-device", f"virtio-net-pci,netdev=net0,mac={guest.mac},romfile=,addr=0x4"]
    if console_fd is not None:
        arguments += ["-chardev", f"socket,id=hvc0,fd={console_fd}", "-device", "virtio-serial-pci,id=vs,addr=0x5"]
        arguments += ["-device", "virtconsole,chardev=hvc0,bus=vs.0,nr=0"]
    if guest.balloon:
        arguments += ["-device", "virtio-balloon-pci,deflate-on-oom=on,free-page-reporting=on,addr=0x6"]
    arguments += ["-device", "pcie-pci-bridge,id=bridge,addr=0x10"]
    for number, disk in enumerate(guest.disks):
        node, device = disk_options(disk, number)
        flat = ",".join(f"{key}={_escape(value)}" for key, value in device.items()).removeprefix("driver=")
        arguments += ["-blockdev", _json(node), "-device", flat]
    if guest.incoming:
        arguments += ["-S", "-incoming", "defer"]
    if not guest.reboots:
        arguments += ["-no-reboot"]
    return [*arguments, *guest.extra]


def disk_options(disk: GuestDisk, number: int) -> tuple[dict[str, Any], dict[str, str]]:
    """A disk's node and device, for the command line and for plugging in."""
    file = {"driver": "file", "filename": disk.path, "locking": "off"}
    node = {"node-name": f"node-{disk.name}", "driver": "raw", "read-only": disk.read_only, "file": file}
    device = {"driver": "virtio-blk-pci", "id": f"disk-{disk.name}", "drive": f"node-{disk.name}"}
    device |= {"serial": disk.serial} if disk.serial else {}
    place = {"addr": "0x2", "bootindex": "1"} if number == 0 else {"bus": "bridge", "addr": f"{number:#x}"}
    return node, device | place


def _json(node: dict[str, Any]) -> str:
    import json

    return json.dumps(node)


class Running:
    """A guest that QEMU runs. Every method raises QMPFailed."""

    def __init__(self, qmp: QMP) -> None:
        self._qmp = qmp

    def answers(self) -> str:
        """Wait until QEMU has started; its run state."""
        status: str = self._qmp.execute("query-status")["status"]
        return status

    def pause(self) -> None:
        self._qmp.execute("stop")

    def resume(self) -> None:
        self._qmp.execute("cont")

    def press_power_button(self) -> None:
        self._qmp.execute("system_powerdown")

    def press_ctrl_alt_del(self) -> None:
        keys = [{"type": "qcode", "data": key} for key in ("ctrl", "alt", "delete")]
        self._qmp.execute("send-key", {"keys": keys})

    def quit(self) -> None:
        self._qmp.execute("quit")

    def plug(self, disk: GuestDisk, number: int) -> None:
        """Plug a disk in behind the ones that are there."""
        node, device = disk_options(disk, number)
        self._qmp.execute("blockdev-add", node)
        try:
            self._qmp.execute("device_add", device)
        except QMPFailed:
            self._qmp.execute("blockdev-del", {"node-name": node["node-name"]})
            raise

    def disk_counters(self) -> dict[str, dict[str, int]]:
        """What each disk has done, by its id."""
        found = {}
        for device in self._qmp.execute("query-blockstats"):
            if name := str(device.get("qdev", "")).split("disk-", 1)[-1].split("/")[0]:
                stats = device["stats"]
                found[name] = {
                    "read_bytes": stats["rd_bytes"],
                    "write_bytes": stats["wr_bytes"],
                    "read_ops": stats["rd_operations"],
                    "write_ops": stats["wr_operations"],
                }
        return found

    def save(self, file: Path) -> None:
        """Write the state of a paused guest; memory that is a shared file is left out."""
        self._prepare()
        self._qmp.execute("migrate-set-parameters", {"max-bandwidth": 1 << 50})
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            self._qmp.execute("getfd", {"fdname": "state"}, fd=fd)
            self._qmp.execute("migrate", {"uri": "fd:state"})
            self._finish()
        finally:
            os.close(fd)

    def load(self, file: Path) -> None:
        """Load a state into a guest that waits for one."""
        self._prepare()
        fd = os.open(file, os.O_RDONLY)
        try:
            self._qmp.execute("getfd", {"fdname": "state"}, fd=fd)
            self._qmp.execute("migrate-incoming", {"uri": "fd:state"})
            self._finish()
        finally:
            os.close(fd)

    def _prepare(self) -> None:
        capabilities = [{"capability": "x-ignore-shared", "state": True}]
        self._qmp.execute("migrate-set-capabilities", {"capabilities": capabilities})

    def _finish(self) -> None:
        while (answer := self._qmp.execute("query-migrate")).get("status", "none") in _UNDER_WAY:
            time.sleep(0.01)
        if answer["status"] != "completed":
            raise QMPFailed(answer.get("error-desc", answer["status"]))
