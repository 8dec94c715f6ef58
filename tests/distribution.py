"""The built package: a copy of the tree to build it in, its wheel, and a second project that uses that."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

from fleetbox.backends.base import timeout_scale

ROOT = Path(__file__).parents[1]
LIMIT_S = 1500.0


def copy_tree(folder: Path) -> Path:
    """Every file that is, or would be, under version control, in a new folder: building writes beside the sources."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    packed = subprocess.run(
        ["tar", "-c", "--null", "--ignore-failed-read", "-T", "-"],
        cwd=ROOT,
        input=listed,
        capture_output=True,
        check=False,
    )
    source = folder / "source"
    source.mkdir()
    subprocess.run(["tar", "-x", "-C", source], input=packed.stdout, check=True)
    return source


@dataclass(frozen=True)
class Consumer:
    """`tests/consumer` in a folder of its own, with an environment that has fleetbox by its wheel."""

    folder: Path
    python: Path

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `python WORDS…` in it."""
        return subprocess.run(
            [str(self.python), "-P", *words],
            cwd=self.folder,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT_S * timeout_scale(),
            check=False,
        )


def make_consumer(folder: Path) -> Consumer:
    """Build the wheel, without network, and install it where it finds what it needs among our own packages."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheel = ["wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", str(folder), str(copy_tree(folder))]
    _done([*pip, *wheel])
    [built] = folder.glob("*.whl")
    environment = folder / "venv"
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    _done([*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(built)])
    [packages] = environment.glob("lib/python3*/site-packages")
    (packages / "ours.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    shutil.copytree(ROOT / "tests" / "consumer", folder / "consumer")
    return Consumer(folder / "consumer", python)


def _done(argv: list[str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
