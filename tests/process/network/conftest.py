"""A home and a network of one's own for every test of the host network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fleetbox.backends.host.thread import HostThread
from tests.netns import TestNet


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLEETBOX_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def net() -> Iterator[TestNet]:
    with TestNet() as net:
        net.enter()
        yield net


@pytest.fixture
def host(net: TestNet) -> Iterator[HostThread]:
    thread = HostThread()
    yield thread
    thread.close()
