"""A real guest as users' own programs meet it: OpenSSH, scp, rsync, Ansible by `ssh-config`; cp; its console.

The second tier: it takes minutes, and programs that `make test-all` installs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

import fleetbox
from tests.vm.conftest import Lab

pytestmark = pytest.mark.slow

FLEETBOX = [sys.executable, "-m", "fleetbox_cli"]
ROOT = Path(__file__).parents[2]
ANSIBLE = shutil.which("ansible", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


@pytest.fixture(scope="module")
def member(lab: Lab) -> Iterator[fleetbox.Member]:
    cluster = fleetbox.up("ssh", memory_bytes=512 << 20, cold=True)
    yield cluster.member("node-1")
    cluster.destroy()


@pytest.fixture(scope="module")
def config(member: fleetbox.Member, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `fleetbox ssh-config` prints, in a file of the user's that includes it."""
    folder = tmp_path_factory.mktemp("ssh")
    (folder / "fleetbox").write_text(run(*FLEETBOX, "ssh-config"))
    (folder / "config").write_text(f"Include {folder}/fleetbox\n")
    return folder / "config"


def run(*argv: str | Path) -> str:
    done = subprocess.run(
        list(map(str, argv)), cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_ssh_and_scp(config: Path, tmp_path: Path) -> None:
    assert run("ssh", "-F", config, "node-1", "hostname") == "node-1\n"
    assert run("ssh", "-F", config, "node-1.ssh.fleetbox", "id -un") == "fleet\n"
    (tmp_path / "file").write_text("by scp")
    run("scp", "-F", config, tmp_path / "file", "node-1:/tmp/by-scp")
    run("scp", "-F", config, "node-1:/tmp/by-scp", tmp_path / "back")
    assert (tmp_path / "back").read_text() == "by scp"


@pytest.mark.skipif(not shutil.which("rsync"), reason="no rsync here")
def test_rsync(member: fleetbox.Member, config: Path, tmp_path: Path) -> None:
    program = Path(shutil.which("rsync") or "")
    libraries = re.findall(r"=> (/\S+)", run("ldd", program))
    member.ssh("mkdir /tmp/rsync", check=True)
    for path in (program, *map(Path, libraries)):  # the guest is of the host's own release, and has none
        member.copy_to(path.resolve(), f"/tmp/rsync/{path.name}")
    tree = tmp_path / "tree"
    (tree / "below").mkdir(parents=True)
    (tree / "below" / "data").write_bytes(os.urandom(200_000))
    there = "LD_LIBRARY_PATH=/tmp/rsync /tmp/rsync/rsync"
    run("rsync", "-a", "-e", f"ssh -F {config}", f"--rsync-path={there}", f"{tree}/", "node-1:/tmp/by-rsync/")
    run("rsync", "-a", "-e", f"ssh -F {config}", f"--rsync-path={there}", "node-1:/tmp/by-rsync/", tmp_path / "back")
    assert (tmp_path / "back/below/data").read_bytes() == (tree / "below/data").read_bytes()


@pytest.mark.skipif(ANSIBLE is None, reason="no Ansible here")
def test_ansible_pings(config: Path, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text(f"node-1 ansible_ssh_common_args='-F {config}'\n")
    assert '"ping": "pong"' in run(str(ANSIBLE), "-i", tmp_path / "hosts", "all", "-m", "ping")


def test_a_port_is_forwarded(member: fleetbox.Member, tmp_path: Path) -> None:
    socket = tmp_path / "forwarded"
    process = subprocess.Popen([*FLEETBOX, "ssh", "-N", "-L", f"{socket}:localhost:22", "node-1"], cwd=ROOT)
    try:
        wait = f"while s.connect_ex({str(socket)!r}): time.sleep(0.1)"
        program = f"import socket, time\ns = socket.socket(socket.AF_UNIX)\n{wait}\nprint(s.recv(7).decode())"
        assert run(sys.executable, "-c", program) == "SSH-2.0\n"
    finally:
        process.terminate()
        process.wait()


def test_cp_with_the_guests_own_server(member: fleetbox.Member, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "below").mkdir(parents=True)
    (tree / "below" / "data").write_bytes(os.urandom(3_000_000))
    (tree / "below" / "link").symlink_to("data")
    (tree / "run.sh").write_text("#!/bin/sh\necho it runs\n")
    (tree / "run.sh").chmod(0o755)
    os.utime(tree / "run.sh", (1e9, 1e9))
    run(*FLEETBOX, "cp", tree, "node-1:/tmp/by-cp")
    assert member.ssh("/tmp/by-cp/run.sh; stat -c %Y /tmp/by-cp/run.sh", check=True).stdout == "it runs\n1000000000\n"
    run(*FLEETBOX, "cp", "node-1:/tmp/by-c*", "node-1:/etc/host*", tmp_path)
    assert (tmp_path / "by-cp/below/data").read_bytes() == (tree / "below/data").read_bytes()
    assert (tmp_path / "by-cp/below/link").is_symlink()
    assert (tmp_path / "hostname").read_text() == "node-1\n"
    assert run(*FLEETBOX, "cp", "node-1:/etc/hostname", "-") == "node-1\n"
    assert "version" in run(*FLEETBOX, "cp", "node-1:/proc/version", "-").lower()


def test_the_console_is_a_terminal_of_the_windows_size(member: fleetbox.Member, timeout_scale: float) -> None:
    child = pexpect.spawn(
        FLEETBOX[0],
        [*FLEETBOX[1:], "console", "node-1"],
        cwd=str(ROOT),
        timeout=120 * timeout_scale,
        encoding="utf-8",
        dimensions=(33, 111),
    )
    child.expect("leaves")
    child.send("\r")
    child.expect("login:")
    await_size(member, "33 111", timeout_scale)
    child.setwinsize(44, 122)
    await_size(member, "44 122", timeout_scale)
    child.send("\r~.")
    child.expect("left the console")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def await_size(member: fleetbox.Member, size: str, timeout_scale: float) -> None:
    wanted = f"for i in $(seq {int(60 * timeout_scale)}); do"
    wanted += f" [ \"$(sudo stty -F /dev/ttyS0 size)\" = '{size}' ] && exit 0; sleep 1; done; exit 1"
    assert member.ssh(wanted).exit_code == 0


def test_logs_show_the_first_byte_of_boot_and_statistics_count(member: fleetbox.Member) -> None:
    assert "Linux version" in run(*FLEETBOX, "logs", "node-1").partition("\n")[0]
    before = fleetbox.Cluster("ssh").statistics().members["node-1"]
    member.ssh("head -c 500000 /dev/zero; sudo dd if=/dev/zero of=/root/x bs=1M count=2 conv=fsync", check=True)
    after = fleetbox.Cluster("ssh").statistics().members["node-1"]
    assert after.network_sent_bytes - before.network_sent_bytes > 500_000
    assert after.network_received_bytes > before.network_received_bytes
    assert after.disk_written_bytes - before.disk_written_bytes >= 2 << 20
    assert after.cpu_seconds > before.cpu_seconds
    assert after.disk_read_bytes > 0
