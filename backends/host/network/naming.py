"""Names of a network's host resources.

Each carries five digits of the installation's digest, so that two installations on one host never meet, and fits into
the 15 characters that Linux gives an interface's name.
"""

from __future__ import annotations

import hashlib

from fleetbox import paths


def _digits(text: str, count: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:count]


def bridge_name(cluster: str) -> str:
    """`fb<5 hex of the installation>b<6 hex of the cluster>`."""
    return f"fb{paths.installation_digest()}b{_digits(cluster, 6)}"


def tap_name(cluster: str, member: str, slot: int = 0) -> str:
    """`fb<5 hex of the installation>t<7 hex of cluster/member>`; in slot 1 `u` stands for `t`."""
    return f"fb{paths.installation_digest()}{'tu'[slot]}{_digits(f'{cluster}/{member}', 7)}"


def table_name(bridge: str) -> str:
    """The nftables table of a bridge: `fleetbox_<installation>_<cluster>`."""
    return f"fleetbox_{bridge[2:7]}_{bridge[8:]}"
