"""What fleetbox itself costs, without a hypervisor: many fake members, the status request, growth with their number."""

from __future__ import annotations

import psutil
from _measure import best_of, home, seconds, table, verdict

import fleetbox
from fleetbox.launch import find_holder
from fleetbox.records import live_holder
from fleetbox.wire import ClusterStatus

SIZES = (25, 50, 100)


def main() -> None:
    """Print the table."""
    table(
        "Fake members",
        ("members", "up", "up per member", "status request", "destroy", "holder's memory", "promise"),
        [measure(size) for size in SIZES],
    )


def measure(size: int) -> tuple[str, ...]:
    """One row of the table."""
    with home():
        up = seconds(lambda: fleetbox.up("many", members=size, backend="fake"))
        control, holder = find_holder("many"), live_holder("many")
        assert control is not None
        assert holder is not None
        status = best_of(10, lambda: control.get("/v1/status", ClusterStatus))[0]
        resident = psutil.Process(holder.process.pid).memory_info().rss / 1e6
        destroy = seconds(fleetbox.Cluster("many").destroy)
    promise = f"up 10 s {verdict(up, 10)}, status 50 ms {verdict(status, 0.05)}" if size == 100 else ""
    return (
        str(size),
        f"{up:.2f} s",
        f"{up / size * 1000:.1f} ms",
        f"{status * 1000:.1f} ms",
        f"{destroy:.2f} s",
        f"{resident:.0f} MB",
        promise,
    )


if __name__ == "__main__":
    main()
