"""Faults that a test asks a simulator for.

`FLEETBOX_SIMULATOR_FAULTS` holds `WHERE=WHAT`, comma-separated. WHERE is `launch`, `listening` (the API socket is
there) or a request's last word, such as `vm.pause`. WHAT is `exit`, `silent` (no answer), `garbage` (no HTTP), `N` (an
HTTP status with the API's own kind of body) or `busy:N` (refused N times, then done).
"""

from __future__ import annotations

VARIABLE = "FLEETBOX_SIMULATOR_FAULTS"


class Faults:
    """What is to go wrong, by place; `busy` counts down."""

    def __init__(self, text: str) -> None:
        self._at: dict[str, str] = {}
        for part in filter(None, text.split(",")):
            where, _, what = part.partition("=")
            self._at[where] = what

    def at(self, where: str) -> str:
        """What goes wrong there now; empty for nothing."""
        what = self._at.get(where, "")
        if what.startswith("busy:"):
            left = int(what.removeprefix("busy:"))
            self._at[where] = f"busy:{left - 1}" if left > 1 else ""
            return "busy" if left else ""
        return what
