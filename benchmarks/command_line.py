"""What the command line costs by itself: against the smallest Typer program, in one run."""

from __future__ import annotations

import os
import sys

from _measure import FLEETBOX, best_of, home, run, scratch, table, verdict

import fleetbox

MINIMAL = """
import typer
app = typer.Typer()
@app.command()
def main() -> None:
    print("hello")
app()
"""
REPEATS = int(os.environ.get("REPEATS", "15"))


def main() -> None:
    """Print the table."""
    minimal = scratch(MINIMAL)
    with home():
        for name in ("one", "two", "three"):
            fleetbox.up(name, members=3, backend="fake")
        words = ("COMP_WORDS", "COMP_CWORD")
        assert not any(word in os.environ for word in words)
        python, typer, ls, version, completion, status = best_of(
            REPEATS,
            lambda: run(sys.executable, "-c", "pass"),
            lambda: run(sys.executable, str(minimal)),
            lambda: run(FLEETBOX, "ls"),
            lambda: run(FLEETBOX, "version"),
            lambda: run(FLEETBOX, "__complete", "ssh", "one/node"),
            lambda: run(FLEETBOX, "status", "one"),
        )
    minimal.unlink()

    def row(what: str, taken: float, limit_ms: float | None) -> tuple[str, ...]:
        over = (taken - typer) * 1000
        promise = "" if limit_ms is None else f"+{limit_ms:.0f} ms"
        kept = "" if limit_ms is None else verdict(over, limit_ms)
        return what, f"{taken * 1000:.0f} ms", f"{over:+.0f} ms", f"{taken / typer:.2f}", promise, kept

    table(
        "Start-up of the command line (best of several, three clusters of three)",
        ("command", "time", "beyond minimal Typer", "ratio", "promise", ""),
        [
            row("python3 -c pass", python, None),
            row("minimal Typer program", typer, None),
            row("fleetbox ls", ls, 60),
            row("fleetbox version", version, 20),
            row("completion of a word", completion, 20),
            row("fleetbox status CLUSTER", status, None),
        ],
    )


if __name__ == "__main__":
    main()
