"""The identity that a woken machine takes on, and how it is told (see `program`)."""

from __future__ import annotations

import hashlib
import ipaddress
import re
import secrets
from dataclasses import dataclass, field

from fleetbox import names
from fleetbox.backends.base import Lease
from fleetbox.holder.guest.hostkeys import HostKey

ENTROPY_BYTES = 64
NONCE = re.compile(r"[0-9a-f]{32}")
_DATA_LINE_BYTES = 4096  # a terminal takes no longer line

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class NewIdentity:
    """All that makes a clone of a template (or of any machine) another machine.

    `old` is where the machine was when it was saved, `new` where it will be; the rest of what it was stands in the
    guest itself. `authorized_key` lets us in by SSH, where a guest of another installation does not know us yet.
    `machine_id` is 32 hexadecimal digits (`machine_id()`), `instance_id` cloud-init's. Raises ValueError
    or UsageError for a value that is not what it should be: each ends up in some file of the guest.
    """

    hostname: str
    cluster: str
    old_cluster: str
    old: Lease
    new: Lease
    machine_id: str
    instance_id: str
    host_key: HostKey
    authorized_key: str = ""
    entropy: bytes = field(default_factory=lambda: secrets.token_bytes(ENTROPY_BYTES), repr=False)

    def __post_init__(self) -> None:
        names.check_label(self.hostname, "host name")
        names.check_label(self.cluster, "cluster name")
        names.check_label(self.old_cluster, "cluster name")
        if not re.fullmatch(r"[0-9a-f]{32}", self.machine_id):
            raise ValueError(f"{self.machine_id!r} is not a machine-id")
        if not _WORD.fullmatch(self.instance_id):
            raise ValueError(f"{self.instance_id!r} is not an instance-id")
        for lease in (self.old, self.new):
            _check_lease(lease)
        if "\n" in self.host_key.public_text + self.authorized_key or not self.host_key.private_text.isascii():
            raise ValueError("this is not an SSH host key")
        if not 32 <= len(self.entropy) <= 512:
            raise ValueError("entropy is 32 to 512 bytes")


def _check_lease(lease: Lease) -> None:
    if not _MAC.fullmatch(lease.mac):
        raise ValueError(f"{lease.mac!r} is not a MAC address in lower case")
    try:
        ipaddress.IPv4Interface(f"{lease.ip}/{lease.prefix_length}")
        for address in (lease.ip, *([lease.gateway] if lease.gateway else []), *lease.dns):
            ipaddress.IPv4Address(address)
    except ValueError as e:
        raise ValueError(f"this is not a place on a network: {e}") from e


def machine_id(member_id: str) -> str:
    """A member's machine-id: a version 4 UUID as systemd makes them, but always the same for the same member."""
    digits = bytearray(hashlib.sha256(b"fleetbox machine-id " + member_id.encode()).digest()[:16])
    digits[6] = digits[6] & 0x0F | 0x40
    digits[8] = digits[8] & 0x3F | 0x80
    return digits.hex()


def told(identity: NewIdentity, nonce: str, clock_ns: int, *, over_ssh: bool = False, pause_s: int = 5) -> bytes:
    """What the guest's program reads: lines under 4 KiB, every value in hexadecimal.

    `clock_ns` is the time since the epoch. `over_ssh` leaves the network until the session has ended. `pause_s` is how
    long the services that nobody waits for are let alone.
    """
    if not NONCE.fullmatch(nonce):
        raise ValueError("the nonce is 32 hexadecimal digits")
    values: dict[str, str | bytes] = {
        "hostname": identity.hostname,
        "cluster": identity.cluster,
        "old_cluster": identity.old_cluster,
        "machine_id": identity.machine_id,
        "instance_id": identity.instance_id,
        "host_private": identity.host_key.private_text,
        "host_public": identity.host_key.public_text,
        "authorized_key": identity.authorized_key,
        "entropy": identity.entropy,
        "clock_ns": str(clock_ns),
        "pause_s": str(pause_s),
        "ssh": "1" if over_ssh else "",
        "nonce": nonce,
    }
    for age, lease in (("old", identity.old), ("new", identity.new)):
        values |= {
            f"{age}_mac": lease.mac,
            f"{age}_ip": lease.ip,
            f"{age}_prefix": str(lease.prefix_length),
            f"{age}_gateway": lease.gateway,
            f"{age}_dns": " ".join(lease.dns),
        }
    lines = [f"# {name} {_bytes(value).hex()}\n" for name, value in values.items()]
    if max(map(len, lines)) >= _DATA_LINE_BYTES:
        raise ValueError("a value is too long for the control line")
    return "".join([*lines, "# .\n"]).encode()


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value
