"""Placeholders: finalised, rolled back, or collected once their maker is provably dead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from fleetbox.errors import AmbiguousError, NotFoundError, PartialError
from fleetbox.holder.landing import Landing
from fleetbox.holder.refs import each_of, the_one
from fleetbox.identity import UNKNOWN_MAKER_S, Maker, ProcessIdentity, this_maker

DEAD = msgspec.structs.replace(this_maker(), process=ProcessIdentity(1, 1, "another-boot", "python"))


@pytest.fixture
def landing(tmp_path: Path) -> Landing:
    return Landing(tmp_path / "things", "thing")


def left(landing: Landing) -> list[str]:
    return sorted(p.name for p in landing.root.iterdir() if p.name != ".lock")


def put_placeholder(landing: Landing, maker: Maker | None, age_s: float = 0.0) -> Path:
    folder = landing.root / ".new-x"
    folder.mkdir(parents=True)
    (folder / "disk").write_bytes(b"x")
    if maker is not None:
        (folder / ".maker").write_bytes(msgspec.json.encode(maker))
    then = folder.stat().st_mtime - age_s
    os.utime(folder, (then, then))
    return folder


def test_what_lands_is_whole_and_what_does_not_is_rolled_back(landing: Landing) -> None:
    with landing.placeholder() as folder:
        (folder / "disk").write_bytes(b"x")
        with landing.locked():
            landing.land(folder, "one")
    assert [p.name for p in (landing.root / "one").iterdir()] == ["disk"]

    def fail() -> None:
        with landing.placeholder() as folder:
            (folder / "disk").write_bytes(b"x")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert left(landing) == ["one"]
    with landing.locked():
        gone = landing.take_out("one")
        assert gone is not None
        assert not (landing.root / "one").exists()
        assert landing.take_out("one") is None
        assert landing.collect(dry_run=False) == [gone.name]
    assert left(landing) == []


@pytest.mark.parametrize(
    ("maker", "age_s", "collected"),
    [
        (DEAD, 0.0, True),
        (this_maker(), 10 * UNKNOWN_MAKER_S, False),
        (msgspec.structs.replace(DEAD, host="another host"), 0.0, False),
        (msgspec.structs.replace(DEAD, host="another host"), 2 * UNKNOWN_MAKER_S, True),
        (None, 0.0, False),
        (None, 2 * UNKNOWN_MAKER_S, True),
    ],
    ids=["dead", "alive", "elsewhere", "elsewhere and old", "unknown", "unknown and old"],
)
def test_a_placeholder_goes_when_its_maker_is_dead_or_after_a_day(
    landing: Landing, maker: Maker | None, age_s: float, collected: bool
) -> None:
    folder = put_placeholder(landing, maker, age_s)
    with landing.locked():
        assert landing.collect(dry_run=True) == ([".new-x"] if collected else [])
        assert folder.exists()
        landing.collect(dry_run=False)
    assert folder.exists() != collected


MAKE = """
import sys, time
from pathlib import Path
from fleetbox.holder.landing import Landing
folder = Landing(Path(sys.argv[1]), "thing").reserve().folder
(folder / "disk").write_bytes(b"x")
print(folder, flush=True)
time.sleep(600)
"""


def test_the_placeholder_of_a_killed_maker_is_collected_by_the_next(landing: Landing) -> None:
    maker = subprocess.Popen([sys.executable, "-c", MAKE, str(landing.root)], stdout=subprocess.PIPE, text=True)
    try:
        assert maker.stdout is not None
        made = Path(maker.stdout.readline().strip())
        with landing.placeholder():
            assert made.exists(), "its maker lives"
        maker.send_signal(signal.SIGKILL)
        maker.wait()
        with landing.placeholder() as mine:
            assert left(landing) == [mine.name]
    finally:
        maker.kill()
        maker.communicate()


def test_one_or_many_under_one_lock() -> None:
    things = {"abcd1": 1, "abcd2": 2, "ffff0": 3}

    def act(ref: str) -> int:
        found = the_one(ref, things, "thing", lambda t: t)
        if found is None:
            raise NotFoundError(f"there is no thing {ref!r}")
        return things[found]

    assert each_of(["ffff0", "abcd2", "ffff0"], act, "thing", "counted") == [3, 2]
    with pytest.raises(AmbiguousError, match="abcd"):
        each_of(["abcd"], act, "thing", "counted")
    with pytest.raises(PartialError) as failed:
        each_of(["abcd1", "nothing"], act, "thing", "counted")
    assert list(failed.value.failures) == ["nothing"]
