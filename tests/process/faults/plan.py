"""Planning one fault and learning what became of it (`fleetbox.faultpoint`), from the test's side."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fleetbox import faultpoint
from fleetbox.backends.base import timeout_scale

LIMIT_S = 60.0


def until(condition: Callable[[], object], why: Callable[[], str] = lambda: "it never came true") -> None:
    """Wait for a condition; fail, saying why, when it never comes true."""
    deadline = time.monotonic() + LIMIT_S * timeout_scale()
    while not condition():
        assert time.monotonic() < deadline, why()
        time.sleep(0.003)


@dataclass(frozen=True)
class Fired:
    """Which process did as planned, and whether it stands still with its event loop (`loop`)."""

    pid: int
    where: str


class Plan:
    """The folder of one installation's faults."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._token = 0

    @property
    def environment(self) -> dict[str, str]:
        return {faultpoint.VARIABLE: str(self.folder)}

    def set(self, point: str, action: str, number: int = 1) -> None:
        """Plan a fault for the `number`th time that the point is reached from now on; forget the one before."""
        assert point in faultpoint.POINTS
        self.clear()
        (self.folder / "plan.new").write_text(f"{point} {action} {number} {self._token}")
        (self.folder / "plan.new").rename(self.folder / "plan")

    def clear(self) -> None:
        """No fault, nothing traced; who still waits may go."""
        (self.folder / "plan").unlink(missing_ok=True)
        self.go()
        (self.folder / "trace").unlink(missing_ok=True)
        (self.folder / "fired").unlink(missing_ok=True)
        self._token += 1

    def go(self) -> None:
        """Let the process that stands at the point go on."""
        (self.folder / f"go.{self._token}").touch()

    def fired(self) -> Fired | None:
        """Who did as planned, None when nobody has yet."""
        try:
            pid, where = (self.folder / "fired").read_text().split()
        except FileNotFoundError:
            return None
        return Fired(int(pid), where)

    def reached(self) -> list[str]:
        """All points that have been reached, in order."""
        try:
            return (self.folder / "trace").read_text().split()[1::2]
        except FileNotFoundError:
            return []
