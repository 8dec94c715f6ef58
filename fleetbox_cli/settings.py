"""What the options that every verb takes say."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TextIO


@dataclass
class Settings:
    """Filled in while the command line is parsed; `parsed` once all of it was understood. `cluster` scopes refs."""

    json: bool = False
    quiet: bool = False
    debug: bool = False
    cluster: str = ""
    parsed: bool = False

    @property
    def scope(self) -> str | None:
        """The cluster that bare refs belong to, None when none is set."""
        return self.cluster or os.environ.get("FLEETBOX_CLUSTER") or None


def is_terminal(stream: TextIO) -> bool:
    """Whether somebody looks at `stream` on a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def wants_color(stream: TextIO) -> bool:
    """Whether `stream` takes colors: a terminal, and `NO_COLOR` (no-color.org) is not set."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


def note(text: str, settings: Settings) -> None:
    """Say something beside the result, on standard error; `--quiet` silences it."""
    if not settings.quiet:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
