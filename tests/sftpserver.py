"""An SFTP server on standard input, for a double of `ssh` to run: `$SFTP_ROOT` is its `/`, and it may lie.

`$SFTP_LIES` is what a hostile guest says: a name that its folder `lies` has besides what is there, or `NAME=>TARGET`, a
link of that name; several stand on lines of their own.
"""

from __future__ import annotations

import os
import posixpath
import socket
import stat
from pathlib import Path
from typing import Any

import paramiko

ROOT = Path(os.environ["SFTP_ROOT"])
LIES = [line for line in os.environ.get("SFTP_LIES", "").split("\n") if line]


def _real(path: str) -> Path:
    return ROOT / posixpath.normpath(posixpath.join("/home/fleet", path)).lstrip("/")


class Channel:
    """What paramiko's server asks of its channel, on a socket."""

    def __init__(self) -> None:
        self._socket = socket.socket(fileno=0)

    def send(self, data: bytes) -> int:
        return self._socket.send(data)

    def recv(self, size: int) -> bytes:
        return self._socket.recv(size)

    def get_transport(self) -> Channel:
        return self

    def get_log_channel(self) -> str:
        return "sftp"

    def get_name(self) -> str:
        return "sftp"

    def get_hexdump(self) -> bool:
        return False


class Handle(paramiko.SFTPHandle):  # type: ignore[misc]
    def stat(self) -> Any:
        return paramiko.SFTPAttributes.from_stat(os.fstat(self.readfile.fileno()))


class Files(paramiko.SFTPServerInterface):  # type: ignore[misc]
    """Every error is told by its number."""

    def _try(self, action: Any) -> Any:
        try:
            found = action()
        except OSError as e:
            return paramiko.SFTPServer.convert_errno(e.errno)
        return paramiko.SFTP_OK if found is None or isinstance(found, Path) else found

    def list_folder(self, path: str) -> Any:
        def listed() -> list[Any]:
            found = [paramiko.SFTPAttributes.from_stat(child.lstat(), child.name) for child in _real(path).iterdir()]
            if posixpath.basename(path) == "lies":
                for lie in LIES:
                    name, link, _ = lie.partition("=>")
                    made = paramiko.SFTPAttributes.from_stat(Path(__file__).stat(), name)
                    made.st_mode = (stat.S_IFLNK if link else stat.S_IFREG) | 0o777
                    found.append(made)
            return found

        return self._try(listed)

    def stat(self, path: str) -> Any:
        return self._try(lambda: paramiko.SFTPAttributes.from_stat(_real(path).stat()))

    def lstat(self, path: str) -> Any:
        return self._try(lambda: paramiko.SFTPAttributes.from_stat(_real(path).lstat()))

    def open(self, path: str, flags: int, attr: Any) -> Any:
        def opened() -> Handle:
            fd = os.open(_real(path), flags, 0o600)
            handle = Handle(flags)
            handle.readfile = handle.writefile = os.fdopen(fd, "wb" if flags & os.O_WRONLY else "rb")
            return handle

        return self._try(opened)

    def remove(self, path: str) -> Any:
        return self._try(_real(path).unlink)

    def posix_rename(self, oldpath: str, newpath: str) -> Any:
        return self._try(lambda: _real(oldpath).replace(_real(newpath)))

    def mkdir(self, path: str, attr: Any) -> Any:
        return self._try(_real(path).mkdir)

    def chattr(self, path: str, attr: Any) -> Any:
        return self._try(lambda: paramiko.SFTPServer.set_file_attr(str(_real(path)), attr))

    def symlink(self, target_path: str, path: str) -> Any:
        return self._try(lambda: _real(path).symlink_to(target_path))

    def readlink(self, path: str) -> Any:
        for lie in LIES:
            name, link, target = lie.partition("=>")
            if link and posixpath.basename(path) == name:
                return target
        return self._try(lambda: str(_real(path).readlink()))

    def canonicalize(self, path: str) -> str:
        return "/" + str(_real(path).resolve().relative_to(ROOT.resolve())).lstrip(".")


if __name__ == "__main__":
    channel = Channel()
    paramiko.SFTPServer(channel, "sftp", None, Files).start_subsystem("sftp", channel, channel)
