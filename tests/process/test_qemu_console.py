"""The console and the counters of real QEMU machines that run a few bytes of guest."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from fleetbox.backends.host import programs
from tests.process.qemu_guests import IDLE, LIMIT_S, SAY_R, left_in, machine, run, said, started

pytestmark = pytest.mark.skipif(programs.find(programs.QEMU) is None, reason="QEMU is not installed")

ECHOES = SAY_R + "bafd03 ec a801 74f8 baf803 ec ee ebf1"  # what comes in on the first serial port goes out again


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETBOX_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FLEETBOX_ACCELERATOR", "tcg")


def test_the_console_is_two_way_and_its_log_has_every_byte(tmp_path: Path) -> None:
    config = machine(tmp_path, ECHOES)

    async def test() -> None:
        async with started(config) as vm:
            await said(config, b"R")  # before anybody was there
            for word in (b"first", b"second"):  # one user after the other
                reader, writer = await asyncio.open_unix_connection(vm.console().path)
                writer.write(word)
                async with asyncio.timeout(LIMIT_S):
                    assert await reader.readexactly(len(word)) == word
                await said(config, word)  # the log is written after the line
                writer.close()
                await writer.wait_closed()
            await vm.kill()
            assert config.serial_log.read_bytes() == b"Rfirstsecond"
            assert left_in(config) == []

    run(test)


def test_reading_the_disk_is_counted(tmp_path: Path) -> None:
    config = machine(tmp_path, IDLE)

    async def test() -> None:
        async with started(config) as vm:
            await said(config, b"R")
            used = await vm.statistics()
            assert used.disk_read_bytes >= 512  # the firmware has read the boot sector
            assert used.disk_written_bytes == 0
            assert used.cpu_seconds > 0
            assert used.memory_bytes > 1 << 20

    run(test)
