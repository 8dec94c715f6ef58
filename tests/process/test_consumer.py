"""A second project, which has fleetbox by its wheel: its tests on fake machines, its types, what it imports."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import fleetbox
from tests.distribution import ROOT, Consumer, make_consumer

PUBLIC = {"fleetbox", "fleetbox.errors", "fleetbox.wait", "fleetbox.pytest_plugin"}
SOURCES = sorted((ROOT / "tests" / "consumer").rglob("*.py"))


@pytest.fixture(scope="module")
def consumer(tmp_path_factory: pytest.TempPathFactory) -> Consumer:
    return make_consumer(tmp_path_factory.mktemp("consumer"))


def test_its_tests_pass_on_fake_machines(consumer: Consumer, fleetbox_home: Path) -> None:
    done = consumer.run("-m", "pytest", "--fleetbox-backend", "fake")
    assert done.returncode == 0, done.stdout
    assert re.search(r"^=+ 7 passed, 5 skipped in", done.stdout, re.MULTILINE), done.stdout
    assert "needs real guests: the backend is fake" in done.stdout


def test_it_has_the_wheel_s_package(consumer: Consumer) -> None:
    done = consumer.run("-c", "import fleetbox, fleetbox.holder as h; print(fleetbox.__file__); print(h.__file__)")
    assert done.returncode == 0, done.stdout
    places = [Path(line) for line in done.stdout.splitlines()]
    assert len(places) == 2
    assert all(place.is_relative_to(consumer.python.parents[1]) for place in places)


def test_its_types_are_right(consumer: Consumer) -> None:
    """`py.typed` is in the wheel, and what the plugin and the library offer is typed."""
    done = consumer.run("-m", "mypy", "--no-incremental", "--cache-dir=/dev/null")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_it_uses_public_things_only(path: Path) -> None:
    found: list[tuple[str, str]] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names if alias.name.startswith("fleetbox")]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fleetbox"):
            found += [(str(node.module), alias.name) for alias in node.names]
        elif isinstance(node, ast.Attribute):
            assert not node.attr.startswith("_")
    assert {module for module, _ in found} <= PUBLIC
    assert all(name in fleetbox.__all__ for module, name in found if module == "fleetbox" and name)
