"""A helper of the `remote` backend in a process of its own, as a test needs it: started, killed, started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from fleetbox.timeouts import timeout_scale
from tests.home import ENDING_LIMIT_S, leftovers

LIMIT_S = 60.0


class Helper:
    """A helper on `folder`. Used as a context, it leaves nothing behind.

    `prefix` is put before its command line and makes it run as `uid`.
    """

    def __init__(self, folder: Path, backend: str, prefix: Sequence[str] = (), uid: int = -1) -> None:
        self.folder = folder
        self.backend = backend
        self.socket = folder / "helper.sock"
        self._prefix = list(prefix)
        self._child: subprocess.Popen[bytes] | None = None
        folder.mkdir(mode=0o700)
        os.chown(folder, uid, uid)
        self.log = folder / "helper.log"

    @property
    def pid(self) -> int:
        assert self._child is not None
        return self._child.pid

    def faults(self, rules: str) -> None:
        """Set the fake backend's faults from now on."""
        (self.folder / "faults").write_text(rules)

    def start(self) -> None:
        """Start it; returns when it serves."""
        ready, theirs = os.pipe()
        with self.log.open("ab") as output:
            self._child = subprocess.Popen(
                [
                    *self._prefix,
                    *(sys.executable, "-P", "-m", "fleetbox.holder.remote"),
                    *("--folder", str(self.folder), "--socket", str(self.socket)),
                    *("--backend", self.backend, "--ready-fd", str(theirs)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(theirs,),
                env=os.environ | {"FLEETBOX_FAKE_FAULTS": f"@{self.folder}/faults"},
                cwd="/",
            )
        os.close(theirs)
        with os.fdopen(ready, "rb") as pipe:
            assert pipe.readline() == b"ready\n", self.log.read_text()

    def kill(self) -> None:
        """SIGKILL: it has no time for anything."""
        self._end(signal.SIGKILL)

    def end(self) -> None:
        """SIGTERM: it leaves its machines."""
        assert self._end(signal.SIGTERM) == 0, self.log.read_text()

    def _end(self, number: signal.Signals) -> int:
        self.signal(number)
        return self.wait()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Wait for its end; the exit code."""
        assert self._child is not None
        return self._child.wait(LIMIT_S * timeout_scale())

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._child is not None
        if self._child.poll() is None:
            self._end(signal.SIGTERM if kind is None else signal.SIGKILL)
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("FLEETBOX_HOME", str(self.folder))
            deadline = time.monotonic() + ENDING_LIMIT_S * timeout_scale()
            while (left := self._left()) and time.monotonic() < deadline:
                time.sleep(0.05)
            if kind is None:
                assert not left, "the helper left behind:\n" + "\n".join([*left, self.log.read_text()])

    def _left(self) -> list[str]:
        """What must not be there when no machine or network is: processes, sockets, links, tables, records, disks."""
        root = self.folder / "helper"
        kept = [*(root / "machines").glob("*"), *(root / "networks").glob("*")]
        return leftovers(self.folder) + [f"file {path}" for path in kept]
