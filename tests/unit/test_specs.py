"""What a user may ask for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetbox.errors import UsageError
from fleetbox.sizes import MIB
from fleetbox.specs import (
    MAX_MEMBERS,
    MAX_MEMORY_BYTES,
    MIN_DISK_BYTES,
    MIN_MEMORY_BYTES,
    Fixture,
    MemberSpec,
    check_fixture,
    check_member_spec,
    member_names,
    parse_fixture,
)


@dataclass(frozen=True)
class Bad:
    changes: dict[str, Any]
    said: str


@pytest.mark.parametrize(
    "bad",
    [
        Bad({"cpus": 0}, "0 cpus"),
        Bad({"cpus": -1}, "-1 cpus"),
        Bad({"cpus": 5}, "this host has 4"),
        Bad({"memory_bytes": 0}, "0B of memory"),
        Bad({"memory_bytes": -MIB}, "of memory"),
        Bad({"memory_bytes": MIN_MEMORY_BYTES - 1}, "memory must be 128M"),
        Bad({"memory_bytes": MAX_MEMORY_BYTES + 1}, "of memory"),
        Bad({"memory_bytes": 10**300}, "of memory"),
        Bad({"disk_bytes": -1}, "of disk"),
        Bad({"disk_bytes": MIN_DISK_BYTES - 1}, "of disk"),
        Bad({"disk_bytes": 1 << 60}, "of disk"),
        Bad({"image": ""}, "no image"),
        Bad({"kernel": "/no/such/kernel"}, "/no/such/kernel"),
        Bad({"fixtures": (Fixture("/no/such/folder", "/srv"),)}, "/no/such/folder"),
        Bad({"fixtures": (Fixture("/", "/srv"), Fixture("/usr", "/srv"))}, "share one guest path"),
    ],
    ids=str,
)
def test_absurd_resources_are_refused(bad: Bad) -> None:
    with pytest.raises(UsageError) as error:
        check_member_spec(msgspec.structs.replace(MemberSpec(), **bad.changes), host_cpus=4)
    assert bad.said in str(error.value)
    assert error.value.hint


def test_sensible_resources_pass_unchanged(tmp_path: Path) -> None:
    (tmp_path / "vmlinuz").touch()
    spec = MemberSpec(
        cpus=4,
        memory_bytes=MIN_MEMORY_BYTES,
        disk_bytes=MIN_DISK_BYTES,
        kernel=str(tmp_path / "vmlinuz"),
        fixtures=(Fixture(str(tmp_path), "/srv/a"), Fixture(str(tmp_path), "/srv/b")),
    )
    assert check_member_spec(spec, host_cpus=4) is spec
    assert check_member_spec(MemberSpec()) == MemberSpec()


def test_fixture_is_parsed_with_an_absolute_host_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a:b").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_fixture("a:b:/srv/data") == Fixture(str(tmp_path / "a:b"), "/srv/data")
    assert parse_fixture("~/a:b:/srv/data") == Fixture(str(tmp_path / "a:b"), "/srv/data")
    assert parse_fixture(f"{tmp_path}:/srv/data/") == Fixture(str(tmp_path), "/srv/data")


@pytest.mark.parametrize(
    "text", ["", "/tmp", ":/srv", "/tmp:", "/no/such/folder:/srv", "~nobody-of-that-name/x:/srv", "/etc/passwd:/srv"]
)
def test_what_is_no_fixture_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_fixture(text)
    assert error.value.hint


@pytest.mark.parametrize(
    "guest",
    [
        "",
        "srv",
        "/",
        "//",
        "/srv/..",
        "/../srv",
        "/srv/./a",
        "/srv//a",
        "/srv/a/",
        "/a b",
        "/a,b",
        "/a\\b",
        "/a\nb",
        "/a\0b",
        "/a\x1bb",
    ],
)
def test_guest_path_of_a_fixture_is_plain_and_absolute(guest: str) -> None:
    with pytest.raises(UsageError) as error:
        check_fixture(Fixture("/tmp", guest))
    assert "guest path" in error.value.message


def test_member_names_are_numbered_beside_the_given_ones() -> None:
    assert member_names(3, []) == ["node-1", "node-2", "node-3"]
    assert member_names(3, ["node-2", "db"]) == ["node-2", "db", "node-1"]
    assert member_names(None, ["db"]) == ["db"]
    assert member_names(2, [], taken=["node-1", "node-3"]) == ["node-2", "node-4"]


@pytest.mark.parametrize(
    ("count", "names"),
    [(0, []), (-1, []), (None, []), (MAX_MEMBERS + 1, []), (1, ["a", "b"]), (None, ["a", "a"]), (2, ["A"])],
)
def test_absurd_member_counts_and_names_are_refused(count: int | None, names: list[str]) -> None:
    with pytest.raises(UsageError):
        member_names(count, names)


@given(st.integers(1, MAX_MEMBERS), st.lists(st.sampled_from([f"node-{n}" for n in range(1, 30)]), unique=True))
def test_member_names_are_distinct_and_not_taken(count: int, taken: list[str]) -> None:
    names = member_names(count, [], taken)
    assert len(set(names)) == count
    assert not set(names) & set(taken)
