"""What happens when a test that has clusters fails: a bundle is kept, and the run stops when Ctrl-C was the reason."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from pathlib import Path

import pytest

from fleetbox.errors import FleetboxError, OperationInterrupted
from fleetbox.pytest_plugin import SECTION
from fleetbox.pytest_plugin.bundle import write_bundle
from fleetbox.pytest_plugin.fleets import FLEET, SHARED, FleetCluster, told

RUNS_KEPT = 3

BUNDLE = pytest.StashKey[Path]()
_RUN = pytest.StashKey[Path]()


def after_failure(item: pytest.Item, report: pytest.TestReport, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
    """Called for every phase of a test that raised something, while its clusters are still there."""
    if isinstance(excinfo.value, OperationInterrupted):  # of an operation that the test itself called
        item.session.shouldstop = "fleetbox was interrupted"
    if not report.failed:
        return
    clusters = clusters_of(item)
    if BUNDLE not in item.stash and clusters:
        folder = _folder(item)
        what = [f"{item.nodeid}: {report.when} failed", ""]
        what += [told(excinfo.value), ""] if isinstance(excinfo.value, FleetboxError) else []
        write_bundle(folder, clusters, "\n".join([*what, report.longreprtext]))
        item.stash[BUNDLE] = folder
    if BUNDLE in item.stash:
        report.sections.append((SECTION, f"failure bundle: {item.stash[BUNDLE]}"))


def clusters_of(item: pytest.Item) -> list[FleetCluster]:
    """The clusters that a test has made or shares."""
    fleets = [item.stash.get(key, None) for key in (FLEET, SHARED)]
    return [cluster for fleet in fleets if fleet is not None for cluster in fleet.clusters]


def _folder(item: pytest.Item) -> Path:
    """A new folder for the test's bundle."""
    words = re.sub(r"[^A-Za-z0-9_.-]+", "-", item.nodeid.rpartition("/")[2]).strip("-.")[:120]
    folder = _run_folder(item.config) / words
    number = 1
    while True:
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1
            folder = folder.with_name(f"{words}-{number}")


def _run_folder(config: pytest.Config) -> Path:
    """The folder of this run, which all workers of pytest-xdist share. Folders of earlier runs go, but for some."""
    run = config.stash.get(_RUN, None)
    if run is None:
        top = config.rootpath / str(config.getoption("--fleetbox-bundles"))
        top.mkdir(parents=True, exist_ok=True)
        (top / ".gitignore").write_text("*\n")
        run = top / f"run-{os.environ.get('PYTEST_XDIST_TESTRUNUID', secrets.token_hex(4))[:8]}"
        run.mkdir(exist_ok=True)
        config.stash[_RUN] = run
        runs = sorted(top.glob("run-*"), key=_age, reverse=True)
        for old in [r for r in runs if r != run][RUNS_KEPT - 1 :]:
            shutil.rmtree(old, ignore_errors=True)
    return run


def _age(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:  # another worker was faster
        return 0.0
