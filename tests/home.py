"""A `FLEETBOX_HOME` for a test, and what must not outlive it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleetbox import paths
from fleetbox.backends.base import timeout_scale
from fleetbox.backends.host import programs

ENDING_LIMIT_S = 10.0


@contextlib.contextmanager
def clean_home() -> Iterator[Path]:
    """An empty home under /tmp (sockets need short paths), named by FLEETBOX_HOME.

    At the end nothing of it may be left, in the network namespace that the caller is in: what is, fails the test and is
    then ended.
    """
    home = Path(tempfile.mkdtemp(prefix="fb-", dir="/tmp"))
    with pytest.MonkeyPatch.context() as environment:
        for name in ("FLEETBOX_CLUSTER", "FLEETBOX_BACKEND"):
            environment.delenv(name, raising=False)
        environment.setenv("FLEETBOX_HOME", str(home))
        try:
            yield home
            deadline = time.monotonic() + ENDING_LIMIT_S * timeout_scale()
            while (left := leftovers(home)) and time.monotonic() < deadline:
                time.sleep(0.1)  # a holder that ends needs a moment
            assert not left, "left behind:\n" + "\n".join(left)
        finally:
            for pid in processes_of(home):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            shutil.rmtree(home, ignore_errors=True)


def processes_of(home: Path) -> dict[int, str]:
    """Processes that were started with this home or name it, by pid; not this one."""
    needle = os.fsencode(home)
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            argv, environ = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
        except OSError:
            continue
        if int(folder.name) != os.getpid() and argv and (needle in argv or b"FLEETBOX_HOME=" + needle in environ):
            found[int(folder.name)] = argv.replace(b"\0", b" ").decode(errors="replace")
    return found


def leftovers(home: Path) -> list[str]:
    """Processes, sockets, links, nft tables and resolver folders of this home, in words."""
    digest = paths.installation_digest()
    left = [f"process {pid}: {argv}" for pid, argv in processes_of(home).items()]
    # os.walk, as what is being removed meanwhile is no error to it.
    inside = (Path(folder, name) for folder, _, names in os.walk(home) for name in names)
    left += [f"socket {path}" for path in inside if path.is_socket()]
    left += [f"link {name}" for _, name in socket.if_nameindex() if name.startswith(f"fb{digest}")]
    left += [f"folder {path}" for path in paths.host_dir().glob(f"names/fb{digest}*")]
    if os.geteuid() == 0 and programs.find("nft"):
        done = subprocess.run(["nft", "-j", "list", "tables"], capture_output=True, check=False)
        tables = json.loads(done.stdout)["nftables"] if done.returncode == 0 else []
        left += [f"nft table {t['table']['name']}" for t in tables if digest in t.get("table", {}).get("name", "")]
    return left
