"""Who orchestrates has no hypervisor and no capability; the helper of its own uid alone may make networks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.home import leftovers
from tests.remotehelper import Helper

NOBODY = 65534
BECOME = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
HELPER = (*BECOME, "--inh-caps=+net_admin", "--ambient-caps=+net_admin")
ORCHESTRATOR = (*BECOME, "--inh-caps=-all", "--ambient-caps=-all")

# A device that everybody may open, as on most hosts, also where this host's is root's: in a mount namespace of its own.
OPEN_TUN = (
    "mount -t tmpfs none /mnt && mknod -m 666 /mnt/tun c 10 200 && mount --bind /mnt/tun /dev/net/tun && "
    'umount -l /mnt && exec "$@"'
)

DRIVE = """
import asyncio, os, socket, sys
from pathlib import Path
from fleetbox.backends import registry
from fleetbox.backends.base import BackendEnvironment, Disk, FirmwareBoot, NetworkSpec, State, VMConfig
from fleetbox.backends.host.thread import HostThread

def capabilities(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {int(line.split()[1], 16) for line in lines if line.startswith(("CapPrm", "CapEff", "CapAmb", "CapInh"))}

async def main(home):
    host = HostThread()
    backend = registry.create("remote", BackendEnvironment(host, {"FLEETBOX_REMOTE": sys.argv[1]}))
    await backend.check()
    network = await backend.create_network(NetworkSpec("demo", "host"))
    lease = await network.reserve("node-1")
    (home / "run").mkdir(mode=0o700)
    disk = Disk(home / "disk.raw", "raw")
    disk.path.write_bytes(bytes(1 << 20))
    config = VMConfig("demo/node-1", home / "run", (disk,), None, FirmwareBoot(), lease.mac, 1, 64 << 20,
                      home / "serial.log", assigned_ip=lease.ip)
    vm = await backend.create(config, network)
    await vm.start()
    assert vm.state() is State.RUNNING
    uid = Path(f"/proc/{vm.handle.process.pid}").stat().st_uid
    if network.bridge:
        assert network.bridge in [name for _, name in socket.if_nameindex()]
        assert capabilities(os.getpid()) == {0}, "the orchestrator has a capability"
        assert capabilities(vm.handle.process.pid) == {0}, "the hypervisor has a capability"
    assert uid == os.geteuid()
    await vm.stop(0.5)
    assert vm.state() is State.STOPPED
    await network.close()
    host.close()

asyncio.run(main(Path(os.environ["FLEETBOX_HOME"])))
import fleetbox.holder.daemon  # what a cluster's holder is made of
hypervisors = set(registry._MODULES.values()) - {"fleetbox.backends.remote"}
assert len(hypervisors) >= 2
found = [name for name in sys.modules if any(name == h or name.startswith(h + ".") for h in hypervisors)]
assert not found, found
print("driven")
"""


def drive(helper: Helper, home: Path, prefix: Sequence[str] = ()) -> None:
    """Drive a machine from a process of its own, as another fleetbox."""
    done = subprocess.run(
        [*prefix, sys.executable, "-P", "-c", DRIVE, str(helper.socket)],
        env=os.environ | {"FLEETBOX_HOME": str(home)},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "driven\n", done.stderr + helper.log.read_text()


def test_no_module_of_a_hypervisor_is_in_the_process_that_drives_one(fleetbox_home: Path) -> None:
    with Helper(fleetbox_home / "helper", "fake") as helper:
        drive(helper, fleetbox_home)


def can_run_as_nobody() -> bool:
    """Whether Python and this checkout can be read by everybody."""
    argv = [*ORCHESTRATOR, sys.executable, "-P", "-c", "import fleetbox.holder.remote.daemon"]
    return subprocess.run(argv, cwd="/", capture_output=True, check=False).returncode == 0


@pytest.fixture
def homes() -> Iterator[Path]:
    """A folder with one of `nobody`'s for each side."""
    root = Path(tempfile.mkdtemp(prefix="fb-", dir="/tmp"))
    root.chmod(0o711)
    (root / "home").mkdir(mode=0o700)
    os.chown(root / "home", NOBODY, NOBODY)
    yield root
    left = leftovers(root)
    shutil.rmtree(root)
    assert not left


@pytest.mark.netns
@pytest.mark.usefixtures("own_network")
def test_orchestrator_and_hypervisor_have_no_capability_and_the_helper_one(homes: Path) -> None:
    if not can_run_as_nobody():
        pytest.skip("another user cannot read this Python or this checkout")
    prefix = ("unshare", "--mount", "sh", "-c", OPEN_TUN, "sh", *HELPER)
    with Helper(homes / "helper", "qemu", prefix, uid=NOBODY) as helper:
        status = Path(f"/proc/{helper.pid}/status").read_text()
        assert [line.split()[1] for line in status.splitlines() if line.startswith("CapEff")] == [f"{1 << 12:016x}"]
        drive(helper, homes / "home", ORCHESTRATOR)
