"""What one running machine has in its `run_dir`; all of it goes with the machine."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from fleetbox import paths
from fleetbox.backends.base import VMConfig
from fleetbox.backends.qemu import command


@dataclass(frozen=True)
class RunFiles:
    """Sockets are named by a short digest, as their paths are at most 107 bytes long. `control` is `ttyS1`'s."""

    socket: Path
    control: Path
    pidfile: Path
    log: Path

    @classmethod
    def of(cls, config: VMConfig) -> RunFiles:
        slot = f"+{config.slot}" if config.slot else ""  # in no member's name
        digest = hashlib.sha256(f"{config.name}{slot}".encode()).hexdigest()[:12]
        return cls(
            paths.checked_socket(config.run_dir / f"{digest}.sock"),
            paths.checked_socket(config.run_dir / f"{digest}.ctl"),
            config.run_dir / f"{config.member}{slot}.pid",
            config.run_dir / f"{config.member}{slot}.log",
        )

    def running_pid(self, config: VMConfig) -> int | None:
        """The process of the pidfile when it is this machine's: a pidfile outlives its process, and pids are reused."""
        try:
            pid = int(self.pidfile.read_text())
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        return pid if os.fsencode(command.name_option(config)) in argv else None
