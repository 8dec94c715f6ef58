"""Running the project as an ordinary user: `python tests/ordinary.py UID -- COMMAND…`, started by root.

The user may read what it runs from and open /dev/net/tun, as on any desktop. On a machine where root's own folders hold
the interpreter or the checkout, and where the device is root's, that takes a mount namespace of the command's own:
nothing of the machine itself is changed.
"""

from __future__ import annotations

import ctypes
import os
import stat
import sys
import tempfile
from pathlib import Path

UID = 54321

_NEW_NS, _BIND, _REC, _PRIVATE = 0x00020000, 4096, 16384, 1 << 18
_TUN = Path("/dev/net/tun")


def argv(*command: str, uid: int = UID) -> list[str]:
    """The command line that runs `command` as an ordinary user."""
    return [sys.executable, str(Path(__file__)), str(uid), "--", *command]


def _mount(source: Path | str, target: Path, kind: str | None, flags: int, data: str | None = None) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    words = (os.fsencode(source), os.fsencode(target), kind.encode() if kind else None, flags)
    if libc.mount(*words, data.encode() if data else None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))


def _closed(path: Path) -> Path | None:
    """The first folder on the way to `path` that others may not pass."""
    return next(
        (p for p in reversed([path, *path.parents]) if p.is_dir() and not p.stat().st_mode & stat.S_IXOTH), None
    )


def _show(path: Path, scratch: Path) -> None:
    """Let others reach `path`: each closed folder above it is covered by an open one that holds nothing but the way."""
    while (closed := _closed(path)) is not None:
        keep = scratch / f"kept-{len(list(scratch.iterdir()))}"
        keep.mkdir()
        _mount(path, keep, None, _BIND | _REC)
        _mount("none", closed, "tmpfs", 0, "mode=0755")
        if path != closed:
            path.mkdir(parents=True)
        _mount(keep, path, None, _BIND | _REC)


def main(words: list[str]) -> None:
    """Become the user and run the command."""
    uid, command = int(words[0]), words[2:]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_NS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    _mount("none", Path("/"), None, _REC | _PRIVATE)
    scratch = Path(tempfile.mkdtemp(prefix="fleetbox-ordinary-"))
    _mount("none", scratch, "tmpfs", 0, "mode=0755")
    interpreter = Path(sys.executable).resolve().parents[1]
    for path in (interpreter, Path(__file__).parents[1], Path(sys.prefix)):
        _show(path, scratch)
    if _TUN.exists():
        node = scratch / "tun"
        os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(10, 200))
        node.chmod(0o666)
        _mount(node, _TUN, None, _BIND)
    passwd = scratch / "passwd"  # ssh and ssh-keygen insist on a name
    passwd.write_text(f"{Path('/etc/passwd').read_text()}ordinary:x:{uid}:{uid}::/nonexistent:/bin/sh\n")
    _mount(passwd, Path("/etc/passwd"), None, _BIND)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    os.chdir("/")
    os.environ |= {"HOME": "/nonexistent", "USER": "ordinary", "LOGNAME": "ordinary"}
    os.environ.pop("XDG_RUNTIME_DIR", None)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
