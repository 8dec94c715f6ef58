"""Points where tests strike: inert without their variable, and exact with it."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fleetbox import faultpoint
from fleetbox.errors import FleetboxError

Plan = Callable[[str], None]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(faultpoint, "_folder", tmp_path)
    return tmp_path


@pytest.fixture
def plan(folder: Path) -> Plan:
    def write(text: str) -> None:
        (folder / "plan").write_text(text)

    return write


def test_without_the_variable_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faultpoint, "_folder", None)
    monkeypatch.setattr(faultpoint, "_strikes", None)  # would fail if it were called
    faultpoint.reach("record.write")
    with pytest.raises(StopIteration):  # the loop is not even let go of
        faultpoint.arrive("record.write").send(None)


def test_every_point_is_traced_and_only_the_planned_one_strikes(folder: Path, plan: Plan) -> None:
    plan("record.written error 1 a")
    faultpoint.reach("record.write")
    with pytest.raises(FleetboxError, match=r"struck at record\.written"):
        faultpoint.reach("record.written")
    faultpoint.reach("record.written")  # only once
    assert (folder / "trace").read_text().split()[1::2] == ["record.write", "record.written", "record.written"]
    assert (folder / "fired").read_text() == f"{os.getpid()} thread\n"


def test_a_later_time_can_be_planned(plan: Plan) -> None:
    plan("record.write error 3 a")
    faultpoint.reach("record.write")
    faultpoint.reach("record.written")
    faultpoint.reach("record.write")
    with pytest.raises(FleetboxError):
        faultpoint.reach("record.write")


def test_errors_of_the_system(plan: Plan) -> None:
    plan("record.write ENOSPC 1 a")
    with pytest.raises(OSError, match="No space left") as raised:
        faultpoint.reach("record.write")
    assert raised.value.errno == errno.ENOSPC


def test_a_thread_waits_until_it_may_go(folder: Path, plan: Plan) -> None:
    plan("record.write wait 1 a")
    thread = threading.Thread(target=faultpoint.reach, args=("record.write",))
    thread.start()
    while not (folder / "fired").exists():
        pass
    assert thread.is_alive()
    (folder / "go.a").touch()
    thread.join(60)
    assert not thread.is_alive()


def test_a_task_waits_and_is_cancelled_at_the_point(folder: Path, plan: Plan) -> None:
    plan("record.write wait 1 a")

    async def main() -> None:
        task = asyncio.create_task(faultpoint.arrive("record.write"))
        while not (folder / "fired").exists():
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert (folder / "fired").read_text() == f"{os.getpid()} task\n"


def test_code_on_the_loop_says_that_it_blocks_it(folder: Path, plan: Plan) -> None:
    plan("record.write error 1 a")

    async def main() -> None:
        faultpoint.reach("record.write")

    with pytest.raises(FleetboxError):
        asyncio.run(main())
    assert (folder / "fired").read_text() == f"{os.getpid()} loop\n"
