"""Members' folders: never over somebody's disk, and gone with all that is in them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
from pathlib import Path

from fleetbox.errors import DiskError

log = logging.getLogger(__name__)


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        # No record names it (the placeholder is ours), yet a disk may be in it: never overwrite what may be somebody's.
        if any(folder.iterdir()):
            raise DiskError(
                f"{folder} exists already",
                why="no record names it, but it is not empty",
                hint="move it away, or remove it when nothing in it is wanted",
            ) from None
    except OSError as e:
        raise DiskError(f"{folder} cannot be made", why=e.strerror or str(e), hint="see `fleetbox doctor`") from e


async def remove_folder(folder: Path) -> None:
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    if folder.exists():
        log.error("%s could not be removed", folder)
    with contextlib.suppress(OSError):
        os.rmdir(folder.parent)  # noqa: PTH106 - the cluster's folder, when this was its last member
