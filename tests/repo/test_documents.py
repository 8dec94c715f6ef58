"""What is written agrees with what is there: docstrings, versions, links."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fleetbox
from fleetbox import errors
from fleetbox._version import __version__

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(p for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")] if p.is_file())
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def public() -> Iterator[tuple[str, object]]:
    """Everything that `fleetbox` offers, by name: its own names, its modules', and the methods of its classes."""
    for name in fleetbox.__all__:
        thing = getattr(fleetbox, name)
        yield name, thing
        members = vars(thing) if inspect.ismodule(thing) or inspect.isclass(thing) else {}
        for inner, value in members.items():
            if not inner.startswith("_") and (inspect.isroutine(value) or isinstance(value, type | property)):
                owner = getattr(value, "__module__", None)
                if not inspect.ismodule(thing) or owner == thing.__name__:
                    yield f"{name}.{inner}", getattr(thing, inner)


def test_every_public_name_has_a_docstring() -> None:
    found = dict(public())
    assert len(found) > 30
    # Errors are described by the tree that their module opens with.
    in_tree = {n for n, t in found.items() if inspect.isclass(t) and issubclass(t, errors.FleetboxError)}
    assert all(name in str(errors.__doc__) for name in in_tree)
    constants = {n for n, t in found.items() if isinstance(t, str | int | float | tuple)}
    assert not [n for n, t in found.items() if n not in in_tree | constants and not inspect.getdoc(t)]


def test_the_public_names_are_sorted() -> None:
    assert list(fleetbox.__all__) == sorted(fleetbox.__all__)


@pytest.mark.parametrize("path", sorted((ROOT / "fleetbox").glob("*.py")), ids=lambda p: p.stem)
def test_every_public_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_one_version_everywhere() -> None:
    assert importlib.metadata.version("fleetbox") == __version__
    assert fleetbox.__version__ == __version__
    said = subprocess.run(
        [sys.executable, "-m", "fleetbox_cli", "version"], capture_output=True, text=True, check=True
    ).stdout
    assert __version__ in said
    assert re.search(rf"^## \[{re.escape(__version__)}\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as forges make them."""
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in HEADING.findall(document.read_text()))
    return {heading.strip().replace(" ", "-") for heading in kept}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    dead = []
    for link in LINK.findall(document.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name) if name else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert not dead


def test_the_documents_are_all_there() -> None:
    assert {"README.md", "ARCHITECTURE.md", "CHANGELOG.md"} <= {d.name for d in DOCUMENTS}
    records = [d.name for d in DOCUMENTS if d.parent.name == "adr" and d.name != "README.md"]
    numbers = [int(name[:4]) for name in records]
    assert numbers == list(range(1, len(records) + 1))
    assert LINK.findall((ROOT / "docs/adr/README.md").read_text()) == records


def test_every_make_target_of_the_documents_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = {m for d in DOCUMENTS for m in re.findall(r"`make ([a-z-]+)", d.read_text())}
    assert {"demo", "test"} <= named
    assert not [target for target in named if not re.search(rf"^{target}:", makefile, re.MULTILINE)]
