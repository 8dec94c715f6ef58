"""A file on its way through a stream without its holes.

The stream is a sequence of frames: offset and length, 8 bytes each (big endian), then that many bytes of the file.
Offsets ascend. A frame of length 0 is the last; its offset is the file's size. The sha256 of all that ends the stream.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
from collections.abc import Iterator

from fleetbox.backends.host.disk import data_extents
from fleetbox.errors import UsageError
from fleetbox.sizes import MIB

FRAME = struct.Struct(">QQ")
BLOCK_BYTES = 1 * MIB
MAX_FILE_BYTES = 1 << 44


def frames(fd: int, start: int = 0) -> Iterator[bytes]:
    """The stream of a file from offset `start` on, in pieces of about 1 MiB. Blocks; raises OSError.

    Nobody may change the file meanwhile.
    """
    digest = hashlib.sha256()
    size = os.fstat(fd).st_size
    for begin, end in data_extents(fd, size, start):
        offset = begin
        while offset < end:
            data = os.pread(fd, min(BLOCK_BYTES, end - offset), offset)
            if not data:
                raise OSError(errno.EIO, "the file became shorter while it was read")
            piece = FRAME.pack(offset, len(data)) + data
            digest.update(piece)
            yield piece
            offset += len(data)
    last = FRAME.pack(size, 0)
    digest.update(last)
    yield last + digest.digest()


class Landing:
    """Takes a stream and writes the file.

    `whole` tells that the stream has come to its end, as it was sent; until then the file's length is how far it is
    whole, so that it can be gone on with from there.
    """

    def __init__(self, fd: int, *, start: int = 0, limit_bytes: int = MAX_FILE_BYTES) -> None:
        self.whole = False
        self._fd = fd
        self._position = start
        self._limit_bytes = limit_bytes
        self._digest = hashlib.sha256()
        self._words = b""  # a header, or in the end the digest, that has come in part
        self._left = 0
        self._last = False

    def write(self, data: bytes) -> None:
        """Take in the next piece, of any length. Blocks; raises OSError, UsageError for what is no such stream."""
        view = memoryview(data)
        while view:
            if self.whole:
                raise UsageError("the file's stream goes on after its end")
            if self._left:
                piece = view[: self._left]
                self._digest.update(piece)
                while piece:
                    written = os.pwrite(self._fd, piece, self._position)
                    self._position, piece = self._position + written, piece[written:]
                view, self._left = view[self._left :], max(0, self._left - len(view))
                continue
            wanted = (self._digest.digest_size if self._last else FRAME.size) - len(self._words)
            self._words, view = self._words + bytes(view[:wanted]), view[wanted:]
            if len(self._words) == self._digest.digest_size and self._last:
                if self._words != self._digest.digest():
                    raise UsageError("the file's stream was damaged on its way")
                self.whole = True
            elif len(self._words) == FRAME.size and not self._last:
                self._begin(*FRAME.unpack(self._words))
                self._digest.update(self._words)
                self._words = b""

    def _begin(self, offset: int, length: int) -> None:
        if offset < self._position or offset + length > self._limit_bytes:
            raise UsageError("the file's stream is out of order", why=f"offset {offset} after {self._position}")
        os.ftruncate(self._fd, offset)
        self._position, self._left, self._last = offset, length, length == 0
