"""Every point where a test can strike is in the registry, and every one of the registry is in the code."""

from __future__ import annotations

import ast
from pathlib import Path

from fleetbox.faultpoint import POINTS

ROOT = Path(__file__).parents[2]
REGISTRY = ROOT / "fleetbox" / "faultpoint.py"


def points_of(source: str) -> list[str | None]:
    """The names that `reach` and `arrive` are called with; None for what is no plain text."""
    found: list[str | None] = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Name(id="reach" | "arrive"), args=[ast.Constant(value=str(point))]):
                found.append(point)
            case ast.Call(func=ast.Name(id="reach" | "arrive")):
                found.append(None)
    return found


def test_the_registry_is_the_code() -> None:
    used: set[str | None] = set()
    for folder in ("fleetbox", "fleetbox_cli", "holder", "backends"):
        for path in (ROOT / folder).rglob("*.py"):
            if path != REGISTRY and not any(parent.is_symlink() for parent in path.parents):
                used |= set(points_of(path.read_text()))
    assert used == set(POINTS)


def test_every_point_says_what_is_so_there() -> None:
    assert len(POINTS) >= 40
    assert all(text and not text.endswith(".") for text in POINTS.values())
