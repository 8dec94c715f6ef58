"""Where a cluster's network is made: in the host's own network, or in a private one that only its holder is in.

What the user said (`--network`, then `FLEETBOX_NETWORK`) decides for a new cluster; else it is the host's where this
process may change that (CAP_NET_ADMIN, capabilities(7)), and private where not. A cluster keeps what it was made with.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, get_args

from fleetbox.errors import ConflictError, NotFoundError, UsageError
from fleetbox.records import read_cluster
from fleetbox.specs import NetworkMode

Network = Literal["host", "private"]

OVERRIDE = "FLEETBOX_NETWORK"
_CAP_NET_ADMIN = 12  # linux/capability.h


def effective_capabilities() -> int:
    """The calling thread's effective set, a bit for each."""
    for line in Path("/proc/thread-self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def choose_network(cluster: str, asked: NetworkMode = "auto") -> Network:
    """What the cluster has, or gets when there is none.

    Raises ConflictError when an existing cluster was made with another, UsageError for a wrong `FLEETBOX_NETWORK`,
    RecordError.
    """
    try:
        recorded = read_cluster(cluster).network
    except NotFoundError:
        recorded = ""
    if recorded:
        if asked not in ("auto", recorded):
            raise conflict(recorded, asked)
        return "private" if recorded == "private" else "host"
    wanted = asked if asked != "auto" else os.environ.get(OVERRIDE) or "auto"
    match wanted:
        case "auto":
            return "host" if effective_capabilities() >> _CAP_NET_ADMIN & 1 else "private"
        case "host" | "private":
            return wanted
    raise UsageError(
        f"there is no network {wanted!r}", why=OVERRIDE, hint=f"choose one of {', '.join(get_args(NetworkMode))}"
    )


def conflict(has: str, asked: str) -> ConflictError:
    """The error for a cluster that has another network than the one asked for."""
    return ConflictError(
        f"the cluster's network is {has}, not {asked}",
        hint="leave --network out, or give the new cluster another name",
    )
