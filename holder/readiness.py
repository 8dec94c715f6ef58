"""When a member is ready: an authenticated command over strict host keys answers with its own name."""

from __future__ import annotations

import asyncio

from fleetbox import ssh
from fleetbox.backends.base import VM, State
from fleetbox.backends.host.process import ProgramFailed, run
from fleetbox.errors import HostError, MachineError
from fleetbox.records import ClusterRecord, MemberRecord

ATTEMPT_LIMIT_S = 30.0


async def wait_for_ssh(cluster: ClusterRecord, member: MemberRecord, vm: VM, timeout_s: float) -> None:
    """Return when the member is ready. Raises MachineError after `timeout_s`, or as soon as the machine has ended."""
    argv = ssh.argv(cluster, member, ["hostname"], tty=False, multiplex=False, batch=True)
    seen = "no attempt was made"
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    answered = (await run(argv, timeout_s=ATTEMPT_LIMIT_S)).decode(errors="replace").strip()
                    if answered == member.name:
                        return
                    seen = f"the machine there calls itself {answered[:80]!r}"
                except ProgramFailed as e:
                    seen = e.why
                except HostError as e:
                    if e.why:  # ssh itself is missing
                        raise
                    seen = e.message
                if vm.state() in (State.STOPPED, State.ERROR):
                    raise MachineError(f"{member.name} ended while it was waited for", why=seen)
                await asyncio.sleep(0.25)
    except TimeoutError:
        raise MachineError(
            f"{member.name} does not answer SSH",
            why=f"{seen} (waited {timeout_s:.0f} s)",
            hint=f"see `fleetbox logs {cluster.name}/{member.name}`; --timeout gives it longer",
        ) from None
