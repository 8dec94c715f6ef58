"""A simulated cloud-hypervisor v53.

Not as the real one: guests are emulated, the balloon is there but takes nothing, what `memory-ranges` and `state.json`
hold is QEMU's.
"""

from __future__ import annotations

import base64
import json
import os
import pty
import socket
import sys
import tempfile
import threading
import tty
from pathlib import Path
from typing import Any

from tests.simulators import ch_options as options
from tests.simulators import guest as guests
from tests.simulators.api import Refused, Server
from tests.simulators.description import Description, load
from tests.simulators.faults import VARIABLE, Faults
from tests.simulators.guest import Guest, GuestDisk, Running
from tests.simulators.process import Machine, launch
from tests.simulators.qmp import QMP, QMPFailed

BASE = "/api/v1"

# The project's own short table: what fleetbox asks, and the fields that it sends.
TABLE = {
    ("GET", "/vmm.ping"): None,
    ("PUT", "/vmm.shutdown"): None,
    ("GET", "/vm.info"): None,
    ("GET", "/vm.counters"): None,
    ("PUT", "/vm.pause"): None,
    ("PUT", "/vm.resume"): None,
    ("PUT", "/vm.power-button"): None,
    ("PUT", "/vm.add-disk"): frozenset({"path", "readonly", "id", "serial", "image_type"}),
    ("PUT", "/vm.snapshot"): frozenset({"destination_url"}),
    ("PUT", "/vm.restore"): frozenset({"source_url", "memory_restore_mode"}),
}
# What it writes in a snapshot's config.json, where it differs from what was there.
CONFIG_FIELDS = frozenset(
    {"cpus", "memory", "payload", "disks", "net", "rng", "balloon", "serial", "console", "watchdog", "iommu"}
)
_NEVER_BOOTED = ("Error from API", "The VM is not created")


def main() -> None:
    """The executable."""
    argv = sys.argv[1:]
    if argv in (["--version"], ["-V"]):
        print(options.VERSION)
        return
    try:
        own, config = options.parse(argv)
    except options.UsageError as e:
        print(f"error: {e}\n\nFor more information, try '--help'.", file=sys.stderr)
        sys.exit(2)
    except options.ConfigError as e:
        _fail("Error parsing config", str(e))
    if Faults(os.environ.get(VARIABLE, "")).at("launch") == "exit":
        _fail("Failed to open hypervisor interface (is hypervisor interface available?)", "a fault of the test's")
    path = own.get("api-socket", "").removeprefix("path=").strip('"')
    if not path:
        _fail("the simulator needs --api-socket")
    if config is not None:
        _check_files(config)
    launch("tests.simulators.cloud_hypervisor", {"socket": path, "config": config}, guests.program)


def _fail(*words: str) -> None:
    chain = "\n".join(f"  {number}: {text}" for number, text in enumerate(words))
    print(f"Error: Cloud Hypervisor exited with the following chain of errors:\n{chain}", file=sys.stderr)
    sys.exit(1)


def _check_files(config: dict[str, Any]) -> None:
    for disk in config["disks"] or ():
        if problem := _disk_problem(disk):
            _fail("Error booting VM", "The VM could not boot", problem)
    payload = config["payload"]
    for path in filter(None, (payload["kernel"], payload["firmware"], payload["initramfs"])):
        if not Path(path).is_file():
            _fail("Error booting VM", "The VM could not boot", f"Cannot open {path}: No such file or directory")
    if payload["kernel"] and not _bootable(Path(payload["kernel"])):
        _fail("Error booting VM", "The VM could not boot", "Cannot load the kernel into memory", "Invalid kernel")


def _bootable(kernel: Path) -> bool:
    head = kernel.read_bytes()[:0x206]
    return head[:4] == b"\x7fELF" or head[0x202:0x206] == b"HdrS"


def _disk_problem(disk: dict[str, Any]) -> str:
    path = disk["path"]
    try:
        with Path(path).open("rb" if disk["readonly"] else "r+b") as file:
            head = file.read(4)
    except OSError as e:
        return f"Cannot open disk path {path}: {e.strerror} (os error {e.errno})"
    qcow2 = head == b"QFI\xfb"
    if disk["image_type"] == "Qcow2" and not qcow2:
        return f"{path} is no qcow2 file"
    return ""


