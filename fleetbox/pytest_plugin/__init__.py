"""The pytest plugin: clusters of real machines for tests, gone when the test process is.

Installed with fleetbox (entry point `pytest11`); `-p no:fleetbox` turns it off. It gives the fixtures `fleet`,
`cluster` and `member` and the marker `fleetbox`; docs/how-to/pytest.md tells how to use them. Until one of them is
used, nothing of fleetbox is imported but this module.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from fleetbox.member import Member
    from fleetbox.pytest_plugin.fleets import Fleet, FleetCluster

__all__ = ["Fleet", "FleetCluster"]

MARKER = (
    "fleetbox(members=1, *, names, image, cpus, memory, disk, fixtures, backend, network, cold, timeout_s,"
    ' scope="function", reset=False, real=False): what the fixtures `cluster` and `member` are. memory and disk are'
    ' bytes or text such as "512M". scope "module" or "session" shares one cluster among all tests that ask for the'
    " same; with reset it is put back to its first state before each of them. real: the test talks to its guests, so"
    " it is skipped on the fake backend."
)

SECTION = "fleetbox"


def __getattr__(name: str) -> object:
    if name in __all__:
        from fleetbox.pytest_plugin import fleets as module

        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fleetbox", "clusters of virtual machines")
    group.addoption(
        "--fleetbox-backend",
        metavar="NAME",
        default="",
        help="the backend of all clusters that name none: qemu, fake, ... (fake: no guests, instant)",
    )
    group.addoption(
        "--fleetbox-require",
        action="store_true",
        help="fail where this host cannot run machines, instead of skipping",
    )
    group.addoption(
        "--fleetbox-bundles",
        metavar="DIR",
        default="fleetbox-failures",
        help="where failure bundles go, the last three runs' (default: fleetbox-failures below the root folder)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", MARKER)


@pytest.fixture
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """Makes clusters (`fleet.up(members=3)`) that are destroyed after the test, and with this process."""
    from fleetbox.pytest_plugin.fleets import fleet_of

    found = fleet_of(request.node)
    yield found
    found.close()


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> FleetCluster:
    """The cluster that the marker `fleetbox` describes; without one, a cluster of one member for this test."""
    from fleetbox.pytest_plugin.fleets import cluster_for

    return cluster_for(request)


@pytest.fixture
def member(cluster: FleetCluster) -> Member:
    """The first member of the fixture `cluster`."""
    return cluster.members[0]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep what there is to know about the clusters of a test that failed, while they are still there."""
    report = yield
    if call.excinfo is not None and "fleetbox.pytest_plugin.fleets" in sys.modules:
        from fleetbox.pytest_plugin.failure import after_failure

        after_failure(item, report, call.excinfo)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say once more at the end where the bundles are; reports come from the workers of pytest-xdist, too."""
    kept = [
        text
        for kind in ("failed", "error")
        for report in terminalreporter.stats.get(kind, [])
        for title, text in getattr(report, "sections", [])
        if title == SECTION
    ]
    if kept:
        terminalreporter.section("fleetbox")
        for text in dict.fromkeys(kept):
            terminalreporter.write_line(text)
