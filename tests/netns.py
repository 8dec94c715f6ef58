"""A network namespace for a test, and another one that stands for the internet.

`TestNet` makes both, joined by a veth pair with a default route; nothing of the host's own network is touched. The
internet has no route back to a cluster's subnet, so only masqueraded traffic gets an answer. It also owns the addresses
of this host's nameservers (`/etc/resolv.conf`), so that a resolver inside finds its upstream there.

    with TestNet() as net:
        net.enter()                       # this thread, and what it starts from now on
        net.internet.serve_http("hello")  # http://203.0.113.1/

At the end the thread is brought back, every process in the namespaces is killed, and they are removed; namespaces of
test runs that died before that are removed by the next one.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from fleetbox import paths
from fleetbox.backends.host.network import resolver

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count()
_PREFIX = "fbtest"

INTERNET_ADDRESS = "203.0.113.1"
HOST_ADDRESS = "203.0.113.2"

_HTTP_SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(sys.argv[2].encode())
    def log_message(self, *args): pass
server = http.server.ThreadingHTTPServer((sys.argv[1], 80), Handler)
print("ready", flush=True)
server.serve_forever()
"""

_HTTP_CLIENT = """
import sys, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
print(opener.open(sys.argv[1], timeout=float(sys.argv[2])).read().decode(), end="")
"""


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


def _set_namespace(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


class Namespace:
    """A named network namespace with `lo` up; `address` is its main IPv4 address, once it has one."""

    def __init__(self, name: str, address: str = "") -> None:
        self.name = name
        self.address = address
        self.inode = 0
        self._started: list[subprocess.Popen[str]] = []

    def make(self) -> None:
        _ip("netns", "add", self.name)
        self.inode = Path("/run/netns", self.name).stat().st_ino
        _ip("-n", self.name, "link", "set", "lo", "up")

    def run(self, *argv: str, check: bool = True, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a program inside; its output is captured as text."""
        return subprocess.run(
            ["ip", "netns", "exec", self.name, *argv], check=check, capture_output=True, text=True, timeout=timeout_s
        )

    def start(self, *argv: str) -> subprocess.Popen[str]:
        """Start a lasting program inside, its standard output on a pipe; ended with the namespace."""
        argv = ("ip", "netns", "exec", self.name, *argv)
        # Not a process of the test's home: it is the outside's.
        environment = {name: value for name, value in os.environ.items() if name != "FLEETBOX_HOME"}
        started = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environment)
        self._started.append(started)
        return started

    def serve_http(self, text: str) -> str:
        """Answer every GET on port 80 of `address` with `text`; returns the URL once the server listens."""
        server = self.start(sys.executable, "-c", _HTTP_SERVER, self.address, text)
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        return f"http://{self.address}/"

    def fetch(self, url: str, timeout_s: float = 10.0) -> str:
        """What a GET from inside answers, empty when nothing does within the time."""
        return self.run(sys.executable, "-c", _HTTP_CLIENT, url, str(timeout_s), check=False).stdout

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread is inside for the length of a `with`."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        inside = os.open(f"/run/netns/{self.name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _set_namespace(inside)
            yield
        finally:
            _set_namespace(before)
            os.close(inside)
            os.close(before)

    def remove(self) -> None:
        """Kill what runs inside and remove it; nothing when it is not there."""
        if not Path("/run/netns", self.name).exists():
            return
        for pid in _ip("netns", "pids", self.name).split():
            if int(pid) != os.getpid():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        for started in self._started:
            started.wait()
            if started.stdout is not None:
                started.stdout.close()
        _ip("netns", "del", self.name)
        for file in paths.host_dir().glob(f"*-{self.inode}.*"):
            file.unlink()


class Internet(Namespace):
    """What stands for the internet."""

    def serve_dns(self, name: str, address: str) -> None:
        """Answer for `name` on the addresses of the host's nameservers."""
        listen = [f"--listen-address={server}" for server in resolver.host_nameservers()]
        argv = ["dnsmasq", "-k", "-C", "/dev/null", "-R", "--no-hosts", "--pid-file=", "--bind-interfaces", *listen]
        self.start(*argv, f"--address=/{name}/{address}")


class TestNet:
    """Two namespaces, `host` and `internet`; see the module. Use it as a context manager."""

    __test__ = False

    def __init__(self) -> None:
        base = f"{_PREFIX}-{os.getpid()}-{next(_numbers)}"
        self.host = Namespace(base, HOST_ADDRESS)
        self.internet = Internet(f"{base}-internet", INTERNET_ADDRESS)
        self._guests: list[Namespace] = []
        self._entered = contextlib.ExitStack()

    def __enter__(self) -> Self:
        _remove_abandoned()
        try:
            self.host.make()
            self.internet.make()
            inside = ("-n", self.host.name)
            outside = ("-n", self.internet.name)
            _ip(*inside, "link", "add", "up0", "type", "veth", "peer", "name", "up1", "netns", self.internet.name)
            _ip(*inside, "addr", "add", f"{HOST_ADDRESS}/24", "dev", "up0")
            _ip(*inside, "link", "set", "up0", "up")
            _ip(*outside, "addr", "add", f"{INTERNET_ADDRESS}/24", "dev", "up1")
            _ip(*outside, "link", "set", "up1", "up")
            for server in resolver.host_nameservers():
                _ip(*outside, "addr", "add", f"{server}/32", "dev", "lo")
            _ip(*inside, "route", "add", "default", "via", INTERNET_ADDRESS)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def enter(self) -> None:
        """Move the calling thread, and all that it starts from now on, into `host` until the end."""
        self._entered.enter_context(self.host.entered())

    def guest(self, bridge: str, address: str, prefix_length: int, gateway: str) -> Namespace:
        """A stand-in for a machine: a namespace on the bridge, with that address and a default route."""
        number = len(self._guests)
        guest = Namespace(f"{self.host.name}-guest{number}", address)
        self._guests.append(guest)
        guest.make()
        port = f"port{number}"
        _ip("-n", self.host.name, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", guest.name)
        _ip("-n", self.host.name, "link", "set", port, "master", bridge, "up")
        _ip("-n", guest.name, "addr", "add", f"{address}/{prefix_length}", "dev", "eth0")
        _ip("-n", guest.name, "link", "set", "eth0", "up")
        _ip("-n", guest.name, "route", "add", "default", "via", gateway)
        return guest

    def remove_guests(self) -> None:
        """Remove the stand-in machines and their ports on the bridge."""
        while self._guests:
            number = len(self._guests) - 1
            _ip("-n", self.host.name, "link", "del", f"port{number}")  # takes its peer along, at once
            self._guests.pop().remove()

    def close(self) -> None:
        """Leave and remove everything; repeatable."""
        self._entered.close()
        for guest in self._guests:
            guest.remove()
        self.internet.remove()
        self.host.remove()


def _remove_abandoned() -> None:
    """Remove the namespaces of test runs that died."""
    for path in Path("/run/netns").glob(f"{_PREFIX}-*"):
        if not Path("/proc", path.name.split("-")[1]).exists():
            namespace = Namespace(path.name)
            namespace.inode = path.stat().st_ino
            namespace.remove()
