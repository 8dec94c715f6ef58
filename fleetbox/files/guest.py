"""The files of a member, over SFTP (draft-ietf-secsh-filexfer-02) through the system's OpenSSH.

So a copy goes the way of `fleetbox ssh`: strict host keys, the installation's key, and the connection that is open
already, where there is one. What a guest answers is not trusted: it is bounded here, and checked by who uses it.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import posixpath
import secrets
import select
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import IO, TYPE_CHECKING, Self

from fleetbox.errors import HostError, MachineError
from fleetbox.files.tree import Entry, kind_of

if TYPE_CHECKING:
    import paramiko

    from fleetbox.member import Member

ENTRIES_MAX = 1_000_000
"""A folder with more is refused: a guest could go on for ever."""

_REQUEST_BYTES = 32768  # what every server takes
_WINDOW = 64  # requests under way at once; the guest's word for a file's size must not decide about our memory


class _Line(socket.socket):
    """A socket as paramiko's SFTP client wants it: a channel has a name for its log, and says whether it has input."""

    def get_name(self) -> str:
        return "sftp"

    def recv_ready(self) -> bool:
        return bool(select.select([self], [], [], 0)[0])


class GuestTree:
    """A member's files; a context manager that holds the session. See `fleetbox.files.tree.Tree`."""

    def __init__(self, member: Member) -> None:
        self.name = member.ref
        self._member = member

    def __enter__(self) -> Self:
        """Raises MachineError when the member is not running or has no SFTP, HostError without OpenSSH."""
        import paramiko

        argv = self._member.ssh_argv(["sftp"], tty=False)
        with contextlib.ExitStack() as made:
            ours, theirs = socket.socketpair()
            line = made.enter_context(_Line(fileno=ours.detach()))
            self._errors: IO[bytes] = made.enter_context(tempfile.TemporaryFile())
            with theirs:
                try:
                    end = theirs.fileno()
                    self._ssh = subprocess.Popen([argv[0], "-s", *argv[1:]], stdin=end, stdout=end, stderr=self._errors)
                except FileNotFoundError:
                    raise HostError(
                        "there is no ssh on this host", hint="install openssh-client, or run `fleetbox doctor --fix`"
                    ) from None
            made.callback(self._end)
            try:
                self._sftp: paramiko.SFTPClient = paramiko.SFTPClient(line)
            except (paramiko.SSHException, EOFError, OSError) as e:
                raise self._lost(e) from e
            self._open = made.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import paramiko

        lost = self._lost(error) if isinstance(error, (EOFError, paramiko.SSHException)) else None
        self._open.close()
        if lost is not None:
            raise lost from error

    def _end(self) -> None:
        self._ssh.terminate()  # a client of the multiplexed connection, or the connection itself
        self._ssh.wait()

    def _lost(self, error: BaseException | None) -> MachineError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._ssh.wait(1.0)
        self._errors.seek(0)
        said = self._errors.read(4096).decode(errors="replace").strip().splitlines()
        return MachineError(
            f"{self.name} cannot be reached by SFTP",
            why=said[-1] if said else str(error) or "the connection ended",
            hint=f"see `fleetbox logs {self.name}`",
        )

    # --- Tree

    def find(self, path: str, *, follow: bool = False) -> Entry | None:
        try:
            attributes = self._sftp.stat(path) if follow else self._sftp.lstat(path)
        except FileNotFoundError:
            return None
        except NotADirectoryError:
            return None
        return self._entry(path, attributes)

    def entries(self, path: str) -> Iterator[tuple[str, Entry]]:
        found = []
        try:
            for attributes in self._sftp.listdir_iter(path):
                found.append(attributes)
                if len(found) > ENTRIES_MAX:
                    raise OSError(errno.EFBIG, f"it has more than {ENTRIES_MAX} entries")
        except UnicodeDecodeError:
            raise OSError(errno.EILSEQ, "it holds a name that is not UTF-8") from None
        for attributes in sorted(found, key=lambda a: a.filename):
            yield attributes.filename, self._entry(posixpath.join(path, attributes.filename), attributes)

    def matches(self, pattern: str) -> list[str]:
        found = ["/"] if pattern.startswith("/") else [""]
        for part in filter(None, pattern.split("/")):
            found = [path for folder in found for path in self._match(folder, part)]
        return sorted(found)

    def _match(self, folder: str, part: str) -> Iterator[str]:
        if not any(c in part for c in "*?["):
            path = posixpath.join(folder, part)
            if self.find(path, follow=True) is not None:
                yield path
            return
        try:
            names = [name for name, _ in self.entries(folder or ".")]
        except OSError:
            return  # not a folder, or not ours: a shell finds nothing there either
        for name in names:
            if "/" not in name and fnmatch.fnmatchcase(name, part) and (part[0] == "." or name[:1] != "."):
                yield posixpath.join(folder, name)

    def resolved(self, path: str) -> str:
        return str(self._sftp.normalize(path))

    def read(self, path: str, size_bytes: int) -> Iterator[bytes]:
        with self._sftp.open(path, "rb") as file:
            offset = 0
            while offset < size_bytes:
                ends = range(offset, min(size_bytes, offset + _WINDOW * _REQUEST_BYTES), _REQUEST_BYTES)
                for block in file.readv([(at, min(_REQUEST_BYTES, size_bytes - at)) for at in ends]):
                    if not block:
                        return  # it has become shorter
                    offset += len(block)
                    yield block
            while block := file.read(_REQUEST_BYTES):  # it has become longer, or says no size (/proc)
                yield block

    def write(self, path: str, content: Iterable[bytes], mode: int | None, times: tuple[float, float] | None) -> None:
        folder, name = posixpath.split(path)
        temporary = posixpath.join(folder, f".{name[:200]}.{secrets.token_hex(6)}")
        before = self.find(path) if mode is None else None
        if before is not None and before.kind == "file":
            mode = before.mode
        file = self._sftp.open(temporary, "wx")
        try:
            with file:
                file.set_pipelined(True)
                for block in content:
                    file.write(block)
            if mode is not None:
                self._sftp.chmod(temporary, mode)
            if times is not None:
                self._sftp.utime(temporary, times)
            self._sftp.posix_rename(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError, EOFError):
                self._sftp.remove(temporary)
            raise

    def make_folder(self, path: str) -> None:
        self._sftp.mkdir(path, 0o700)

    def finish_folder(self, path: str, mode: int, times: tuple[float, float]) -> None:
        self._sftp.chmod(path, mode)
        self._sftp.utime(path, times)

    def make_link(self, path: str, target: str) -> None:
        before = self.find(path)
        if before is not None and before.kind == "link":
            self._sftp.remove(path)
        self._sftp.symlink(target, path)

    def _entry(self, path: str, attributes: paramiko.SFTPAttributes) -> Entry:
        mode = attributes.st_mode or 0
        kind = kind_of(mode)
        target = (self._sftp.readlink(path) or "") if kind == "link" else ""
        size = attributes.st_size or 0
        times = attributes.st_atime or 0, attributes.st_mtime or 0
        return Entry(kind, size, stat.S_IMODE(mode), *times, target)
