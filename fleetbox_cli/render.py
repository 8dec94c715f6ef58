"""Where results are written: a versioned JSON envelope, or text for people.

A verb returns an `Output`, frozen, with both; nothing else writes results to standard output.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fleetbox_cli.settings import Settings

ENVELOPE = 1
"""Version of the envelope and of all documented keys (docs/reference/json.md)."""

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])")
_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Table:
    """Columns under capital headings."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def lines(self) -> list[str]:
        """The table's lines, each column as wide as its widest cell."""
        cells = [self.columns, *(tuple(printable(cell) or "-" for cell in row) for row in self.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.columns))]
        return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


@dataclass(frozen=True)
class Output:
    """What a verb has to say: `data` for `--json` under `kind`, `text` for people, and the exit code."""

    kind: str
    data: Any
    text: Sequence[str | Table] = ()
    exit_code: int = 0


def render(output: Output, settings: Settings) -> int:
    """Write the output and return its exit code."""
    if settings.json:
        write_json(output.kind, "data", output.data)
    else:
        for block in output.text:
            lines = block.lines() if isinstance(block, Table) else [block]
            sys.stdout.write("".join(f"{line}\n" for line in lines))
    return output.exit_code


def write_json(kind: str, key: str, value: Any) -> None:
    """Write one envelope as one line."""
    write_line({"fleetbox": ENVELOPE, "kind": kind, key: value})


def write_line(value: Any) -> None:
    """Write any JSON-ready value (msgspec structs included) as one line."""
    import msgspec

    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    sys.stdout.flush()


def printable(text: str) -> str:
    """`text` without terminal escapes and control characters (tabs stay): what a guest prints is not trusted."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text))


def fields(pairs: Sequence[tuple[str, str]]) -> str:
    """`name  value` lines, aligned; pairs without a value are left out."""
    shown = [(name, printable(value)) for name, value in pairs if value]
    width = max((len(name) for name, _ in shown), default=0)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in shown)


def age(seconds: float) -> str:
    """`35s`, `12m`, `3h`, `9d`: how long ago, in the largest whole unit."""
    for limit, unit_s, suffix in ((120, 1, "s"), (7200, 60, "m"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{max(0, int(seconds // unit_s))}{suffix}"
    return f"{int(seconds // 86400)}d"
