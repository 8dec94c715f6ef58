"""The wheel, built from the sdist, holds every module once, under the names that users import, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from tests.distribution import copy_tree

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "fleetbox": "fleetbox",
    "holder": "fleetbox/holder",
    "backends": "fleetbox/backends",
    "fleetbox_cli": "fleetbox_cli",
}


def wanted() -> dict[str, Path]:
    """Every file that must be installed, by its name in the wheel."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in (ROOT / folder).rglob("*"):
            inside = path.relative_to(ROOT / folder)
            through_link = any((ROOT / folder / p).is_symlink() for p in [inside, *inside.parents])
            if not through_link and path.is_file() and "__pycache__" not in inside.parts:
                found[f"{package}/{inside}"] = path
    return found


def shared() -> dict[str, Path]:
    """Every file that must be installed below the prefix, by its name there."""
    made = {f"share/man/man{page.suffix[1:]}/{page.name}": page for page in (ROOT / "man").iterdir()}
    completions = ROOT / "completions"
    return made | {
        "share/bash-completion/completions/fleetbox.bash": completions / "fleetbox.bash",
        "share/zsh/site-functions/_fleetbox": completions / "_fleetbox",
        "share/fish/vendor_completions.d/fleetbox.fish": completions / "fleetbox.fish",
        "share/doc/fleetbox/apparmor-fleetbox": ROOT / "apparmor/apparmor-fleetbox",
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(sdist, wheel): the sdist of a copy of the tree, and the wheel of that sdist."""
    folder = tmp_path_factory.mktemp("dist")
    source = copy_tree(folder)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(source)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [sdist], [wheel] = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


def test_the_wheel_holds_every_file_once(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        names = [n for n in wheel.namelist() if ".dist-info/" not in n and ".data/" not in n]
        content = {n: wheel.read(n) for n in names}
    assert not [n for n, count in Counter(names).items() if count > 1]
    files = wanted()
    assert set(names) == set(files)
    assert {n: path.read_bytes() for n, path in files.items()} == content


def test_the_wheel_installs_man_pages_completions_and_the_profile(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        content = {n.partition(".data/data/")[2]: wheel.read(n) for n in wheel.namelist() if ".data/" in n}
    assert content == {name: path.read_bytes() for name, path in shared().items()}


def test_the_wheel_has_no_other_top_level_name(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        top = {n.split("/")[0] for n in wheel.namelist()}
    assert {n for n in top if not n.endswith((".dist-info", ".data"))} == {"fleetbox", "fleetbox_cli"}


def test_every_package_has_an_init(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        names = set(wheel.namelist())
    folders = {n.rpartition("/")[0] for n in names if n.endswith(".py")}
    assert {"fleetbox/holder", "fleetbox/backends/qemu", "fleetbox/backends/fake"} <= folders
    assert not [f for f in folders if f"{f}/__init__.py" not in names]


def test_the_sdist_holds_what_it_is_built_from(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as sdist:
        names = {n.partition("/")[2] for n in sdist.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "holder/__init__.py", "backends/base.py"} <= names


def test_the_installed_wheel_imports_and_shadows_nothing(built: tuple[Path, Path], tmp_path: Path) -> None:
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(tmp_path / "site"),
        str(built[1]),
    ]
    subprocess.run(install, check=True)
    probe = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import importlib.util, fleetbox, fleetbox.holder, fleetbox.backends.registry, fleetbox_cli\n"
        "assert fleetbox.__file__.startswith(sys.argv[1]), fleetbox.__file__\n"
        "assert fleetbox.holder.__file__.startswith(sys.argv[1]), fleetbox.holder.__file__\n"
        "assert importlib.util.find_spec('holder') is None and importlib.util.find_spec('backends') is None\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe, str(tmp_path / "site")], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
