"""An inventory of a cluster's machines, as configuration management reads it."""

from __future__ import annotations

import fleetbox


def lines(cluster: fleetbox.Cluster) -> list[str]:
    """A line `name address` for each member that runs, sorted by name."""
    running = [m for m in cluster.members if m.state is fleetbox.MemberState.RUNNING]
    return [f"{member.name} {member.ip}" for member in sorted(running, key=lambda m: m.name)]


def distribute(cluster: fleetbox.Cluster) -> None:
    """Write the inventory to /etc/inventory on every member that runs."""
    text = "\\n".join(lines(cluster))
    for member in cluster.members:
        if member.state is fleetbox.MemberState.RUNNING:
            member.ssh(f"printf '{text}\\n' | sudo tee /etc/inventory", check=True)
