"""Every requirement of the host, looked at at once, each with a time limit; one that breaks is a line of the report."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import msgspec

from fleetbox.backends import registry
from fleetbox.backends.base import timeout_scale
from fleetbox.errors import FleetboxError
from fleetbox.holder.doctor.network import may_use_the_hosts
from fleetbox.holder.doctor.requirements import Requirement, requirements
from fleetbox.host import Check, DoctorReport

log = logging.getLogger(__name__)

_LIMIT_S = 30.0
_AGAIN = "run: fleetbox doctor again, with --debug if it stays"

T = TypeVar("T")


async def examine() -> DoctorReport:
    """Look at the host. Never raises: what cannot be found out is a check that says so."""
    checks = tuple(await asyncio.gather(*(_look(requirement) for requirement in requirements())))
    able = {check.name for check in checks if check.status != "fail"}
    host, private = may_use_the_hosts() and "network" in able, "private networks" in able
    return DoctorReport(checks, *_new_cluster(), network="host" if host else "private" if private else "")


async def _look(requirement: Requirement) -> Check:
    check = await guarded(requirement.name, in_thread(requirement.find))
    return msgspec.structs.replace(check, why=check.why or requirement.why)


async def guarded(name: str, check: Coroutine[Any, Any, Check], limit_s: float = _LIMIT_S) -> Check:
    """What `check` finds; a check that hangs or breaks is a finding too."""
    limit_s *= timeout_scale()
    try:
        async with asyncio.timeout(limit_s):
            return await check
    except TimeoutError:
        return Check(name, "warn", f"could not be found out in {limit_s:.3g} s", _AGAIN)
    except FleetboxError as e:
        return Check(name, "fail", str(e), e.hint)
    except Exception as e:  # one broken check must not hide the others
        log.exception("check %s", name)
        return Check(name, "warn", f"could not be found out: {type(e).__name__}: {e}", _AGAIN)


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


def _new_cluster() -> tuple[str, str]:
    """Backend and accelerator of a cluster that is made now; empty where that cannot be said."""
    try:
        backend = registry.choose().name
    except FleetboxError:
        return "", ""  # FLEETBOX_BACKEND names one that does not exist: the check says so
    try:
        from fleetbox.backends.qemu import accelerator

        return backend, accelerator.probe().name  # known by now
    except (FleetboxError, OSError):
        return backend, ""
