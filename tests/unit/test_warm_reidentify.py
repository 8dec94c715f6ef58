"""Re-identification by both ways, against real shells: on a terminal, and behind an `ssh` that runs things here."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fleetbox.backends.base import Lease
from fleetbox.backends.host.thread import HostThread
from fleetbox.errors import MachineError
from fleetbox.holder.guest.hostkeys import HostKey
from fleetbox.holder.warm.identity import NewIdentity, machine_id
from fleetbox.holder.warm.reidentify import LinkLocal, prepare, reidentify

OLD = Lease("template", "192.168.7.250", "02:aa:bb:cc:dd:01", 24, "192.168.7.1")
NEW = Lease("node-1", "10.64.9.3", "0a:11:22:33:44:55", 20, "10.64.0.1")
KEY = HostKey("private\n", "ssh-ed25519 NEW")
IDENTITY = NewIdentity("node-1", "demo", "pool", OLD, NEW, machine_id("m1"), "i-m1", KEY)
LIMIT_S = 60.0


@pytest.fixture
def folder() -> Iterator[Path]:
    """A guest's folder, short enough for a socket; its interface is found, but no kernel knows its number."""
    with tempfile.TemporaryDirectory(prefix="fb-") as name:
        root = Path(name)
        for part in ("etc/ssh", "proc/sys/kernel", "sys/class/net/eth0", "tools"):
            (root / part).mkdir(parents=True)
        (root / "proc/sys/kernel/hostname").touch()
        yield root


@asynccontextmanager
async def guest(root: Path, *, path: str = os.environ["PATH"]) -> AsyncIterator[Path]:
    """A control line with a real shell on a terminal, whose paths are in `root`."""
    main, terminal = os.openpty()
    env = {"PATH": path, "TERM": "dumb", "PS1": "", "PS2": "", "ROOT": str(root)}
    argv = ["/usr/bin/setsid", "--ctty", "/bin/sh"]
    child = subprocess.Popen(argv, stdin=terminal, stdout=terminal, stderr=terminal, env=env)
    os.close(terminal)
    # Before it is up, an interrupt would end it.
    os.write(main, b"printf '%s%s\\n' u p\n")
    while b"up" not in os.read(main, 4096):
        pass
    loop = asyncio.get_running_loop()
    connected: list[asyncio.StreamWriter] = []

    def forward() -> None:
        try:
            said = os.read(main, 4096)
        except OSError:  # the shell has ended
            loop.remove_reader(main)
        else:
            if connected:
                connected[-1].write(said)

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.append(writer)
        while data := await reader.read(4096):
            await asyncio.to_thread(os.write, main, data)
        connected.remove(writer)
        writer.close()

    loop.add_reader(main, forward)
    server = await asyncio.start_unix_server(relay, root / "ctl")
    try:
        yield root / "ctl"
    finally:
        server.close()
        loop.remove_reader(main)
        child.kill()
        child.wait()
        os.close(main)


@pytest.mark.parametrize("armed", [True, False])
def test_by_the_control_line(folder: Path, armed: bool) -> None:
    async def main() -> None:
        async with guest(folder) as line:
            if armed:
                await prepare(line, LIMIT_S)
            await reidentify(IDENTITY, control_line=line, armed=armed, timeout_s=LIMIT_S)

    # The namespaces of a test's guest are ours: its interface is not there.
    with pytest.raises(MachineError, match="could not take on") as caught:
        asyncio.run(main())
    assert caught.value.why.startswith("network: no interface")
    assert (folder / "etc/hostname").read_text() == "node-1\n"
    assert (folder / "etc/machine-id").read_text() == f"{IDENTITY.machine_id}\n"


def test_prepared_twice_is_as_good_as_once(folder: Path) -> None:
    async def main() -> None:
        async with guest(folder) as line:
            await prepare(line, LIMIT_S)
            await prepare(line, LIMIT_S)
            with pytest.raises(MachineError, match="could not take on"):
                await reidentify(IDENTITY, control_line=line, armed=True, timeout_s=LIMIT_S)

    asyncio.run(main())
    assert (folder / "etc/hostname").read_text() == "node-1\n"


def test_a_line_thought_armed_that_is_not_does_nothing(folder: Path) -> None:
    async def main() -> None:
        async with guest(folder) as line:
            await reidentify(IDENTITY, control_line=line, armed=True, timeout_s=1)

    with pytest.raises(MachineError, match="did not answer"):
        asyncio.run(main())
    assert not (folder / "etc/hostname").exists()


def test_a_guest_without_perl_is_told(folder: Path) -> None:
    (folder / "tools/stty").symlink_to("/usr/bin/stty")

    async def main() -> None:
        async with guest(folder, path=str(folder / "tools")) as line:
            await prepare(line, LIMIT_S)

    with pytest.raises(MachineError) as caught:
        asyncio.run(main())
    assert caught.value.why == "it has no perl"


SSH = """#!/bin/sh
printf '%s\\n' "$@" >{folder}/argv
for last; do :; done
cat "$(sed -n 's/^UserKnownHostsFile=//p' {folder}/argv)" >{folder}/known_hosts
ROOT={folder} exec sh -c "$last"
"""
SUDO = '#!/bin/sh\n[ "$1" = -n ] && shift && exec "$@"\n'


def by_ssh(folder: Path, monkeypatch: pytest.MonkeyPatch, ssh: str, timeout_s: float = LIMIT_S) -> None:
    for name, text in {"ssh": ssh.replace("{folder}", str(folder)), "sudo": SUDO}.items():
        (folder / "tools" / name).write_text(text)
        (folder / "tools" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}/tools:{os.environ['PATH']}")
    monkeypatch.setenv("FLEETBOX_HOME", str(folder / "home"))
    host = HostThread()
    try:
        where = LinkLocal("tap7", OLD.mac, "ssh-ed25519 OLD", host)
        asyncio.run(reidentify(IDENTITY, link_local=where, timeout_s=timeout_s))
    finally:
        host.close()


def test_by_ssh_on_the_clones_own_tap(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_ssh(folder, monkeypatch, SSH)  # the network is left until the session has ended
    assert (folder / "etc/hostname").read_text() == "node-1\n"
    assert (folder / "etc/ssh/ssh_host_ed25519_key").read_text() == KEY.private_text
    argv = (folder / "argv").read_text().splitlines()
    assert "fe80::aa:bbff:fecc:dd01%tap7" in argv
    assert {"StrictHostKeyChecking=yes", "BatchMode=yes"} <= set(argv)
    assert (folder / "known_hosts").read_text() == "template ssh-ed25519 OLD\n"


def test_an_ssh_that_fails_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MachineError, match=r"fe80::aa:bbff:fecc:dd01%tap7") as caught:
        by_ssh(folder, monkeypatch, "#!/bin/sh\necho 'Host key verification failed.' >&2\nexit 255\n")
    assert caught.value.why == "Host key verification failed."


def test_an_ssh_that_hangs_is_ended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MachineError, match="did not answer"):
        by_ssh(folder, monkeypatch, "#!/bin/sh\necho $$ >{folder}/pid\nexec sleep 1000\n", timeout_s=1)
    pid = int((folder / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_guest_that_floods_ssh_fills_no_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MachineError, match="cannot be reached"):
        by_ssh(folder, monkeypatch, "#!/bin/sh\nexec cat /dev/zero\n")


def test_a_machine_without_any_way_in_is_told() -> None:
    with pytest.raises(MachineError, match="cannot be reached"):
        asyncio.run(reidentify(IDENTITY))
