"""Examples in docstrings and documents do what they say, on fake machines; those that need a guest, in `vm`."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fleetbox
from tests.examples import ROOT, examples, run
from tests.home import clean_home


@pytest.fixture(scope="module")
def home() -> Iterator[None]:
    with clean_home(), pytest.MonkeyPatch.context() as environment:
        environment.setenv("FLEETBOX_BACKEND", "fake")
        yield
        for cluster in fleetbox.clusters():
            cluster.destroy()


@pytest.mark.parametrize("test", examples(), ids=lambda test: test.name)
def test_example(home: None, test: doctest.DocTest) -> None:
    assert not run(test, guests=False)


def test_the_tests_of_the_how_to_pass(fleetbox_home: Path, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "how-to" / "pytest.md").read_text()
    files = re.findall(r"^```python\n# (test_\w+\.py)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(files) == 2
    for name, code in files:
        (tmp_path / name).write_text(code)
    (tmp_path / "pytest.ini").touch()
    run = [sys.executable, "-m", "pytest", "--fleetbox-backend", "fake"]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed, 1 skipped" in done.stdout


def test_there_are_examples_of_what_matters() -> None:
    names = {test.name for test in examples()}
    assert {"fleetbox.cluster.up", "fleetbox.member.Member.ssh", "fleetbox.snapshots.save", "fleetbox.wait"} <= names
    assert len(names) > 30
