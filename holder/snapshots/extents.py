"""Where a sparse file has data."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

_GAP = 1 << 16
"""Holes smaller than this are carried as data: each would cost as much in the header."""


def extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of the data among the first `size` bytes of an open file, in order. Raises OSError."""
    begin, end = 0, 0
    while end < size:
        try:
            data = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as e:
            if e.errno == errno.ENXIO:  # a hole up to the end
                break
            raise
        hole = min(os.lseek(fd, data, os.SEEK_HOLE), size)
        if data - end >= _GAP:
            if end > begin:
                yield begin, end - begin
            begin = data
        end = hole
    if end > begin:
        yield begin, end - begin
