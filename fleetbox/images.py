"""Images, for Python: pull, build, import, list, inspect, remove.

An image is named by an alias of the catalog (`debian-12`), a name given when it was made, its digest or an unambiguous
prefix of it (8 digits or more).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from fleetbox import paths
from fleetbox.errors import ImageError
from fleetbox.image import Image
from fleetbox.job import run_job
from fleetbox.stream import OnEvent


def _image(value: Any) -> Image:
    return msgspec.convert(value, Image)


def list_images() -> list[Image]:
    """All images that are here.

    >>> fleetbox.images.list_images()
    []
    """
    return msgspec.convert(run_job("image.list", {}), list[Image])


def inspect(ref: str) -> Image:
    """One image that is here. Raises NotFoundError, AmbiguousError."""
    return _image(run_job("image.inspect", {"ref": ref}))


def pull(ref: str, *, sha256: str = "", on_event: OnEvent | None = None) -> Image:
    """Get a catalog image or a URL; an image that is here already is returned at once.

    `sha256` (of the downloaded file) is checked when given; catalog images carry theirs. Raises ImageError,
    NotFoundError.
    """
    return _image(run_job("image.pull", {"ref": ref, "sha256": sha256}, on_event))


def build(
    release: str = "debian-12",
    *,
    name: str = "",
    include: Sequence[str] = (),
    scripts: Sequence[str | os.PathLike[str]] = (),
    on_event: OnEvent | None = None,
) -> Image:
    """Build a release from the distribution's archive, with further packages and scripts run in it as root.

    Raises ImageError when it fails, HostError without mmdebstrap.
    """
    request = {
        "release": release,
        "name": name,
        "include": list(include),
        "scripts": [str(Path(script).absolute()) for script in scripts],
    }
    return _image(run_job("image.build", request, on_event))


def import_(source: str, *, name: str = "", sha256: str = "", on_event: OnEvent | None = None) -> Image:
    """Import a raw or qcow2 file, a URL, or standard input (`-`). Raises ImageError, NotFoundError."""
    with _spooled(source) as file:
        return _image(run_job("image.import", {"source": file, "name": name, "sha256": sha256}, on_event))


@contextlib.contextmanager
def _spooled(source: str) -> Iterator[str]:
    """`source` as a file or URL: standard input is written to a temporary file of the cache first."""
    if source != "-":
        yield source if "://" in source else str(Path(source).absolute())
        return
    paths.downloads_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=paths.downloads_dir(), prefix="stdin-", suffix=".part") as spool:
        try:
            shutil.copyfileobj(sys.stdin.buffer, spool, 1 << 20)
            spool.flush()
        except OSError as e:
            raise ImageError("standard input could not be kept", why=e.strerror or str(e)) from e
        yield spool.name


def remove(refs: Sequence[str]) -> list[Image]:
    """Remove images and return them. Raises ConflictError when a member uses one, naming the member."""
    return msgspec.convert(run_job("image.remove", {"refs": list(refs)}), list[Image])
