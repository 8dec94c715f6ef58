"""Real machines: one image, built once and kept between runs; a network of their own with an internet beyond it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock
import pytest

import fleetbox
from tests.home import clean_home
from tests.netns import TestNet

ROOT = Path(__file__).parents[2]
IMAGE = "debian-12"
# What shapes the image that is built: when one of these changes, so does the image.
SOURCES = ("archive.py", "aptsources.py", "catalog.json", "kernel.py", "partitions.py", "store.py")
BUILD_LIMIT_S = 1800.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test here boots machines."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vm)


def cached_image() -> Path:
    """A home that holds the image `debian-12`, built from the archive when it is not there or its recipe has changed.

    It is kept in FLEETBOX_TEST_CACHE, by default `~/.cache/fleetbox-tests`; earlier recipes' images are removed.
    """
    cache = Path(os.environ.get("FLEETBOX_TEST_CACHE") or Path.home() / ".cache" / "fleetbox-tests").absolute()
    recipe = hashlib.sha256(b"".join((ROOT / "holder" / "images" / name).read_bytes() for name in SOURCES)).hexdigest()
    home = cache / recipe[:12]
    cache.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(cache / "lock", timeout=BUILD_LIMIT_S):
        if not (home / "complete").exists():
            for old in cache.iterdir():
                if old.is_dir():
                    shutil.rmtree(old)
            # A process of its own: the home is in its surroundings only, and it stays in the host's network.
            build = [sys.executable, "-m", "fleetbox_cli", "image", "build", IMAGE]
            done = subprocess.run(
                build, env={**os.environ, "FLEETBOX_HOME": str(home)}, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
            (home / "complete").touch()
    return home


@pytest.fixture(scope="session")
def image_cache() -> Path:
    """See `cached_image`."""
    return cached_image()


def share_images(source: Path, target: Path) -> None:
    """Give the home `target` the images of `source`, without copying where hard links go. Both stay removable."""
    for folder in ("blobs", "images"):
        destination = target / "data" / folder
        destination.parent.mkdir(parents=True, exist_ok=True)
        linked = ["cp", "-a", "--link", str(source / "data" / folder), str(destination)]
        if subprocess.run(linked, capture_output=True, check=False).returncode != 0:  # another file system
            shutil.rmtree(destination, ignore_errors=True)
            copied = ["cp", "-a", "--sparse=always", "--reflink=auto", str(source / "data" / folder), str(destination)]
            subprocess.run(copied, check=True)
    (target / "data" / "images" / ".lock").unlink(missing_ok=True)  # a lock of its own


@dataclass(frozen=True)
class Lab:
    """Where a module's machines run: `home` is their FLEETBOX_HOME, `net` their host's network with an internet."""

    home: Path
    net: TestNet


@pytest.fixture(scope="module")
def lab(image_cache: Path) -> Iterator[Lab]:
    """A home with the image, in a network of its own that this process has entered.

    At the end the module's clusters are destroyed, and whatever then is left fails its last test.
    """
    with TestNet() as net:
        net.enter()
        with clean_home() as home:
            share_images(image_cache, home)
            yield Lab(home, net)
            for cluster in fleetbox.clusters():
                cluster.destroy()
