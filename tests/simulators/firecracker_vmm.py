"""A simulated firecracker v1.16.

Not as the real one: guests are emulated; a guest that powers itself off ends its machine, where the real one halts;
what a snapshot's state file holds is QEMU's.
"""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.simulators import guest as guests
from tests.simulators import microvm
from tests.simulators.api import Refused, Server
from tests.simulators.description import load
from tests.simulators.faults import VARIABLE, Faults
from tests.simulators.guest import Guest, GuestDisk, Running
from tests.simulators.process import Machine, launch
from tests.simulators.qmp import QMP, QMPFailed

VERSION = "1.16.1"
_OPTIONS = {"api-sock": True, "id": True}  # those that fleetbox uses; whether they take a value

# The project's own short table: what fleetbox asks, and the fields that it sends.
TABLE: dict[tuple[str, str], frozenset[str] | None] = {
    ("GET", "/"): None,
    ("PUT", "/logger"): frozenset({"log_path", "level", "show_level"}),
    ("PUT", "/boot-source"): frozenset({"kernel_image_path", "initrd_path", "boot_args"}),
    ("PUT", "/machine-config"): frozenset({"vcpu_count", "mem_size_mib"}),
    ("PUT", "/drives/{id}"): frozenset({"drive_id", "path_on_host", "is_root_device", "is_read_only", "cache_type"}),
    ("PUT", "/network-interfaces/{id}"): frozenset({"iface_id", "host_dev_name", "guest_mac"}),
    ("PUT", "/entropy"): frozenset(),
    ("PUT", "/actions"): frozenset({"action_type"}),
    ("PATCH", "/vm"): frozenset({"state"}),
    ("PUT", "/snapshot/create"): frozenset({"snapshot_type", "snapshot_path", "mem_file_path"}),
    ("PUT", "/snapshot/load"): frozenset({"snapshot_path", "mem_backend", "resume_vm", "network_overrides"}),
}
_PRE_BOOT = "The requested operation is not supported before starting the microVM."
_POST_BOOT = "The requested operation is not supported after starting the microVM."


class _Requests(Mapping[tuple[str, str], frozenset[str] | None]):
    """The table, asked with the ids of resources in paths."""

    def __getitem__(self, key: tuple[str, str]) -> frozenset[str] | None:
        method, path = key
        return TABLE[method, re.sub(r"^/(drives|network-interfaces)/\w+$", r"/\1/{id}", path)]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(TABLE)

    def __len__(self) -> int:
        return len(TABLE)


REQUESTS = _Requests()


def main() -> None:
    """The executable."""
    argv = sys.argv[1:]
    if argv == ["--version"]:
        print(f"Firecracker v{VERSION}\n")
        return
    own: dict[str, str] = {}
    while argv:
        option = argv.pop(0)
        name = option.removeprefix("--")
        if not option.startswith("--") or name not in _OPTIONS:
            _fail(153, f"Arguments parsing error: Found argument '{name}' which wasn't expected, or isn't valid.")
        if not argv:
            _fail(153, f"Arguments parsing error: The argument '{name}' requires a value, but none was supplied.")
        own[name] = argv.pop(0)
    if not re.fullmatch(r"[A-Za-z0-9-]{1,64}", own.get("id", "anonymous-instance")):
        _fail(134, "thread 'main' panicked: Invalid instance ID")
    path = own.get("api-sock", "/run/firecracker.socket")
    if Path(path).exists():
        _fail(1, "Error: RunWithApi(FailedToBindAndRunHttpServer(IOError(AddrInUse)))")
    if Faults(os.environ.get(VARIABLE, "")).at("launch") == "exit":
        _fail(1, "Error: a fault of the test's")
    settings = {"socket": path, "id": own.get("id", "anonymous-instance")}
    launch("tests.simulators.firecracker_vmm", settings, guests.program)


def _fail(code: int, words: str) -> None:
    print(words, file=sys.stderr)
    sys.exit(code)


def serve(settings: dict[str, Any], faults: str, machine: Machine, qmp: socket.socket, console: socket.socket) -> None:
    """The API's process."""
    console.close()  # there is one line, and that is standard input and output
    vmm = _VMM(machine, QMP(qmp), settings)
    found = Faults(faults)

    def do(method: str, path: str, body: Any) -> Any:
        name = path.strip("/").split("/")
        if name[0] in ("drives", "network-interfaces"):
            if not body["drive_id" if name[0] == "drives" else "iface_id"] == name[1]:
                raise Refused(400, "The id from the path does not match the id from the body!")
            name = name[:1]
        return getattr(vmm, "_".join((method.lower(), *filter(None, name))).replace("-", "_"))(body)

    description = load("firecracker.yaml")
    server = Server(settings["socket"], REQUESTS, description, found, machine, do, _fault_message)
    if found.at("listening") == "exit":
        machine.end(1, "Error: a fault of the test's")
    server.serve_forever()


