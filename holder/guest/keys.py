"""The installation's SSH key: what opens every guest of this user.

Made on first use, once however many processes ask at the same time. The private key alone counts; the public one is
derived from it, so the two can never disagree.
"""

from __future__ import annotations

import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

import filelock

from fleetbox import paths
from fleetbox.backends.host.process import ProgramFailed
from fleetbox.errors import HostError
from fleetbox.holder.guest import atomicfile, sshkeygen

_LOCK_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class KeyPair:
    """`private` is a file that only this user can read; `public_text` is the line for `authorized_keys`."""

    private: Path
    public_text: str


def installation_key() -> KeyPair:
    """The installation's key, made when there is none; loose permissions are tightened.

    Takes about 5 ms. Raises HostError when the key cannot be read, is not a key, or cannot be made.
    """
    folder = paths.private_dir(paths.keys_dir())
    private = folder / "id_ed25519"
    try:
        if not private.exists():
            _make(folder, private)
        _check_access(private)
        public_text = sshkeygen.public_line(private)
        public = private.with_suffix(".pub")
        if not public.exists() or public.read_text() != f"{public_text}\n":
            atomicfile.write(public, f"{public_text}\n".encode(), mode=0o644)
    except ProgramFailed as e:
        raise HostError(
            f"the key {private} cannot be used",
            why=e.why,
            hint="restore it; or move it away to get a new one, which machines that exist will not accept",
        ) from e
    except OSError as e:
        raise HostError(
            f"the key {private} cannot be read or made",
            why=e.strerror or str(e),
            hint=f"check the owner and mode of {folder}, and the free space there",
        ) from e
    return KeyPair(private, public_text)


def _make(folder: Path, private: Path) -> None:
    try:
        lock = filelock.FileLock(folder / ".lock", timeout=_LOCK_TIMEOUT_S, mode=0o600)
        with lock:
            if private.exists():
                return
            for left in folder.glob(".new-*"):  # of one that was killed here: we hold the lock
                shutil.rmtree(left, ignore_errors=True)
            atomicfile.write(private, sshkeygen.generate(folder)[0], durable=True)
    except filelock.Timeout:
        raise HostError(
            f"the key {private} is being made by another process that does not end",
            hint=f"end it, or remove {folder / '.lock'}",
        ) from None


def _check_access(private: Path) -> None:
    # OpenSSH refuses a private key that others may read.
    info = private.stat()
    if info.st_uid == os.geteuid() and stat.S_IMODE(info.st_mode) & 0o177:
        private.chmod(0o600)
