"""What one running machine has in its `run_dir`; all of it goes with the machine."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from fleetbox import paths
from fleetbox.backends.base import VMConfig


@dataclass(frozen=True)
class RunFiles:
    """Sockets are named by a short digest, as their paths are at most 107 bytes long.

    `socket` is the hypervisor's API, `control` the control line (a socket, or a link to a terminal) and `lock` the lock
    of whoever uses that; `console` and `console_lock` are the same of a console on a line of its own. `log` is what the
    process says.
    """

    socket: Path
    control: Path
    lock: Path
    console: Path
    console_lock: Path
    pidfile: Path
    log: Path

    @classmethod
    def of(cls, config: VMConfig) -> RunFiles:
        slot = f"+{config.slot}" if config.slot else ""  # in no member's name
        digest = hashlib.sha256(f"{config.name}{slot}".encode()).hexdigest()[:12]
        control = paths.checked_socket(config.run_dir / f"{digest}.ctl")
        console = paths.checked_socket(config.run_dir / f"{digest}.con")
        return cls(
            paths.checked_socket(config.run_dir / f"{digest}.sock"),
            control,
            control_lock(control),
            console,
            control_lock(console),
            config.run_dir / f"{config.member}{slot}.pid",
            config.run_dir / f"{config.member}{slot}.log",
        )

    def remove(self) -> None:
        """Remove all of it, of a machine that has ended. Raises OSError."""
        lines = (self.control, self.lock, self.console, self.console_lock)
        # cloud-hypervisor makes a lock of its own beside its socket.
        for path in (self.socket, control_lock(self.socket), *lines, self.pidfile, self.log):
            path.unlink(missing_ok=True)

    def running_pid(self, mark: str) -> int | None:
        """The pidfile's process when `mark` is among its arguments: a pidfile outlives its process, pids are reused."""
        try:
            pid = int(self.pidfile.read_text())
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        return pid if os.fsencode(mark) in argv else None


def control_lock(line: Path) -> Path:
    """The file whose lock (flock) belongs to whoever uses that control line or console."""
    return line.with_name(f"{line.name}.lock")
