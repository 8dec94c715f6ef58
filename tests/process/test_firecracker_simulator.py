"""The simulated firecracker refuses what the real one refuses: unknown options and fields, a wrong order or state."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fleetbox.backends.vmm.rest import Api, Refused
from tests import tinykernel
from tests.simulators import PROGRAMS
from tests.simulators.faults import VARIABLE

PROGRAM = PROGRAMS["firecracker"][1]
LIMIT_S = 60.0
PRE_BOOT, POST_BOOT = "not supported before starting", "not supported after starting"


@contextmanager
def running(folder: Path) -> Iterator[Api]:
    """A simulator that works in `folder`; its API."""
    socket = folder / "api.sock"
    environ = {name: value for name, value in os.environ.items() if name != VARIABLE}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [PROGRAM, "--api-sock", str(socket), "--id", "a"],
            cwd=folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield Api("firecracker", socket, folder / "log")
    finally:
        process.kill()
        process.wait()


def ask(folder: Path, scenario: Callable[[Api], Awaitable[None]]) -> None:
    async def main() -> None:
        with running(folder) as api:
            await api.ready("/", LIMIT_S)
            await scenario(api)

    asyncio.run(main())


async def refused(api: Api, method: str, path: str, body: Any, words: str) -> None:
    with pytest.raises(Refused, match=words) as caught:
        await api.request(method, path, body)
    assert caught.value.status == 400


def test_before_its_start_a_machine_is_neither_held_nor_saved(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        assert (await api.get("/"))["state"] == "Not started"
        await refused(api, "PATCH", "/vm", {"state": "Paused"}, PRE_BOOT)
        await refused(api, "PUT", "/actions", {"action_type": "SendCtrlAltDel"}, PRE_BOOT)
        await refused(api, "PUT", "/snapshot/create", {"snapshot_path": "s", "mem_file_path": "m"}, PRE_BOOT)
        await refused(api, "PUT", "/actions", {"action_type": "InstanceStart"}, "without kernel configuration")

    ask(tmp_path, scenario)


def test_what_is_not_known_or_not_there_is_refused(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        drive = {"drive_id": "a", "path_on_host": "none", "is_root_device": False, "is_read_only": False}
        await refused(api, "PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 64, "cores": 2}, "table: cores")
        await refused(api, "PUT", "/machine-config", {"vcpu_count": 33, "mem_size_mib": 64}, "vCPU number")
        await refused(api, "PUT", "/boot-source", {"kernel_image_path": "none"}, "cannot be opened")
        await refused(api, "PUT", "/drives/a", drive, "No such file")
        await refused(api, "PUT", "/drives/b", drive, "does not match")
        await refused(api, "PUT", "/network-interfaces/e", {"iface_id": "e", "host_dev_name": "none"}, "tap device")
        (tmp_path / "kernel").write_bytes(b"HdrS")
        await api.put("/boot-source", {"kernel_image_path": "kernel"})
        await refused(api, "PUT", "/actions", {"action_type": "InstanceStart"}, "invalid kernel image")

    ask(tmp_path, scenario)


def test_a_started_machine_takes_no_more_resources(tmp_path: Path) -> None:
    tinykernel.write(tmp_path / "kernel")

    async def scenario(api: Api) -> None:
        await api.put("/boot-source", {"kernel_image_path": "kernel", "boot_args": ""})
        await api.put("/machine-config", {"vcpu_count": 1, "mem_size_mib": 32})
        load = {"snapshot_path": "s", "mem_backend": {"backend_type": "File", "backend_path": "m"}}
        await refused(api, "PUT", "/snapshot/load", load, "not allowed after configuring")
        await api.put("/actions", {"action_type": "InstanceStart"})
        assert (await api.get("/"))["state"] == "Running"
        await refused(api, "PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 32}, POST_BOOT)
        await refused(api, "PUT", "/actions", {"action_type": "InstanceStart"}, POST_BOOT)
        await refused(api, "PUT", "/snapshot/load", load, POST_BOOT)
        save = {"snapshot_path": "state", "mem_file_path": "memory"}
        await refused(api, "PUT", "/snapshot/create", save, "are running")
        for _ in range(2):
            await api.request("PATCH", "/vm", {"state": "Paused"})
        assert (await api.get("/"))["state"] == "Paused"
        await api.put("/snapshot/create", save)
        assert (tmp_path / "memory").stat().st_size == 32 << 20

    ask(tmp_path, scenario)


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["--socket", "x"], 153, "wasn't expected"),
        (["--api-sock"], 153, "requires a value"),
        (["--api-sock", "x", "--id", "a b"], 134, "Invalid instance ID"),
        (["--api-sock", "there"], 1, "AddrInUse"),
    ],
)
def test_a_command_line_that_it_does_not_take_ends_it(tmp_path: Path, argv: list[str], code: int, words: str) -> None:
    (tmp_path / "there").touch()
    done = subprocess.run([PROGRAM, *argv], cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert (done.returncode, words in done.stderr) == (code, True), done.stderr
