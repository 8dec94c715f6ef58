"""Waiting until a machine's SSH server answers.

A connection is made by the host thread's sockets (a private cluster's network is only there), without blocking that
thread: a socket belongs to the namespace that it was made in, whoever connects it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket

from fleetbox.backends.host.thread import HostThread
from fleetbox.errors import MachineError

SSH_PORT = 22
BANNER = b"SSH-"

# A packet to a machine that is still booting is lost: asking anew beats TCP's own repetition, which doubles its pauses.
_CONNECT_S = 0.5
_PAUSE_S = 0.2
_BANNER_S = 15.0


async def wait_for_ssh(host: HostThread, ip: str, timeout_s: float, port: int = SSH_PORT) -> None:
    """Return when `ip` accepts on `port` and greets as an SSH server.

    Raises MachineError after `timeout_s`, saying what happened last. Cancel it to stop earlier.
    """
    problem = ""
    try:
        async with asyncio.timeout(timeout_s):
            while problem := await _problem(host, ip, port):  # noqa: ASYNC110 - no event tells when a guest listens
                await asyncio.sleep(_PAUSE_S)
    except TimeoutError:
        raise MachineError(
            f"{ip} did not answer as an SSH server in {timeout_s:.0f} s", why=problem or "its server never greeted"
        ) from None


async def _problem(host: HostThread, ip: str, port: int) -> str:
    """Try once: empty when the server greeted, else what went wrong, in words."""
    loop = asyncio.get_running_loop()
    sock: socket.socket | None = None
    try:
        sock = await connect(host, ip, port, _CONNECT_S)
        async with asyncio.timeout(_BANNER_S):
            greeting = b""
            while len(greeting) < len(BANNER):
                more = await loop.sock_recv(sock, 256)
                if not more:
                    return f"port {port} accepts connections and closes them at once"
                greeting += more
        return "" if greeting.startswith(BANNER) else f"what answers on port {port} is not an SSH server"
    except TimeoutError:
        return "it does not answer"
    except OSError as e:
        if e.errno == errno.ECONNREFUSED:
            return f"it is up, but nothing listens on port {port}"
        return os.strerror(e.errno) if e.errno else str(e)
    finally:
        if sock is not None:
            sock.close()


async def connect(host: HostThread, ip: str, port: int, timeout_s: float) -> socket.socket:
    """A connected, non-blocking socket of the host thread's network. Raises OSError, TimeoutError."""
    sock = await host.run(_socket, ip, undo=socket.socket.close)
    try:
        async with asyncio.timeout(timeout_s):
            await asyncio.get_running_loop().sock_connect(sock, (ip, port))
    except BaseException:
        sock.close()
        raise
    return sock


def _socket(ip: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    return socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
