"""Data flows one way: fleetbox_cli → fleetbox (client) → control socket → holder → backends (design §1)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Folder of a layer, the package that it is installed as, and what it must not import.
LAYERS = {
    "fleetbox": ("fleetbox", {"fleetbox.holder", "fleetbox.backends", "fleetbox_cli"}),
    "holder": ("fleetbox.holder", {"fleetbox_cli"}),
    "backends": ("fleetbox.backends", {"fleetbox.holder", "fleetbox_cli"}),
    "fleetbox_cli": ("fleetbox_cli", {"fleetbox.holder", "fleetbox.backends"}),
}
NEVER = {"holder", "backends", "tests", "benchmarks"}


def modules(folder: str) -> Iterator[tuple[Path, str]]:
    """Every module of a top folder and the name that it is imported by; the two symlinks are not followed."""
    package = LAYERS[folder][0]
    for path in sorted((ROOT / folder).rglob("*.py")):
        inside = path.relative_to(ROOT / folder)
        if not any((ROOT / folder / p).is_symlink() for p in inside.parents):
            parts = inside.with_suffix("").parts
            yield path, ".".join((package, *(parts[:-1] if parts[-1] == "__init__" else parts)))


def imports(source: str, module: str, is_package: bool) -> Iterator[str]:
    """The full names that a module imports, anywhere in it: at its top, in functions, by name with import_module."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=target, names=names, level=level):
                base = target or ""
                if level:
                    parts = module.split(".")
                    base = ".".join([*parts[: len(parts) - level + is_package], *([target] if target else [])])
                yield from (f"{base}.{alias.name}" for alias in names)
            case ast.Call(func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(name)), *_]):
                yield name


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("folder", LAYERS)
def test_imports_go_one_way(folder: str) -> None:
    _, forbidden = LAYERS[folder]
    found = list(modules(folder))
    assert found
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path, module in found
        for name in imports(path.read_text(), module, path.name == "__init__.py")
        if any(is_within(name, f) for f in forbidden | NEVER)
    ]
    assert not wrong


def test_the_walk_sees_every_form_of_import() -> None:
    source = """
import fleetbox.holder.a
def late():
    from fleetbox.backends import b
    from . import c
    from ..d import e
    importlib.import_module("fleetbox.holder.f")
"""
    assert set(imports(source, "fleetbox.x.y", is_package=False)) == {
        "fleetbox.holder.a",
        "fleetbox.backends.b",
        "fleetbox.x.c",
        "fleetbox.d.e",
        "fleetbox.holder.f",
    }
