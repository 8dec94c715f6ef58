"""Guests of a few bytes that real QEMU machines run: they boot in milliseconds, and end in every way there is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fleetbox.backends.base import (
    BackendEnvironment,
    Disk,
    FirmwareBoot,
    Lease,
    Traffic,
    VMConfig,
    timeout_scale,
)
from fleetbox.backends.host.thread import HostThread
from fleetbox.backends.qemu import create_backend
from fleetbox.backends.qemu.vm import QemuVM

LIMIT_S = 30 * timeout_scale()

SAY_R = "baf803 b052 ee"  # out 0x3f8, 'R'
POWER_OFF = "ba0406 b80020 ef"  # PM1a_CNT: soft off
HALT = "f4 ebfd"
IDLE = SAY_R + HALT
POWERS_OFF = SAY_R + POWER_OFF + HALT
REBOOTS = SAY_R + "baf90c b006 ee" + HALT  # reset control register
# Power button enabled (PM1_EN); halt until an interrupt, look at PM1_STS, go on when it was pressed.
OBEYS = "ba0206 b80001 ef" + SAY_R + "f4 ba0006 ed f6c401 74f6" + POWER_OFF + HALT

# At every timer interrupt: the letter of the counter at 0x7e00, which goes round after 16.
COUNTS = "31c0 8ed8 baf803 fb f4 a0007e 0441 ee fe06007e 8026007e0f ebed"
LETTERS = b"ABCDEFGHIJKLMNOP"


class NoNetwork:
    """A network without interfaces: the machine has no network device."""

    subnet = ""
    bridge = ""

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    async def reserve(self, name: str, ip_hint: str = "") -> Lease:
        return Lease(name, "192.0.2.2", "02:00:00:00:00:01", 24, "192.0.2.1")

    async def release(self, name: str) -> None: ...

    async def close(self) -> None: ...

    async def attach(self, name: str, *, slot: int = 0, join: bool = True) -> str:
        return ""

    async def join(self, name: str, slot: int = 0) -> None: ...

    async def leave(self, name: str, slot: int = 0) -> None: ...

    async def detach(self, name: str, slot: int = 0) -> None: ...

    async def traffic(self, name: str, slot: int = 0) -> Traffic:
        return Traffic()


class TapBook(NoNetwork):
    """Remembers what is attached; its interface is not a tap."""

    def __init__(self) -> None:
        self.attached: list[str] = []

    async def attach(self, name: str, *, slot: int = 0, join: bool = True) -> str:
        self.attached.append(name)
        return "lo"

    async def detach(self, name: str, slot: int = 0) -> None:
        self.attached.remove(name)


def machine(folder: Path, program: str) -> VMConfig:
    """A machine that runs `program`; its folder's name has what QEMU's option syntax stumbles over."""
    data = folder / "a, b=c"
    data.mkdir(exist_ok=True)
    (folder / "run").mkdir(mode=0o700, exist_ok=True)
    disk = data / "disk.raw"
    disk.write_bytes(bytes.fromhex(program).ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 20))
    return VMConfig(
        name="test/node-1",
        run_dir=folder / "run",
        disks=(Disk(disk, "raw"),),
        seed=None,
        boot=FirmwareBoot(),
        mac="02:00:00:00:00:01",
        cpus=1,
        memory_bytes=128 << 20,
        serial_log=data / "serial.log",
        assigned_ip="192.0.2.2",
    )


def kernel(program: str) -> bytes:
    """A "bzImage" whose real-mode setup code is `program` (Documentation/arch/x86/boot.rst, protocol 2.04)."""
    image = bytearray(2048)
    image[0x1F1] = 1  # setup sectors after the first
    image[0x200:0x202] = b"\xeb\x7e"  # jump over the header, to 0x280
    image[0x202:0x208] = b"HdrS\x04\x02"
    image[0x211] = 1  # loaded high
    image[0x22C:0x230] = b"\xff\xff\xff\x7f"  # an initrd may stand anywhere
    code = bytes.fromhex(program)
    image[0x280 : 0x280 + len(code)] = code
    return bytes(image)


@asynccontextmanager
async def started(config: VMConfig, network: NoNetwork | None = None) -> AsyncIterator[QemuVM]:
    host = HostThread()
    backend = create_backend(BackendEnvironment(host))
    await backend.check()
    vm = await backend.create(config, network or NoNetwork())
    assert isinstance(vm, QemuVM)
    try:
        await vm.start()
        yield vm
    finally:
        await vm.kill()
        host.close()


async def said(config: VMConfig, text: bytes) -> None:
    while text not in config.serial_log.read_bytes():
        await asyncio.sleep(0.02)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(LIMIT_S):
            await test()

    asyncio.run(limited())


def left_in(config: VMConfig) -> list[str]:
    return sorted(path.suffix for path in config.run_dir.iterdir())


async def counted(log: Path, letters: int, after: int = 0) -> None:
    while len(log.read_bytes()) < after + letters:
        await asyncio.sleep(0.02)


def goes_round(text: bytes) -> bool:
    """Whether the letters are in their order, without one missing or twice."""
    first = LETTERS.index(text[:1])
    return text == bytes(LETTERS[(first + i) % len(LETTERS)] for i in range(len(text)))
