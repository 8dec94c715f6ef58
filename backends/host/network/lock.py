"""The lock under which all installations of this host change one network namespace."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from fleetbox import paths
from fleetbox.backends.base import timeout_scale
from fleetbox.backends.host.network.links import not_permitted
from fleetbox.errors import NetworkError

_LOCK_TIMEOUT_S = 60.0


def shared_dir(*parts: str) -> Path:
    """A folder below `paths.host_dir()`; root's is readable for everybody: dnsmasq reads there without rights."""
    folders = [paths.host_dir().parent, paths.host_dir()]
    for part in parts:
        folders.append(folders[-1] / part)
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            if os.geteuid() == 0:
                folder.chmod(0o755)
    except PermissionError as e:
        raise not_permitted(f"{folders[-1]}: {e.strerror}") from e
    return folders[-1]


def lock_name(namespace: int) -> str:
    """The lock's file in `paths.host_dir()`."""
    return f"network-{namespace}.lock"


def drop_lock(namespace: int) -> None:
    """Remove the lock's file of a namespace that ends; its number may be another's later."""
    (paths.host_dir() / lock_name(namespace)).unlink(missing_ok=True)


@contextlib.contextmanager
def network_lock(namespace: int) -> Iterator[None]:
    """Hold the namespace's lock. Raises NetworkError when another process keeps it too long."""
    path = shared_dir() / lock_name(namespace)
    try:
        with FileLock(path, timeout=_LOCK_TIMEOUT_S * timeout_scale()):
            yield
    except Timeout:
        raise NetworkError(
            "another fleetbox is changing the host's network",
            why=f"{path} is locked",
            hint="wait for it, or see which process holds it: fuser -v " + str(path),
        ) from None
