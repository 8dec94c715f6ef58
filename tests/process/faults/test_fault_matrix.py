"""Every operation struck at every point, in every way; then nothing is lost, nothing is left, and it works again.

`holder` kills the process that does the work with SIGKILL, `cli` the command line; `interrupt` is Ctrl-C; the others
are an error that is raised at the point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from fleetbox.faultpoint import POINTS
from tests.process.faults.bench import Bench
from tests.process.faults.table import NETWORK_ONLY, REACHED, STRUCK

At = Callable[[str], AbstractContextManager[Bench]]

WAYS = ("holder", "cli", "interrupt", "error")
# Where something is written or opened, the error is one of the system's.
WRITES = {
    "holder.bound": "ENOSPC",
    "record.write": "ENOSPC",
    "record.written": "EROFS",
    "machine.spawned": "EMFILE",
    "member.seed": "ENOSPC",
    "save.publish": "ENOSPC",
    "save.land": "EROFS",
    "snapshot.remove": "EROFS",
    "image.publish": "ENOSPC",
}


def cases() -> Iterator[tuple[str, str, str, bool]]:
    """Operation, point, way, and whether prune comes before the next command or after it."""
    for operation, points in STRUCK.items():
        for number, point in enumerate(points.split()):
            for way in WAYS:
                if way == "holder" and point in NO_HOLDER.get(operation, NO_HOLDER[""]):
                    continue
                if way == "error" and point in NO_ERROR:
                    continue
                how = WRITES.get(point, way) if way == "error" else way
                yield operation, point, how, bool(number % 2)


# Past the point of no return nothing is done that could fail: only death can strike.
NO_ERROR = {"restore.committed", "restore.resumed", "restore.replaced"}
# The client is at the point, and there is no holder that could be killed.
_CLIENT = {point for point in POINTS if point.startswith("client.")}
NO_HOLDER = {
    "": {"client.start"},
    "import": _CLIENT,
    "pull": _CLIENT,
    "prune": _CLIENT,
    "snapshot-rm": _CLIENT,
    "takeover": {"client.start"},
}


@pytest.mark.parametrize(("operation", "point", "how", "prune_first"), list(cases()))
def test_nothing_is_lost_and_nothing_is_left(
    benches: At, operation: str, point: str, how: str, prune_first: bool
) -> None:
    with benches(operation) as bench:
        bench.strike(point, 1, how, prune_first=prune_first)


@pytest.mark.parametrize("how", ["holder", "interrupt", "ENOSPC"])
@pytest.mark.parametrize("number", [2, 3])
def test_every_write_of_a_record(benches: At, number: int, how: str) -> None:
    """The first is in the matrix: the placeholder; the second has the machine, the third says that it runs."""
    with benches("add") as bench:
        bench.strike("record.write", number, how, prune_first=False)


@pytest.mark.parametrize("operation", REACHED)
def test_the_table_is_what_operations_do(benches: At, operation: str) -> None:
    with benches(operation) as bench:
        assert set(bench.trace) - {"operation.cancel"} == set(REACHED[operation].split())
        assert set(STRUCK[operation].split()) <= set(bench.trace)


def test_every_point_is_struck_somewhere() -> None:
    struck = {point for points in STRUCK.values() for point in points.split()}
    assert struck | NETWORK_ONLY == set(POINTS) - {"operation.cancel"}
    assert len(struck) >= 40
