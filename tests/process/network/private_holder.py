"""A holder's private network without a holder: `private_holder.py [PID START BOOT]`, told as JSON, until it is killed.

Makes the network, or takes over the one that the machine of that identity is on; what stands for a machine is a sleep.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from fleetbox.backends.base import NetworkSpec
from fleetbox.backends.host import namespaces
from fleetbox.backends.host.confinement import Confinement
from fleetbox.backends.host.isolation import Isolation, isolate
from fleetbox.backends.host.process import spawn
from fleetbox.backends.host.thread import HostThread
from fleetbox.identity import ProcessIdentity


def status(pid: int, key: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split(":")[1].strip() for line in lines if line.startswith(f"{key}:"))


async def main(isolation: Isolation) -> None:
    from fleetbox.backends.host.network.network import open_network

    host = HostThread("host", isolation)
    network = await open_network(host, NetworkSpec("alpha", "private"))
    lease = await network.reserve("node-1")
    tap = await network.attach("node-1")
    machine = await spawn(host, ["sleep", "600"], log_file=Path(os.environ["FLEETBOX_HOME"], "log"), confinement=QUIET)
    assert network._built.resolver is not None
    assert network._egress is not None
    assert network._egress._process is not None
    told = {
        "subnet": network.subnet,
        "bridge": network.bridge,
        "tap": tap,
        "ip": lease.ip,
        "notes": network.notes,
        "namespace": await host.run(namespaces.network_inode),
        "outside": namespaces.network_inode(),
        "machine": [machine.pid, machine.identity.start_ticks, machine.identity.boot_id],
        "rights": [status(machine.pid, key) for key in ("CapEff", "CapPrm", "CapAmb")],
        "uid": status(machine.pid, "Uid").split()[0],
        "helpers": [network._built.resolver.pid, network._egress._process.pid],
    }
    print(json.dumps(told), flush=True)
    if await asyncio.to_thread(sys.stdin.readline):
        machine.signal(9)
        await machine.wait()
        await network.close()
    print("closed", flush=True)
    host.close()


QUIET = Confinement(keeps=("dac_read_search",))

if __name__ == "__main__":
    os.umask(0o077)
    machines = [ProcessIdentity(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], "sleep")] if sys.argv[1:] else []
    # Before anything that is imported starts a thread.
    asyncio.run(main(isolate(machines)))
