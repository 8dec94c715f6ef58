"""What the fake backend offers beyond the contract: guests that do things, and faults on request."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fleetbox.backends.base import Capabilities, State, timeout_scale
from fleetbox.backends.fake import FakeBackend, FakeVM, tell
from fleetbox.errors import MachineError, NetworkError, UsageError
from fleetbox.identity import is_alive

from .conftest import CLUSTER, Bench, Holder


@pytest.fixture
def bench(fleetbox_home: Path) -> Bench:
    folder = fleetbox_home / "a, b=c"
    (folder / "run").mkdir(mode=0o700, parents=True)
    return Bench("fake", fleetbox_home, folder)


def script(holder: Holder, text: str) -> None:
    """Set the faults of a holder's backend."""
    assert isinstance(holder.backend, FakeBackend)
    holder.backend.faults.text = text


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10 * timeout_scale()):
        while not condition():
            await asyncio.sleep(0.01)


def test_needs_neither_image_nor_ssh(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            able: Capabilities = holder.backend.capabilities()
            assert not able.ssh
            assert not able.needs_images
            assert set(able.disk_formats) == {"raw", "qcow2"}
            vm = await holder.running()
            assert await vm.wait_for_ip(0.5 * timeout_scale()) == vm.config.assigned_ip
            assert holder.backend.notes == ()

    bench.run(scenario)


def test_guest_powers_off(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            vm = await holder.running()
            assert vm.handle is not None
            handle = vm.handle
            assert tell(handle, "poweroff")
            status = await vm.wait()
            assert (status.code, status.reason) == (0, "powered off by the guest")
            assert vm.state() is State.STOPPED
            assert not tell(handle, "poweroff")
            bench.assert_nothing_runs()

    bench.run(scenario)


def test_guest_reboots_and_stays_the_same_process(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            vm = await holder.running()
            before = vm.handle
            assert before is not None
            assert tell(before, "reboot")
            assert tell(before, "hello from the console")
            await until(lambda: "hello from" in vm.config.serial_log.read_text())
            lines = vm.config.serial_log.read_text()
            assert lines.count("bench/node-1 has booted") == 2
            assert lines.count("node-1 login:") == 2
            assert vm.state() is State.RUNNING
            assert vm.handle == before

    bench.run(scenario)


def test_guest_panics(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            vm = await holder.running()
            assert isinstance(vm, FakeVM)
            vm.guest("panic")
            status = await vm.wait()
            assert status.code == 1
            assert "Kernel panic" in status.reason

    bench.run(scenario)


def test_graceful_stop_and_sigterm_are_told_apart_in_the_log(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            gentle, hard = await holder.running("node-1"), await holder.running("node-2")
            await gentle.stop(10 * timeout_scale())
            assert "Power down" in gentle.config.serial_log.read_text()
            assert hard.handle is not None
            os.kill(hard.handle.process.pid, signal.SIGTERM)
            assert (await hard.wait()).code == 0
            assert "ended by SIGTERM" in hard.config.serial_log.read_text()

    bench.run(scenario)


def test_member_without_a_lease_is_refused(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            config = await holder.config()
            await holder.network.release("node-1")
            with pytest.raises(MachineError, match="no address"):
                await holder.backend.create(config, holder.network)

    bench.run(scenario)


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("start:node-2=fail", "refuses to start"),
        ("start:node-2=die", "killed by signal 9"),
    ],
)
def test_start_fails_for_one_member_only(bench: Bench, fault: str, why: str) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            script(holder, fault)
            await holder.running("node-1")
            vm = await holder.machine("node-2")
            with pytest.raises(MachineError, match=why):
                await vm.start()
            assert vm.state() is State.STOPPED
            assert [p.stem for p in bench.run_dir.glob("*.pid")] == ["node-1"]
            script(holder, "")
            await vm.start()
            assert vm.state() is State.RUNNING

    bench.run(scenario)


@pytest.mark.parametrize("fault", ["start=hang", "start=slow:600"])
def test_start_that_hangs_is_undone_when_cancelled(bench: Bench, fault: str) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            script(holder, fault)
            vm = await holder.machine()
            starting = asyncio.create_task(vm.start())
            await until(lambda: bool(bench.processes()) and bool(list(bench.run_dir.glob("*.pid"))))
            assert vm.state() is State.STARTING
            with pytest.raises(MachineError):
                await vm.stop(0)
            starting.cancel()
            await asyncio.wait({starting})
            assert vm.state() is State.STOPPED
            bench.assert_nothing_runs()

    bench.run(scenario)


def test_boot_faults(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            script(holder, "boot:node-1=fail,boot:node-2=die,boot:node-3=hang,boot:node-4=slow:0.2")
            panics, dies, hangs, slow = [await holder.running(f"node-{n}") for n in (1, 2, 3, 4)]
            assert (await panics.wait()).code == 1
            assert (await dies.wait()).code == -9
            with pytest.raises(MachineError, match="did not answer"):
                await hangs.wait_for_ip(0.1)
            assert hangs.state() is State.RUNNING
            assert await slow.wait_for_ip(10 * timeout_scale()) == slow.config.assigned_ip

    bench.run(scenario)


def test_slow_boot_holds_calibration_and_address_back(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            script(holder, "boot=slow:600")
            vm = await holder.running()
            calibrated = asyncio.create_task(vm.booted_past_calibration(600))
            with pytest.raises(MachineError, match="did not answer"):
                await vm.wait_for_ip(0.1)
            assert not calibrated.done()
            calibrated.cancel()

    bench.run(scenario)


def test_machine_crashes_after_its_start(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            script(holder, "boot:node-1=die-after:0.2")
            began = time.monotonic()
            vm = await holder.running()
            assert (await vm.wait()).code == -9
            assert time.monotonic() - began >= 0.2

    bench.run(scenario)


def test_address_faults(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            script(holder, "address:node-1=fail,address:node-2=hang,address:node-3=die,address:node-4=slow:0.1")
            fails, hangs, dies, slow = [await holder.running(f"node-{n}") for n in (1, 2, 3, 4)]
            with pytest.raises(MachineError, match="told so"):
                await fails.wait_for_ip(10)
            with pytest.raises(MachineError, match="did not answer") as error:
                await hangs.wait_for_ip(0.1)
            assert error.value.details[-1] == "node-2 login:"
            with pytest.raises(MachineError, match="ended before"):
                await dies.wait_for_ip(10)
            assert await slow.wait_for_ip(10 * timeout_scale()) == slow.config.assigned_ip

    bench.run(scenario)


def test_stop_faults(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            script(holder, "stop:node-1=hang,stop:node-2=die,stop:node-3=fail")
            deaf, dies, fails = [await holder.running(f"node-{n}") for n in (1, 2, 3)]
            await deaf.stop(0)
            assert (await deaf.wait()).code == -9
            await dies.stop(10)
            assert (await dies.wait()).code == -9
            with pytest.raises(MachineError, match="told so"):
                await fails.stop(10)
            assert fails.state() is State.RUNNING

    bench.run(scenario)


def test_network_and_create_faults(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            script(holder, "create:node-2=fail")
            await holder.machine("node-1")
            with pytest.raises(MachineError):
                await holder.machine("node-2")

    async def without_network() -> None:
        with pytest.raises(NetworkError, match=CLUSTER):
            async with bench.holder():
                pytest.fail("there is no network")

    bench.run(scenario)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLEETBOX_FAKE_FAULTS", "network:bench=fail")
        bench.run(without_network)
        patch.setenv("FLEETBOX_FAKE_FAULTS", "network:another=fail")
        bench.run(scenario)


def test_adopt_faults(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            vm = await holder.running()
            assert vm.handle is not None
            handle = vm.handle
            script(holder, "adopt=fail")
            with pytest.raises(MachineError, match="told so"):
                await holder.adopt(vm.config, handle)
            assert is_alive(handle.process)
            script(holder, "adopt=die")
            assert await holder.adopt(vm.config, handle) is None
            assert (await vm.wait()).code == -9

    bench.run(scenario)


def test_faults_of_a_running_holder_change_with_their_file(bench: Bench) -> None:
    rules = bench.folder / "faults"

    async def scenario() -> None:
        async with bench.holder() as holder:
            script(holder, f"@{rules}")
            await holder.running("node-1")
            rules.write_text("# not a rule")
            with pytest.raises(UsageError, match="not a rule"):
                await (await holder.machine("node-2")).start()
            rules.write_text("start:node-2=fail\nboot:node-2=hang\n")
            with pytest.raises(MachineError):
                await (await holder.machine("node-2")).start()
            rules.unlink()
            await (await holder.machine("node-2")).start()

    bench.run(scenario)


def test_a_hundred_members_start_and_stop_at_once(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            vms = await asyncio.gather(*(holder.running(f"node-{n}") for n in range(1, 101)))
            assert {vm.state() for vm in vms} == {State.RUNNING}
            assert len(await asyncio.gather(*(vm.wait_for_ip(30 * timeout_scale()) for vm in vms))) == 100
            await asyncio.gather(*(vm.stop(30 * timeout_scale()) for vm in vms))
            bench.assert_nothing_runs()

    bench.run(scenario)