def serve(settings: dict[str, Any], faults: str, machine: Machine, qmp: socket.socket, console: socket.socket) -> None:
    """The API's process."""
    vmm = _VMM(machine, QMP(qmp), console)
    description = load("cloud-hypervisor.yaml")
    found = Faults(faults)
    Path(settings["socket"]).unlink(missing_ok=True)

    def do(method: str, path: str, body: Any) -> Any:
        return getattr(vmm, path.removeprefix("/").replace(".", "_").replace("-", "_"))(body)

    table = {(method, BASE + path): fields for (method, path), fields in TABLE.items()}
    server = Server(
        settings["socket"],
        table,
        description and _Rooted(description),
        found,
        machine,
        lambda method, path, body: do(method, path.removeprefix(BASE), body),
        lambda words: list(words),
    )
    vmm.description = description
    if found.at("listening") == "exit":
        machine.end(1, "Error: Cloud Hypervisor exited with the following error:\n  a fault of the test's")
    if settings["config"] is not None:
        threading.Thread(target=vmm.boot, args=(settings["config"], settings["socket"]), daemon=True).start()
    vmm.mark = settings["socket"]
    server.serve_forever()


class _Rooted(Description):
    """The description, with paths as requests have them."""

    def __init__(self, inner: Description) -> None:
        self._inner = inner

    def objection(self, method: str, path: str, body: Any) -> str:
        return self._inner.objection(method, path.removeprefix(BASE), body)


