"""Members' folders, never made over somebody's disk; and the files of machines that were killed."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import shutil
from pathlib import Path

from fleetbox import paths
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


def remove_run_files(cluster: str, member: str, *slots: int) -> None:
    """Remove pidfile, sockets and the like of machines that ended while no holder was there; both slots' by default.

    Backends name them by the member, or where a socket's path must be short by a digest (`backends.vmm.runfiles`).
    """
    folder = paths.cluster_runtime_dir(cluster)
    ours = {paths.holder_pidfile(cluster), paths.holder_socket(cluster)}  # a member may be called "holder"
    for slot in slots or (0, 1):
        suffix = f"+{slot}" if slot else ""
        digest = hashlib.sha256(f"{cluster}/{member}{suffix}".encode()).hexdigest()[:12]
        for path in {*folder.glob(f"{member}{suffix}.*"), *folder.glob(f"{digest}.*")} - ours:
            path.unlink(missing_ok=True)
