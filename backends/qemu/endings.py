"""How a QEMU process ended, in words for a user."""

from __future__ import annotations

import signal
from collections.abc import Sequence

# QEMU's ShutdownCause (the event SHUTDOWN) in words.
SHUTDOWN_REASONS = {
    "guest-shutdown": "powered off by the guest",
    "guest-panic": "the guest's kernel panicked",
    "host-signal": "terminated from outside",
    "host-qmp-quit": "ended by a monitor command",
}


def exit_words(code: int | None, output: Sequence[str]) -> str:
    """The exit code (negative for a signal, None when unknown) and QEMU's last output in words."""
    if code is None:
        return "its process has ended"
    if code < 0:
        return f"killed by signal {-code} ({signal.strsignal(-code) or 'unknown'})"
    if code > 0:
        return f"QEMU exited with code {code}" + (f": {cause(output)}" if output else "")
    return "ended"


def cause(output: Sequence[str]) -> str:
    """The line of QEMU's output that tells why: the first that is no warning, without the program's name."""
    for line in output:
        if "warning:" not in line:
            return line.partition(": ")[2] or line
    return ""
