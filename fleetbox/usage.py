"""What a running machine uses, as both ends of the control socket know it."""

from __future__ import annotations

import msgspec


class Statistics(msgspec.Struct, frozen=True):
    """Counters of one machine since its process began; `memory_bytes` alone is what it has now.

    `cpu_seconds` is the host's processor time, emulation and devices included. `memory_bytes` is the process's resident
    memory, with the pages that it shares with others. Disks and network are counted as the guest sees them: bytes
    read from and written to its disks, received and sent on its interface.
    """

    cpu_seconds: float = 0.0
    memory_bytes: int = 0
    disk_read_bytes: int = 0
    disk_written_bytes: int = 0
    network_received_bytes: int = 0
    network_sent_bytes: int = 0
