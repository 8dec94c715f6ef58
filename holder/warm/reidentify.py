"""Making a woken machine another one, over its control line or over SSH.

A template is prepared first (`prepare`): what a clone will need is loaded, echo is off, and the program of `program`
waits on the line for its data, compiled. A clone then wakes with it and spawns nothing at all.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shlex
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from fleetbox import paths
from fleetbox.backends.host import process
from fleetbox.backends.host.thread import HostThread
from fleetbox.errors import MachineError
from fleetbox.holder.guest.seed import USER
from fleetbox.holder.warm.control import ControlLine, excerpt, open_line
from fleetbox.holder.warm.identity import NewIdentity, told
from fleetbox.holder.warm.program import PROGRAM

LIMIT_S = 60.0
_SSH_ALIAS = "template"
_WAITING = re.compile(rb"fleetbox:waiting\n")

# With networkd asleep, nobody in the guest answers each change of the interface with work and messages of its own. Its
# addresses stay; what it leaves for resolved it would take along, so that is put back. A clone's program starts it.
QUIET = """\
links=$ROOT/run/systemd/netif/links
if [ -d $links ]; then
  cp -pR $links $links.kept && systemctl stop systemd-networkd.socket systemd-networkd.service
  mkdir -p $links && cp -pR $links.kept/. $links && rm -r $links.kept
fi
"""


@dataclass(frozen=True)
class LinkLocal:
    """How a clone is reached by SSH while it still is its template: `mac` and `host_key` (public) are the template's.

    `tap` is the clone's own interface on the host; it tells apart who all have the same address. `host` makes the
    connection, as the tap may be in its network namespace.
    """

    tap: str
    mac: str
    host_key: str
    host: HostThread

    @property
    def address(self) -> str:
        """`fe80::…%tap`: what a kernel makes of the MAC by itself (RFC 4291, appendix A)."""
        o = [int(octet, 16) for octet in self.mac.split(":")]
        groups = (o[0] ^ 2) << 8 | o[1], o[2] << 8 | 0xFF, 0xFE00 | o[3], o[4] << 8 | o[5]
        return f"fe80::{':'.join(f'{group:x}' for group in groups)}%{self.tap}"


async def prepare(socket: Path, timeout_s: float = LIMIT_S) -> None:
    """Make a template's control line ready for its clones; the last thing before it is paused.

    Raises MachineError when there is no shell on the line, or no perl behind it.
    """
    async with _within(timeout_s, "the template's control line"), open_line(socket) as line:
        await line.wake()
        await line.run(QUIET)
        await _arm(line)


async def reidentify(
    identity: NewIdentity,
    *,
    control_line: Path | None = None,
    armed: bool = False,
    link_local: LinkLocal | None = None,
    timeout_s: float = LIMIT_S,
) -> None:
    """Give a running machine its identity; returns when it has it (over SSH: its address follows within moments).

    By its control line when there is one, else over SSH. `armed` says that its template was `prepare`d. Raises
    MachineError: the machine may then be anything between the two, and is to be thrown away.
    """
    nonce = secrets.token_hex(16)
    async with _within(timeout_s, identity.hostname):
        if control_line is not None:
            answer = await _by_line(identity, control_line, nonce, armed=armed)
        elif link_local is not None:
            answer = await _by_ssh(identity, link_local, nonce)
        else:
            raise MachineError(f"{identity.hostname} cannot be reached", why="no control line and no network")
    if answer != "ok":
        raise MachineError(f"{identity.hostname} could not take on its identity", why=answer)


async def _by_line(identity: NewIdentity, socket: Path, nonce: str, *, armed: bool) -> str:
    async with open_line(socket) as line:
        if not armed:
            await line.wake()
            await _arm(line)
        await line.send(told(identity, nonce, time.time_ns()))
        return _said(await line.expect(_answer(nonce)))


async def _arm(line: ControlLine) -> None:
    """Start the program on the line; it waits for its data there."""
    await line.send(f"perl -e '{PROGRAM}' || echo fleetbox:ended\n".encode())
    match = await line.expect(re.compile(_WAITING.pattern + rb"|^fleetbox:ended\n", re.MULTILINE))
    if b"waiting" not in match[0]:
        raise MachineError("the guest cannot be given another identity", why="it has no perl", hint="use --cold")


async def _by_ssh(identity: NewIdentity, where: LinkLocal, nonce: str) -> str:
    with tempfile.TemporaryDirectory(prefix="fleetbox-") as folder:
        known_hosts, output = Path(folder) / "known_hosts", Path(folder) / "output"
        known_hosts.write_text(f"{_SSH_ALIAS} {where.host_key}\n")
        remote = shlex.join(["sudo", "-n", "perl", "-e", PROGRAM])
        argv = ["ssh", "-F", "none", "-T", *_ssh_options(known_hosts), "--", where.address, remote]
        data = _memory_file(told(identity, nonce, time.time_ns(), over_ssh=True))
        try:
            # A shell gives it its input, and a limit to the output: 64 blocks of 512 bytes.
            argv = ["sh", "-c", f'ulimit -f 64; exec "$@" </proc/self/fd/{data}', "sh", *argv]
            ssh = await process.spawn(where.host, argv, log_file=output, pass_fds=(data,))
        finally:
            os.close(data)
        try:
            await ssh.wait()
        finally:
            await ssh.kill()
            ssh.close()
        said = output.read_bytes()
    if match := _answer(nonce).search(said):
        return _said(match)
    raise MachineError(f"{identity.hostname} cannot be reached by SSH on {where.address}", why=excerpt(said))


def _ssh_options(known_hosts: Path) -> list[str]:
    pairs = [
        f"User={USER}",
        f'IdentityFile="{str(paths.keys_dir() / "id_ed25519").replace("%", "%%")}"',
        "IdentitiesOnly=yes",
        f"UserKnownHostsFile={known_hosts}",
        "GlobalKnownHostsFile=none",
        f"HostKeyAlias={_SSH_ALIAS}",
        "StrictHostKeyChecking=yes",
        "UpdateHostKeys=no",
        "BatchMode=yes",
        "ConnectTimeout=20",
        "LogLevel=ERROR",
    ]
    return [word for pair in pairs for word in ("-o", pair)]


def _answer(nonce: str) -> re.Pattern[bytes]:
    return re.compile(rb"^fleetbox:" + nonce.encode() + rb":([ -~]{1,1000})[^\n]*\n", re.MULTILINE)


def _said(match: re.Match[bytes]) -> str:
    return match[1].decode()


def _memory_file(data: bytes) -> int:
    """A file that has no name anywhere: it holds a private key."""
    fd = os.memfd_create("identity", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(data)
    return fd


@asynccontextmanager
async def _within(timeout_s: float, what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        raise MachineError(f"{what} did not answer", why=f"waited {timeout_s:.0f} s") from None
