"""What fleetbox itself costs beside a hypervisor: from `up` to its launch, one call of its API, one clone's restore.

The simulators stand for cloud-hypervisor and firecracker; FLEETBOX_CLOUD_HYPERVISOR and FLEETBOX_FIRECRACKER point the
same measurements at real programs. Guests are a kernel of a few bytes: they never answer, and nothing waits for them.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import statistics
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from _measure import home, run, table, verdict

import fleetbox
from fleetbox.backends import registry
from fleetbox.backends.base import Backend, BackendEnvironment, DirectBoot, Disk, Restores, VMConfig
from fleetbox.backends.host import disk as disks
from fleetbox.backends.host.thread import HostThread
from fleetbox.backends.vmm import pinned, rest
from fleetbox.errors import FleetboxError
from fleetbox.launch import ensure_holder

BACKENDS = ("cloud-hypervisor", "firecracker")
REPEATS = int(os.environ.get("REPEATS", "5"))
MEMORY_BYTES = 128 << 20
IMAGE = "small"


def main() -> None:
    """Print the table."""
    from tests.netns import TestNet

    with TestNet() as net:
        net.enter()
        rows = [row for backend in BACKENDS for row in measure(backend)]
    table("Beside a hypervisor", ("backend", "what", "best", "median", "promise", ""), rows)


def measure(backend: str) -> list[tuple[str, ...]]:
    """The rows of one backend."""
    from tests import tinykernel
    from tests.simulators import stand_in

    with home() as folder:
        os.environ.update(stand_in(backend, {}))
        kernel = tinykernel.write(folder / "kernel")
        image = folder / "disk.raw"
        run("mke2fs", "-q", "-F", str(image), "64M")
        fleetbox.images.import_(str(image), name=IMAGE)
        launches = [to_launch(backend, f"launch-{n}", image, kernel) for n in range(REPEATS)]
        calls, restores = asyncio.run(beside(backend, folder, image, kernel))
    found = (
        ("up to launch, beyond the disk", launches, 0.25),
        ("API call", calls, 0.005),
        ("clone's restore", restores, 0.15),
    )
    return [
        (
            backend,
            what,
            ms(min(taken)),
            ms(statistics.median(taken)),
            ms(limit),
            verdict(statistics.median(taken), limit),
        )
        for what, taken, limit in found
    ]


def ms(value: float) -> str:
    """Milliseconds in words."""
    return f"{value * 1000:.1f} ms"


def to_launch(backend: str, cluster: str, image: Path, kernel: Path) -> float:
    """From `up` at a holder that is there to the process's pidfile, less its disk and the program's own `--version`."""
    ensure_holder(cluster)
    failed: list[FleetboxError] = []
    began = time.time()

    def up() -> None:
        try:
            fleetbox.up(
                cluster,
                backend=backend,
                image=IMAGE,
                kernel=str(kernel),
                boot="direct",
                memory_bytes=MEMORY_BYTES,
                cold=True,
            )
        except FleetboxError as e:
            failed.append(e)

    thread = threading.Thread(target=up, daemon=True)
    thread.start()
    pidfile = pidfile_of(cluster, failed)
    launched = pidfile.stat().st_mtime
    os.kill(int(pidfile.read_text()), signal.SIGKILL)  # it would never be ready
    thread.join()
    return launched - began - disk_takes(backend, image) - version_takes(backend)


def pidfile_of(cluster: str, failed: list[FleetboxError]) -> Path:
    """The member's pidfile, once it is there."""
    from fleetbox import paths

    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for found in paths.cluster_runtime_dir(cluster).glob("node-1.pid"):
            if found.read_text():
                return found
        if failed:
            raise failed[0]
        time.sleep(0.002)
    raise TimeoutError(f"{cluster}: no hypervisor in a minute")


def disk_takes(backend: str, image: Path) -> float:
    """How long a member's disk takes."""
    folder = image.parent / "one"
    folder.mkdir()
    formats = registry.create(backend, BackendEnvironment(HostThread(), dict(os.environ))).capabilities().disk_formats
    began = time.monotonic()
    asyncio.run(disks.make_disk(image, folder, 0, formats))
    taken = time.monotonic() - began
    shutil.rmtree(folder)
    return taken


def version_takes(backend: str) -> float:
    """How long the program takes to tell its version: once per holder, and long for a simulator."""
    found = pinned.find(backend)
    assert found is not None
    began = time.monotonic()
    run(str(found.path), "--version")
    return time.monotonic() - began


async def beside(name: str, folder: Path, image: Path, kernel: Path) -> tuple[list[float], list[float]]:
    """API calls, and restores without the time that the hypervisor takes for what it is asked."""
    from tests.process.qemu_guests import NoNetwork

    host = HostThread()
    backend = registry.create(name, BackendEnvironment(host, dict(os.environ)))
    assert isinstance(backend, Restores)
    (folder / "bench").mkdir(mode=0o700)
    snapshot = folder / "snapshot"
    snapshot.mkdir()
    config = VMConfig(
        name="bench/template",
        run_dir=folder / "bench",
        disks=(Disk(image, "raw"),),
        seed=None,
        boot=DirectBoot(kernel, None, ""),
        mac="02:00:00:00:00:01",
        cpus=1,
        memory_bytes=MEMORY_BYTES,
        serial_log=folder / "serial.log",
        assigned_ip="192.0.2.2",
        memory_file=folder / "memory",
    )
    vm: Any = await backend.create(config, NoNetwork())
    await vm.start()
    calls = [await timed(vm._ask_state) for _ in range(50)]
    await vm.pause()
    await vm.snapshot(snapshot)
    await vm.kill()
    clone = replace(config, name="bench/clone", memory_file=None)
    restores = [await own_time(backend, clone, snapshot) for _ in range(REPEATS)]
    host.close()
    return calls, restores


async def timed(work: Callable[[], Awaitable[object]]) -> float:
    """How long one call takes."""
    began = time.monotonic()
    await work()
    return time.monotonic() - began


async def own_time(backend: Backend, config: VMConfig, snapshot: Path) -> float:
    """A restore's time without that of the hypervisor: its start until its API answers, and its answers."""
    from tests.process.qemu_guests import NoNetwork

    waited = 0.0
    request, ready = rest.Api.request, rest.Api.ready
    inside = False

    def counted(method: Any) -> Any:
        async def call(self: rest.Api, *arguments: Any, **named: Any) -> Any:
            nonlocal waited, inside
            if inside:  # `ready` asks by requests
                return await method(self, *arguments, **named)
            inside = True
            began = time.monotonic()
            try:
                return await method(self, *arguments, **named)
            finally:
                waited += time.monotonic() - began
                inside = False

        return call

    rest.Api.request, rest.Api.ready = counted(request), counted(ready)  # type: ignore[method-assign]
    assert isinstance(backend, Restores)
    try:
        began = time.monotonic()
        vm: Any = await backend.restore(config, NoNetwork(), snapshot)
        await vm.start()
        await vm.resume()
        return time.monotonic() - began - waited
    finally:
        rest.Api.request, rest.Api.ready = request, ready  # type: ignore[method-assign]
        await vm.kill()


if __name__ == "__main__":
    main()
