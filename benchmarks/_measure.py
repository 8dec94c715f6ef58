"""Timing and tables for the benchmarks. They print ratios: the machines that they run on are noisy."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the tests' network namespaces and image cache serve the benchmarks too

# An installed fleetbox has its bytecode; a checkout gets it by the first run, unless this forbids it.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

FLEETBOX = str(Path(sys.executable).with_name("fleetbox"))


def seconds(work: Callable[[], object]) -> float:
    """How long one call takes."""
    began = time.monotonic()
    work()
    return time.monotonic() - began


def best_of(repeats: int, *works: Callable[[], object]) -> list[float]:
    """The shortest time of each, taken in turns so that a slow moment hits all alike."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(repeats):
        for taken, work in zip(times, works, strict=True):
            taken.append(seconds(work))
    return [min(taken) for taken in times]


def run(*argv: str) -> None:
    """Run a program that has to succeed, its output dropped."""
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print one Markdown table under a title that names the machine."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    cells = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    print(f"\n### {title}\n\n{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}\n")
    print("| " + " | ".join(cell.ljust(width) for cell, width in zip(header, widths, strict=True)) + " |")
    print("|" + "|".join("-" * (width + 2) for width in widths) + "|")
    print("\n".join(cells), flush=True)


def verdict(value: float, limit: float) -> str:
    """`ok`, or `OVER` when a promise is not kept."""
    return "ok" if value <= limit else "OVER"


@contextlib.contextmanager
def home() -> Iterator[Path]:
    """A FLEETBOX_HOME of its own; whatever stands in it at the end is destroyed and removed."""
    from tests.home import clean_home

    with clean_home() as path:
        try:
            yield path
        finally:
            import fleetbox

            for cluster in fleetbox.clusters():
                cluster.destroy()


def scratch(text: str) -> Path:
    """A temporary Python program."""
    fd, name = tempfile.mkstemp(suffix=".py")
    with os.fdopen(fd, "w") as file:
        file.write(text)
    return Path(name)
