"""The smallest kernel: an ELF for x86-64 that does next to nothing, and neither answers nor listens.

It is entered by the PVH protocol (Xen's `docs/misc/pvh.pandoc`), which firecracker, cloud-hypervisor and QEMU's
`-kernel` all take of an ELF.
"""

from __future__ import annotations

import struct
from pathlib import Path

_LOAD = 0x100000
_XEN_ELFNOTE_PHYS32_ENTRY = 18
HALT = b"\xfa\xf4\xeb\xfd"  # cli; again: hlt; jmp again
# Once something comes in on the first serial port, the keyboard controller is told to reset the processor.
RESETS = b"\x66\xba\xfd\x03\xec\xa8\x01\x74\xf7\xb0\xfe\xe6\x64" + HALT


def write(path: Path, code: bytes = HALT) -> Path:
    """Write a kernel that runs `code` (32 bit) to a file and return that."""
    note = struct.pack("<III4sQ", 4, 8, _XEN_ELFNOTE_PHYS32_ENTRY, b"Xen\0", _LOAD)
    content = 64 + 2 * 56
    identity = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = identity + struct.pack("<HHIQQQIHHHHHH", 2, 0x3E, 1, _LOAD, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    code_at = content + len(note)
    load = struct.pack("<IIQQQQQQ", 1, 5, code_at, _LOAD, _LOAD, len(code), len(code), 1)
    notes = struct.pack("<IIQQQQQQ", 4, 4, content, 0, 0, len(note), len(note), 4)
    path.write_bytes(header + load + notes + note + code)
    return path
