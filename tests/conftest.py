"""What all tests share: the order of the tiers, their time limits, a home and a network of one's own."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from fleetbox.backends.base import timeout_scale as _timeout_scale
from tests.home import clean_home

collect_ignore = ["consumer"]  # a project of its own

TESTS = Path(__file__).parent
TIERS = ("unit", "contract", "cli", "repo", "process", "vm")  # fast to slow
LIMIT_S = {"vm": 900.0}
DEFAULT_LIMIT_S = 120.0

os.environ.setdefault("FLEETBOX_TEST_PYTHON", sys.executable)  # what the simulators run by

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell's background jobs have it, and would hand it on
    signal.signal(signal.SIGINT, signal.default_int_handler)

_durations: dict[str, float] = defaultdict(float)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tiers first; a time limit for every test that names none; tests that need root are skipped without it."""
    tiers = {item: item.path.relative_to(TESTS).parts[0] for item in items}
    items.sort(key=lambda item: TIERS.index(tiers[item]))
    for item in items:
        if item.get_closest_marker("timeout") is None:
            limit_s = LIMIT_S.get(tiers[item], DEFAULT_LIMIT_S)
            item.add_marker(pytest.mark.timeout(limit_s * _timeout_scale()))
        if os.geteuid() != 0 and (item.get_closest_marker("netns") or item.get_closest_marker("vm")):
            item.add_marker(pytest.mark.skip(reason="needs root to make a network namespace"))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add up how long each tier takes."""
    _durations[Path(report.nodeid.partition("::")[0]).parts[1]] += report.duration


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how long each tier took, when there are several."""
    if len(_durations) > 1:
        terminalreporter.section("time per tier")
        for tier in sorted(_durations, key=TIERS.index):
            terminalreporter.write_line(f"{tier:10} {_durations[tier]:7.1f} s")


@pytest.fixture(scope="session")
def timeout_scale() -> float:
    """What a test multiplies its own time limits by."""
    return _timeout_scale()


@pytest.fixture
def fleetbox_home() -> Iterator[Path]:
    """An empty FLEETBOX_HOME; a test that leaves anything of it behind fails."""
    with clean_home() as home:
        yield home


_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def own_network() -> Iterator[None]:
    """The test, and every process and thread that it starts, in an empty network namespace with `lo` up.

    It has no name: when the last process in it has ended, the kernel removes it with all that is in it. Ask for it
    before `fleetbox_home`, so that what is left behind is looked for inside. `tests.netns` makes one with an internet.
    """
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.unshare(_CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        try:
            with IPRoute() as route:
                route.link("set", index=1, state="up")
            yield
        finally:
            if _libc.setns(before, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(before)
