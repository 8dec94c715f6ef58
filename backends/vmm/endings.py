"""How a hypervisor's process ended, in words for a user."""

from __future__ import annotations

import signal
from collections.abc import Sequence

POWERED_OFF = "powered off by the guest"


def exit_words(program: str, code: int | None, output: Sequence[str]) -> str:
    """The exit code (negative for a signal, None when unknown) and the program's last output in words."""
    if code is None:
        return "its process has ended"
    if code < 0:
        return f"killed by signal {-code} ({signal.strsignal(-code) or 'unknown'})"
    if code > 0:
        return f"{program} exited with code {code}" + (f": {cause(output)}" if output else "")
    return "ended"


def cause(output: Sequence[str]) -> str:
    """The line of a program's output that tells why: the first that is no warning, without the program's name."""
    for line in output:
        if "warning:" not in line:
            return line.partition(": ")[2] or line
    return ""
