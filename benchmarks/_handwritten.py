"""The comparison: the same image and seed booted by a command line as an experienced user would write it.

Bridge and taps by `ip`, one qcow2 overlay each, direct kernel boot, the same accelerator, CPU model, cores and memory.
No holder, no records, no stagger: all start at once. Ready is what it is for fleetbox: `ssh … hostname` answers.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from fleetbox import ssh
from fleetbox.image import Image
from fleetbox.records import ClusterRecord, MemberRecord


@dataclass(frozen=True)
class Kept:
    """What is kept of a destroyed member to boot its like by hand."""

    record: MemberRecord
    seed: Path


class ByHand:
    """Machines started by hand in the current network namespace."""

    def __init__(self, folder: Path, cluster: ClusterRecord, image: Image, cpu_options: list[str]) -> None:
        self.folder = folder
        self.cluster = cluster
        self.image = image
        self.cpu_options = cpu_options
        self.kept: list[Kept] = []
        self.known_hosts = folder / "known_hosts"

    def keep(self, record: MemberRecord) -> None:
        """Copy a living member's seed."""
        seed = self.folder / f"{record.name}.iso"
        shutil.copy(Path(record.folder, "seed.iso"), seed)
        self.kept.append(Kept(record, seed))

    def boot(self, count: int, limit_s: float) -> float:
        """Boot `count` machines together; seconds until the last of them is ready."""
        gateway = self.cluster.subnet.rpartition(".")[0] + ".1"
        _ip("link", "add", "byhand", "type", "bridge")
        machines: list[subprocess.Popen[bytes]] = []
        try:
            _ip("addr", "add", f"{gateway}/24", "dev", "byhand")
            _ip("link", "set", "byhand", "up")
            began = time.monotonic()
            for number, kept in enumerate(self.kept[:count]):
                machines.append(self._start(number, kept))
            for kept in self.kept[:count]:
                self._await_ssh(kept.record, began + limit_s)
            return time.monotonic() - began
        finally:
            for machine in machines:
                machine.kill()
                machine.wait()
            for number in range(len(machines)):
                _ip("link", "del", f"byhand{number}")
            _ip("link", "del", "byhand")

    def _start(self, number: int, kept: Kept) -> subprocess.Popen[bytes]:
        tap = f"byhand{number}"
        _ip("tuntap", "add", tap, "mode", "tap")
        _ip("link", "set", tap, "master", "byhand", "up")
        overlay = self.folder / f"{tap}.qcow2"
        overlay.unlink(missing_ok=True)
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", self.image.disk, str(overlay)], check=True
        )
        spec = kept.record.spec
        argv = ["qemu-system-x86_64", "-machine", "q35", *self.cpu_options, "-nodefaults", "-display", "none"]
        argv += ["-smp", str(spec.cpus), "-m", str(spec.memory_bytes >> 20)]
        argv += ["-kernel", self.image.kernel, "-initrd", self.image.initrd]
        argv += ["-append", f"root={self.image.root} ro console=ttyS0"]
        argv += ["-drive", f"file={overlay},format=qcow2,if=virtio"]
        argv += ["-drive", f"file={kept.seed},format=raw,if=virtio,readonly=on"]
        argv += ["-netdev", f"tap,id=net0,ifname={tap},script=no,downscript=no"]
        argv += ["-device", f"virtio-net-pci,netdev=net0,mac={kept.record.mac}", "-device", "virtio-rng-pci"]
        argv += ["-serial", f"file:{self.folder / tap}.log"]
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL)

    def _await_ssh(self, record: MemberRecord, deadline: float) -> None:
        argv = ssh.argv(self.cluster, record, ["hostname"], tty=False, multiplex=False, batch=True)
        argv[1:1] = ["-o", f"UserKnownHostsFile={self.known_hosts}", "-o", "ConnectTimeout=2"]
        while time.monotonic() < deadline:
            answered = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
            if answered.stdout.strip() == record.name:
                return
            time.sleep(0.2)
        raise TimeoutError(f"{record.name} by hand was not ready in time")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