class _VMM:
    """One VMM with at most one machine; a method per request, named as its path."""

    def __init__(self, machine: Machine, qmp: QMP, console: socket.socket) -> None:
        self.machine = machine
        self.description: Description | None = None
        self.mark = ""
        self._guest = Running(qmp)
        self._console = console
        self._config: dict[str, Any] | None = None
        self._state = ""

    # Launch

    def boot(self, config: dict[str, Any], mark: str) -> None:
        self.mark = mark
        try:
            self._start(config, incoming=False)
        except (Refused, QMPFailed) as e:
            self.machine.end(1, f"Error: Cloud Hypervisor exited with the following error:\n  {e}")
        self._state = "Running"

    def _start(self, config: dict[str, Any], *, incoming: bool) -> None:
        if config["console"]["mode"] == "Pty":
            config["console"]["file"] = self._terminal()
        zones = config["memory"]["zones"]
        zone = zones[0] if zones else {}
        file = zone.get("file") or ""
        size = zone.get("size") or config["memory"]["size"]
        if file and (not Path(file).is_file() or Path(file).stat().st_size < size):
            raise Refused(500, "Memory manager error", f"the backing file {file} is missing or too small")
        payload = config["payload"]
        net = (config["net"] or [{}])[0]
        guest = Guest(
            name="cloud-hypervisor",
            mark=self.mark,
            cpus=config["cpus"]["boot_vcpus"],
            memory_bytes=size,
            memory_file=file,
            shared=bool(zone.get("shared")),
            serial=config["serial"]["file"] or "/dev/null",
            disks=tuple(_guest_disk(disk) for disk in config["disks"] or ()),
            kernel=payload["kernel"] or "",
            initrd=payload["initramfs"] or "",
            cmdline=payload["cmdline"] or "",
            tap=net.get("tap") or "",
            mac=net.get("mac") or "",
            balloon=config["balloon"] is not None,
            incoming=incoming,
        )
        has_console = config["console"]["mode"] == "Pty"
        self.machine.become(guests.argv(guest, self.machine.qmp, self.machine.console if has_console else None))
        self._guest.answers()
        self._config = config

    def _terminal(self) -> str:
        """A pseudo-terminal in front of the guest's console; its path. What comes while nobody reads is lost."""
        ours, theirs = pty.openpty()
        tty.setraw(theirs)  # stays open here, so that no user's leaving hangs it up
        os.set_blocking(ours, False)

        def to_guest() -> None:
            import select

            while True:
                select.select([ours], [], [])
                self._console.sendall(os.read(ours, 4096))

        def from_guest() -> None:
            while data := self._console.recv(4096):
                while data:
                    try:
                        data = data[os.write(ours, data) :]
                    except BlockingIOError:
                        break

        for work in (to_guest, from_guest):
            threading.Thread(target=work, daemon=True).start()
        return os.ttyname(theirs)

    # Requests

    def _need(self, *states: str) -> dict[str, Any]:
        if self._config is None:
            raise Refused(404, *_NEVER_BOOTED)
        if states and self._state not in states:
            raise Refused(405, "Error from API", f"Invalid state transition: it is {self._state}")
        return self._config

    def vmm_ping(self, _: None) -> dict[str, Any]:
        return {
            "build_version": "v53.0.0",
            "version": "53.0.0",
            "pid": self.machine.pid,
            "features": ["kvm"],
        }

    def vmm_shutdown(self, _: None) -> None:
        if self._config is None:
            self.machine.end(0)
        threading.Timer(0.01, self._guest.quit).start()

    def vm_info(self, _: None) -> dict[str, Any]:
        config = self._need()
        memory = config["memory"]
        size = sum(zone["size"] for zone in memory["zones"] or ()) or memory["size"]
        return {"config": config, "state": self._state, "memory_actual_size": size, "device_tree": {}}

    def vm_counters(self, _: None) -> dict[str, Any]:
        config = self._need("Running", "Paused")
        found: dict[str, Any] = self._guest.disk_counters()
        for net in config["net"] or ():
            folder = Path("/sys/class/net") / str(net["tap"]) / "statistics"
            if folder.exists():
                sent, received = (int((folder / f"{way}_bytes").read_text()) for way in ("rx", "tx"))
                found[net["id"]] = {"rx_bytes": received, "tx_bytes": sent, "rx_frames": 0, "tx_frames": 0}
        return found

    def vm_pause(self, _: None) -> None:
        self._need("Running")
        self._guest.pause()
        self._state = "Paused"

    def vm_resume(self, _: None) -> None:
        self._need("Paused")
        self._guest.resume()
        self._state = "Running"

    def vm_power_button(self, _: None) -> None:
        self._need("Running", "Paused")
        self._guest.press_power_button()

    def vm_add_disk(self, body: dict[str, Any]) -> dict[str, Any]:
        config = self._need("Running", "Paused")
        disk = {"readonly": False, "image_type": "Unknown", "serial": None, **body}
        if problem := _disk_problem(disk):
            raise Refused(500, "Error from API", "The disk could not be added to the VM", problem)
        disks = config["disks"] or []
        if not disk.get("id") or any(disk["id"] == other["id"] for other in disks):
            raise Refused(500, "Error from API", "Identifier is not unique")
        self._guest.plug(_guest_disk(disk), len(disks))
        config["disks"] = [*disks, disk]
        return {"id": disk["id"], "bdf": f"0000:00:{len(disks) + 4:02x}.0"}

    def vm_snapshot(self, body: dict[str, Any]) -> None:
        config = self._need("Paused")
        folder = _url_path(body["destination_url"])
        failed = ("Error from API", "The VM could not be snapshotted")
        if not folder.is_dir():
            raise Refused(
                500, "Error from API", "The VM could not be snapshotted", f"{folder}: No such file or directory"
            )
        zone = (config["memory"]["zones"] or [{}])[0]
        saved_apart = bool(zone.get("file") and zone.get("shared"))
        with tempfile.TemporaryDirectory() as scratch:
            state = Path(scratch) / "state" if saved_apart else folder / "memory-ranges"
            try:
                self._guest.save(state)
            except QMPFailed as e:
                raise Refused(500, *failed, str(e)) from e
            content = base64.b64encode(state.read_bytes()).decode() if saved_apart else ""
        _write(folder / "config.json", config)
        _write(folder / "state.json", {"id": "vm", "snapshots": {}, "qemu": content})

    def vm_restore(self, body: dict[str, Any]) -> None:
        if self._config is not None:
            raise Refused(404, "Error from API", "The VM is already created")
        folder = _url_path(body["source_url"])
        failed = ("Error from API", "The VM could not be restored")
        try:
            config = json.loads((folder / "config.json").read_bytes())
            state = json.loads((folder / "state.json").read_bytes())
        except (OSError, ValueError) as e:
            raise Refused(500, *failed, str(e)) from e
        if unknown := config.keys() - CONFIG_FIELDS:
            raise Refused(500, *failed, f"config.json: not in the project's table: {sorted(unknown)}")
        if self.description is not None and (problem := self.description.differs(config, "VmConfig")):
            raise Refused(500, *failed, f"config.json: {problem}")
        for disk in config["disks"] or ():
            if problem := _disk_problem(disk):
                raise Refused(500, *failed, problem)
        ranges = folder / "memory-ranges"
        if body.get("memory_restore_mode") == "OnDemand" and not ranges.exists():
            # issue 8848 of cloud-hypervisor
            raise Refused(500, *failed, "On-demand restore failed", "No such file or directory (os error 2)")
        with tempfile.TemporaryDirectory() as scratch:
            if state["qemu"]:
                ranges = Path(scratch) / "state"
                ranges.write_bytes(base64.b64decode(state["qemu"]))
            try:
                self._start(config, incoming=True)
                self._guest.load(ranges)
            except (QMPFailed, OSError) as e:
                raise Refused(500, *failed, str(e)) from e
        self._state = "Paused"


def _guest_disk(disk: dict[str, Any]) -> GuestDisk:
    return GuestDisk(disk["id"], disk["path"], bool(disk.get("readonly")), disk.get("serial") or "")


def _url_path(url: str) -> Path:
    if not url.startswith("file://"):
        raise Refused(500, "Error from API", f"{url} is no file:// URL")
    return Path(url.removeprefix("file://"))


def _write(path: Path, document: Any) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w") as file:
        json.dump(document, file)
