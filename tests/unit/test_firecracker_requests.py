"""What firecracker is asked: in its order, with fields that it knows, in paths of its working folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fleetbox.backends.base import DirectBoot, Disk, VMConfig
from fleetbox.backends.firecracker import requests, workfolder
from fleetbox.backends.firecracker.requests import Request
from fleetbox.backends.firecracker.workfolder import WorkFolder
from fleetbox.errors import MachineError
from tests.simulators.description import find, load
from tests.simulators.firecracker_vmm import REQUESTS

BOOT = DirectBoot(Path("/images/kernel"), Path("/images/initrd"), "root=UUID=1 ro console=ttyS0")
CONFIG = VMConfig(
    name="test/node-1",
    run_dir=Path("/run/x"),
    disks=(Disk(Path("/data/disk.raw"), "raw"),),
    seed=Path("/data/seed.iso"),
    boot=BOOT,
    mac="02:00:00:00:00:01",
    cpus=2,
    memory_bytes=(512 << 20) + 1,
    serial_log=Path("/data/serial.log"),
    fixtures=(Disk(Path("/data/fixture-0.img"), "raw", read_only=True),),
)


def configuration(config: VMConfig = CONFIG, tap: str = "fb0t1") -> list[Request]:
    assert isinstance(config.boot, DirectBoot)
    return requests.configuration(config, config.boot, Path("/cache/vmlinux"), workfolder.drives(config), tap)


ALL = [
    requests.logger(Path("/run/x/node-1.log")),
    *configuration(),
    requests.action("SendCtrlAltDel"),
    requests.state("Paused"),
    requests.state("Resumed"),
    requests.save(Path("/s/state"), Path("/s/memory")),
    requests.load(Path("/s/state"), Path("/s/memory"), "fb0t2"),
]


def test_a_machine_is_configured_in_order_and_then_started() -> None:
    assert [request.path for request in configuration()] == [
        "/boot-source",
        "/machine-config",
        "/drives/disk0",
        "/drives/seed",
        "/drives/fixture0",
        "/network-interfaces/eth0",
        "/entropy",
        "/actions",
    ]
    assert [r.path for r in configuration(replace(CONFIG, seed=None, fixtures=()), tap="")] == [
        *("/boot-source", "/machine-config", "/drives/disk0", "/entropy", "/actions")
    ]


def test_what_is_asked_is_what_was_wanted() -> None:
    bodies = {request.path: request.body for request in configuration()}
    assert bodies["/machine-config"] == {"vcpu_count": 2, "mem_size_mib": 513}
    assert bodies["/boot-source"]["kernel_image_path"] == "/cache/vmlinux"
    assert bodies["/boot-source"]["initrd_path"] == "/images/initrd"
    arguments = str(bodies["/boot-source"]["boot_args"]).split()
    assert {"root=UUID=1", "console=ttyS0", "panic=1"} <= set(arguments)
    assert "reboot=k" in arguments or not requests.HAS_KEYBOARD
    drives = [bodies[f"/drives/{name}"] for name in ("disk0", "seed", "fixture0")]
    assert [drive["path_on_host"] for drive in drives] == ["disk0", "seed", "fixture0"]
    assert [drive["is_read_only"] for drive in drives] == [False, True, True]
    # firecracker would append `root=/dev/vda` to the command line, behind our own.
    assert not any(drive["is_root_device"] for drive in drives)
    assert bodies["/network-interfaces/eth0"]["host_dev_name"] == "fb0t1"


def test_no_initrd_is_none() -> None:
    source = configuration(replace(CONFIG, boot=replace(BOOT, initrd=None)))[0].body
    assert "initrd_path" not in source


@pytest.mark.parametrize("request_", ALL, ids=lambda r: f"{r.method} {r.path}")
def test_every_request_is_in_the_projects_own_table(request_: Request) -> None:
    fields = REQUESTS[request_.method, request_.path]
    assert fields is not None
    assert request_.body.keys() <= fields


@pytest.mark.skipif(find("firecracker.yaml") is None, reason="the published description is not beside the checkout")
@pytest.mark.parametrize("request_", ALL, ids=lambda r: f"{r.method} {r.path}")
def test_every_request_is_in_the_published_description(request_: Request) -> None:
    description = load("firecracker.yaml")
    assert description is not None
    assert description.objection(*request_) == ""


def on_disk(tmp_path: Path) -> VMConfig:
    disk, seed = tmp_path / "disk.raw", tmp_path / "seed.iso"
    for path in (disk, seed):
        path.write_bytes(b"x")
    return replace(CONFIG, disks=(Disk(disk, "raw"),), seed=seed, fixtures=())


def test_a_work_folder_names_the_disks_by_links(tmp_path: Path) -> None:
    config = on_disk(tmp_path)
    folder = WorkFolder(tmp_path / "work")
    for _ in range(2):  # the second time over what a crash has left
        folder.make(config)
        assert folder.path.stat().st_mode & 0o777 == 0o700
        assert {p.name: p.readlink() for p in folder.path.iterdir()} == {
            "disk0": config.disks[0].path,
            "seed": config.seed,
        }
    folder.remove()
    folder.remove()
    assert config.disks[0].path.read_bytes() == b"x"


def test_a_work_folder_refuses_what_firecracker_cannot_take(tmp_path: Path) -> None:
    config = on_disk(tmp_path)
    with pytest.raises(MachineError, match="there is no disk"):
        WorkFolder(tmp_path / "work").make(replace(config, seed=tmp_path / "none.iso"))
    with pytest.raises(MachineError, match="raw disks"):
        WorkFolder(tmp_path / "work").make(replace(config, disks=(Disk(config.disks[0].path, "qcow2"),)))
