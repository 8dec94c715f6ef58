"""Every check of the host, run at once, each with a time limit; one that breaks is one line of the report."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from fleetbox.backends import registry
from fleetbox.backends.base import timeout_scale
from fleetbox.backends.host import programs
from fleetbox.backends.host.programs import Program
from fleetbox.errors import FleetboxError
from fleetbox.holder.doctor import machine, network
from fleetbox.host import Check, DoctorReport

if TYPE_CHECKING:
    from fleetbox.backends.qemu.accelerator import Accelerator

log = logging.getLogger(__name__)

_LIMIT_S = 30.0

T = TypeVar("T")


async def examine() -> DoctorReport:
    """Look at the host. Never raises: what cannot be found out is a check that says so."""
    probe = asyncio.create_task(in_thread(_probe))
    coroutines = [
        guarded("backend", _check_backend(probe)),
        guarded("kvm", _check_kvm(probe)),
        *(guarded(p.name, in_thread(partial(_check_program, p))) for p in programs.PROGRAMS),
        guarded("network", in_thread(network.check)),
        guarded("firewall", in_thread(network.check_firewall)),
        guarded("folders", in_thread(machine.check_folders)),
        guarded("disk space", in_thread(machine.check_disk_space)),
        guarded("memory", in_thread(machine.check_memory)),
        guarded("cores", in_thread(machine.check_cores)),
        guarded("user namespaces", in_thread(machine.check_user_namespaces)),
    ]
    checks = tuple(await asyncio.gather(*coroutines))
    probe.cancel()
    probed = probe.done() and not probe.cancelled() and probe.exception() is None
    able = any(check.name == "network" and check.status != "fail" for check in checks)
    return DoctorReport(
        checks=checks,
        backend=_backend(),
        accelerator=probe.result().name if probed else "",
        network="host" if able else "",
    )


async def guarded(name: str, check: Coroutine[Any, Any, Check], limit_s: float = _LIMIT_S) -> Check:
    """What `check` finds; a check that hangs or breaks is a finding too."""
    limit_s *= timeout_scale()
    try:
        async with asyncio.timeout(limit_s):
            return await check
    except TimeoutError:
        return Check(name, "warn", f"could not be found out in {limit_s:.3g} s")
    except FleetboxError as e:
        return Check(name, "fail", str(e), e.hint)
    except Exception as e:  # one broken check must not hide the others
        log.exception("check %s", name)
        return Check(name, "warn", f"could not be found out: {type(e).__name__}: {e}")


async def in_thread(function: Callable[[], T]) -> T:
    """Call `function` in a thread of its own, which is abandoned when its result is not waited for any more.

    A dead network file system blocks its caller for ever: an executor's thread would keep the process from ending.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(outcome: Callable[[], None]) -> None:
        if not future.done():
            outcome()

    def work() -> None:
        try:
            result = function()
        except BaseException as e:
            error = e
            tell(lambda: future.set_exception(error))
        else:
            tell(lambda: future.set_result(result))

    def tell(outcome: Callable[[], None]) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, outcome)

    threading.Thread(target=work, name="doctor", daemon=True).start()
    return await future


def _probe() -> Accelerator:
    # Imported here: what keeps the qemu backend from being imported is one failed check, not a failed doctor.
    from fleetbox.backends.qemu import accelerator

    return accelerator.probe()


async def _check_kvm(probe: asyncio.Task[Accelerator]) -> Check:
    accelerator = await asyncio.shield(probe)
    if accelerator.kvm_works is False:
        hint = "machines are emulated: they work, and boot many times slower"
        return Check("kvm", "warn", f"not used: {accelerator.reason}", hint)
    return Check("kvm", "ok", accelerator.reason)


def _backend() -> str:
    try:
        return registry.choose().name
    except FleetboxError:
        return ""  # FLEETBOX_BACKEND names one that does not exist: the check says so


async def _check_backend(probe: asyncio.Task[Accelerator]) -> Check:
    choice = registry.choose()
    if choice.name != "qemu":
        return Check("backend", "ok", f"{choice.name} ({choice.reason})")
    accelerator = await asyncio.shield(probe)
    return Check("backend", "ok", f"{choice.name} ({choice.reason}) with {accelerator.name}")


def _check_program(program: Program) -> Check:
    if program.name == programs.QEMU:
        from fleetbox.backends.qemu import binary

        qemu = binary.require()
        confined = "" if qemu.sandbox else ", without seccomp"
        return Check(program.name, "ok", f"{qemu.path}, version {qemu.version_text}{confined}")
    found = programs.find(program.name)
    if found is not None:
        return Check(program.name, "ok", str(found))
    error = programs.missing(program.name)
    return Check(
        program.name, "warn" if program.optional else "fail", f"not installed; it {program.purpose}", error.hint
    )
