"""The tree keeps its shape: short modules, plain names, no host of somebody's registry, the two symlinks."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_LINES = 400
FORBIDDEN_NAMES = {"util", "utils", "helper", "helpers", "manager", "managers", "common", "misc"}

# The files that pin where images and hypervisors come from.
PINS = {"holder/images/catalog.json", "backends/vmm/pinned.json"}
# Hosts that a text may name: documentation, reserved names (RFC 2606), and this machine.
HOSTS_ALLOWED = re.compile(
    r"(.*\.)?(example|invalid|test|localhost|example\.(com|org|net))|keepachangelog\.com|semver\.org|no-color\.org"
    r"|www\.w3\.org|node(-\d)?"  # the name of SVG's elements; a member, also as a man page writes it
)
URL_HOST = re.compile(r"\b(?:https?|ftp|rsync)://(?:[^\s/@\"']*@)?([a-z][a-z0-9.-]*[a-z0-9])", re.IGNORECASE)
BARE_HOST = re.compile(r"\b((?:[a-z0-9-]+\.)+(?:com|org))\b", re.IGNORECASE)


def tree() -> list[Path]:
    """Every file that is, or would be, under version control; relative to the root."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    files = sorted({Path(name) for name in listed.split("\0") if name})
    return [f for f in files if (ROOT / f).is_symlink() or (ROOT / f).is_file()]


def python_modules() -> list[Path]:
    return [f for f in tree() if f.suffix == ".py"]


def texts() -> list[tuple[Path, str]]:
    found = []
    for file in tree():
        try:
            found.append((file, (ROOT / file).read_text()))
        except (UnicodeDecodeError, IsADirectoryError):
            continue
    return found


@pytest.mark.parametrize(("link", "target"), [("fleetbox/holder", "../holder"), ("fleetbox/backends", "../backends")])
def test_the_installed_places_are_symlinks(link: str, target: str) -> None:
    assert (ROOT / link).is_symlink()
    assert str((ROOT / link).readlink()) == target


def test_modules_are_short() -> None:
    lengths = {f: len((ROOT / f).read_text().splitlines()) for f in python_modules()}
    assert len(lengths) > 20
    assert not {str(f): n for f, n in lengths.items() if n > MAX_LINES}


def test_modules_are_named_by_nouns_of_the_field() -> None:
    parts = {part for f in tree() for part in (*f.parent.parts, f.stem)}
    assert not parts & FORBIDDEN_NAMES


def hosts(text: str) -> set[str]:
    found = {m[1].lower() for m in URL_HOST.finditer(text)} | {m[1].lower() for m in BARE_HOST.finditer(text)}
    return {host for host in found if not HOSTS_ALLOWED.fullmatch(host)}


def test_no_registry_or_mirror_is_named() -> None:
    named = {str(file): found for file, text in texts() if str(file) not in PINS and (found := hosts(text))}
    assert not named


def test_a_mirror_would_be_found() -> None:
    mirror = "mirror." + "acme" + ".org"
    assert hosts(f"deb http://{mirror}/debian stable main") == {mirror}
    assert hosts(f"see {mirror}.") == {mirror}
    assert hosts("http://127.0.0.1:80/ http://server.example/x http://localhost") == set()


def test_generated_and_scratch_files_are_ignored() -> None:
    unwanted = re.compile(
        r"(^|/)(__pycache__|\.venv|build|dist|[^/]*\.egg-info|\.[a-z]+_cache)(/|$)|\.(img|qcow2|iso|log)$"
    )
    assert not [str(f) for f in tree() if unwanted.search(str(f))]
