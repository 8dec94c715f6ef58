"""The orchestrator by itself, without its daemon: moments that a test from outside cannot choose."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from fleetbox import paths
from fleetbox.backends.base import timeout_scale
from fleetbox.backends.host.thread import HostThread
from fleetbox.holder import store as store_module
from fleetbox.holder.orchestrator import Orchestrator
from fleetbox.holder.store import ClusterStore, write_atomically
from fleetbox.identity import is_alive
from fleetbox.records import MemberState


def test_a_member_whose_last_record_is_being_written_is_not_undone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may have read that it runs: the cancellation comes after."""
    writing, go_on = threading.Event(), threading.Event()

    def slow_at_the_end(path: Path, data: bytes) -> None:
        write_atomically(path, data)
        if b'"running"' in data:
            writing.set()
            assert go_on.wait(30 * timeout_scale())

    monkeypatch.setattr(store_module, "write_atomically", slow_at_the_end)

    async def scenario() -> None:
        paths.private_dir(paths.cluster_state_dir("web"))
        store = ClusterStore(paths.cluster_record("web"))
        host = HostThread()
        orchestrator = Orchestrator("web", store, host, lambda: None)
        up = asyncio.ensure_future(orchestrator.work("up", b"{}")(lambda event: None))
        await asyncio.to_thread(writing.wait, 30 * timeout_scale())
        up.cancel()
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await up
        member = store.current.members["node-1"]
        assert member.state is MemberState.RUNNING
        assert member.handle is not None
        assert is_alive(member.handle.process)
        await orchestrator.work("destroy", b"{}")(lambda event: None)
        host.close()

    asyncio.run(scenario())