def _fault_message(words: tuple[str, ...]) -> dict[str, str]:
    return {"fault_message": ": ".join(words)}


class _VMM:
    """One VMM with at most one machine; a method per request, named as its method and path."""

    def __init__(self, machine: Machine, qmp: QMP, settings: dict[str, Any]) -> None:
        self._machine = machine
        self._guest = Running(qmp)
        self._settings = settings
        self._state = "Not started"
        self._boot: dict[str, Any] | None = None
        self._config: dict[str, Any] = {"cpus": 1, "memory_mib": 128, "drives": [], "net": {}}
        self._configured = False  # beyond the logger
        self._memory = -1  # what a machine's RAM is until it is restored
        self._log: Any = None

    def _configures(self) -> None:
        if self._state != "Not started":
            raise Refused(400, _POST_BOOT)
        self._configured = True

    def _needs(self, *states: str) -> None:
        if self._state == "Not started":
            raise Refused(400, _PRE_BOOT)
        if self._state not in states:
            raise Refused(400, f"Operation not allowed: the microVM is {self._state}")

    # Requests

    def get(self, _: None) -> dict[str, Any]:
        return {"id": self._settings["id"], "state": self._state, "vmm_version": VERSION, "app_name": "Firecracker"}

    def put_logger(self, body: dict[str, Any]) -> None:
        if self._state != "Not started":
            raise Refused(400, _POST_BOOT)
        try:
            self._log = os.fdopen(os.open(body["log_path"], os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o600), "w")
        except OSError as e:
            raise Refused(400, f"Logger error: Failed to open target file: {e.strerror}") from e
        print("2026-01-01T00:00:00 [logger] the logger is set", file=self._log, flush=True)

    def put_boot_source(self, body: dict[str, Any]) -> None:
        self._configures()
        for field, words in (("kernel_image_path", "kernel"), ("initrd_path", "initrd")):
            if body.get(field) and not Path(body[field]).is_file():
                raise Refused(400, f"Boot source error: The {words} file cannot be opened: No such file or directory")
        if len(body.get("boot_args", "")) >= 2048:
            raise Refused(400, "Boot source error: The kernel command line is invalid: too large")
        self._boot = body

    def put_machine_config(self, body: dict[str, Any]) -> None:
        self._configures()
        if not 1 <= body["vcpu_count"] <= 32:
            raise Refused(400, "Machine config error: The vCPU number is invalid!")
        if body["mem_size_mib"] <= 0:
            raise Refused(400, "Machine config error: The memory size (MiB) is invalid.")
        self._config |= {"cpus": body["vcpu_count"], "memory_mib": body["mem_size_mib"]}

    def put_drives(self, body: dict[str, Any]) -> None:
        self._configures()
        _open_drive(body)
        others = [drive for drive in self._config["drives"] if drive["drive_id"] != body["drive_id"]]
        self._config["drives"] = [*others, body]

    def put_network_interfaces(self, body: dict[str, Any]) -> None:
        self._configures()
        _open_tap(body["host_dev_name"])
        self._config["net"] = body

    def put_entropy(self, _: dict[str, Any]) -> None:
        self._configures()

    def put_actions(self, body: dict[str, Any]) -> None:
        if body["action_type"] == "InstanceStart":
            self._configures()
            self._start()
        elif body["action_type"] == "SendCtrlAltDel":
            self._needs("Running", "Paused")
            self._guest.press_ctrl_alt_del()
        else:
            raise Refused(400, "fleetbox asks for no such action")

    def patch_vm(self, body: dict[str, Any]) -> None:
        self._needs("Running", "Paused")
        if body["state"] == "Paused" and self._state == "Running":
            self._guest.pause()
        elif body["state"] == "Resumed" and self._state == "Paused":
            self._guest.resume()
        self._state = {"Paused": "Paused", "Resumed": "Running"}[body["state"]]

    def put_snapshot_create(self, body: dict[str, Any]) -> None:
        self._needs("Running", "Paused")
        if self._state != "Paused":
            raise Refused(400, "Create snapshot error: Cannot save the microVM state: the vCPUs are running")
        memory_bytes = self._config["memory_mib"] << 20
        try:
            with tempfile.TemporaryDirectory() as scratch:
                file = Path(scratch) / "state"
                self._guest.save(file)
                content = base64.b64encode(file.read_bytes()).decode()
            _write(body["snapshot_path"], json.dumps({"version": VERSION, **self._config, "qemu": content}).encode())
            # As the real one: every page, of which many are zero. A restored guest's RAM is in QEMU's state.
            memory = os.pread(self._memory, memory_bytes, 0) if self._memory >= 0 else bytes(memory_bytes)
            _write(body["mem_file_path"], memory)
        except (OSError, QMPFailed) as e:
            raise Refused(400, f"Create snapshot error: Cannot perform open on the snapshot backing file: {e}") from e

    def put_snapshot_load(self, body: dict[str, Any]) -> None:
        if self._state != "Not started":
            raise Refused(400, _POST_BOOT)
        if self._configured:
            raise Refused(
                400,
                "Load snapshot error: Loading a microVM snapshot not allowed after configuring boot-specific resources",
            )
        failed = "Load snapshot error: Failed to restore from snapshot"
        try:
            self._load(body)
        except (OSError, ValueError, KeyError, QMPFailed, Refused) as e:
            # The process is too dirty to recover: it says so, and ends.
            threading.Timer(0.05, self._machine.end, (1, "Error: RunWithApi(BuildFromRequests(Restore))")).start()
            raise Refused(400, failed, str(e)) from e

    # Machines

    def _start(self) -> None:
        if self._boot is None:
            raise Refused(400, "Start microvm error: Cannot start microvm without kernel configuration.")
        with Path(self._boot["kernel_image_path"]).open("rb") as file:
            if file.read(4) != b"\x7fELF":
                raise Refused(
                    400,
                    "Start microvm error: Cannot load kernel due to invalid memory configuration or"
                    " invalid kernel image: Kernel Loader: failed to load ELF kernel image",
                )
        self._memory = os.memfd_create("ram")
        os.truncate(self._memory, self._config["memory_mib"] << 20)
        self._become(f"/proc/{os.getpid()}/fd/{self._memory}", shared=True, incoming=False)
        self._state = "Running"

    def _load(self, body: dict[str, Any]) -> None:
        if body["mem_backend"]["backend_type"] != "File":
            raise Refused(400, "fleetbox serves no page faults")
        saved = json.loads(Path(body["snapshot_path"]).read_bytes())
        content = base64.b64decode(saved.pop("qemu"))
        if saved.pop("version") != VERSION:
            raise ValueError("Failed to load snapshot state from file: Invalid snapshot version")
        self._config = saved
        for override in body.get("network_overrides", ()):
            if override["iface_id"] != saved["net"].get("iface_id"):
                raise ValueError("Unknown Network Device")
            saved["net"]["host_dev_name"] = override["host_dev_name"]
        for drive in saved["drives"]:
            _open_drive(drive)
        if saved["net"]:
            _open_tap(saved["net"]["host_dev_name"])
        memory = Path(body["mem_backend"]["backend_path"])
        if memory.stat().st_size != saved["memory_mib"] << 20:
            raise ValueError("Failed to load guest memory: the file has another size")
        self._become(str(memory.absolute()), shared=False, incoming=True)
        with tempfile.NamedTemporaryFile() as state:
            Path(state.name).write_bytes(content)
            self._guest.load(Path(state.name))
        self._state = "Paused"
        if body.get("resume_vm"):
            self.patch_vm({"state": "Resumed"})

    def _become(self, memory_file: str, *, shared: bool, incoming: bool) -> None:
        config, boot = self._config, self._boot or {}
        guest = Guest(
            name="firecracker",
            mark=self._settings["socket"],
            cpus=config["cpus"],
            memory_bytes=config["memory_mib"] << 20,
            serial="",
            disks=tuple(GuestDisk(d["drive_id"], d["path_on_host"], d["is_read_only"]) for d in config["drives"]),
            memory_file=memory_file.replace(",", ",,"),
            shared=shared,
            kernel=boot.get("kernel_image_path", ""),
            initrd=boot.get("initrd_path", ""),
            cmdline=boot.get("boot_args", ""),
            tap=config["net"].get("host_dev_name", ""),
            mac=config["net"].get("guest_mac", ""),
            incoming=incoming,
        )
        self._machine.become(microvm.argv(guest, self._machine.qmp))
        self._guest.answers()


def _open_drive(drive: dict[str, Any]) -> None:
    try:
        with Path(drive["path_on_host"]).open("rb" if drive["is_read_only"] else "r+b"):
            pass
    except OSError as e:
        raise Refused(
            400, f"Drive config error: Unable to create the virtio block device: {e.strerror} {drive['path_on_host']}"
        ) from e


def _open_tap(name: str) -> None:
    if not Path("/sys/class/net", name).exists() and name not in {n for _, n in socket.if_nameindex()}:
        raise Refused(400, f"Network config error: Could not create the network device: Open tap device failed: {name}")


def _write(path: str, data: bytes) -> None:
    with Path(path).open("wb") as file:
        file.write(data)
