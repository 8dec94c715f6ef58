"""Downloads against a server on the loopback that behaves, cuts, lies, or says nothing."""

from __future__ import annotations

import asyncio
import hashlib
import os
import resource
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleetbox import paths
from fleetbox.backends.host.files import download as module
from fleetbox.backends.host.files.download import Unreachable, discard, download, key_of, shown
from fleetbox.errors import ImageError
from fleetbox.wire import Event, Progress
from tests.origin import Origin, serving

BODY = os.urandom(3_000_000)
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Origin]:
    monkeypatch.setenv("FLEETBOX_HOME", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(BODY) as server:
        yield server


def fetch(url: str, sha256: str = "") -> tuple[Path, list[Event]]:
    events: list[Event] = []
    return asyncio.run(download(url, sha256, events.append)), events


def part_of(url: str, sha256: str = "") -> Path:
    return paths.downloads_dir() / f"{key_of(url, sha256)}.part"


def test_a_download_is_whole_and_reports_itself(origin: Origin) -> None:
    file, events = fetch(origin.url, SHA256)
    assert file.read_bytes() == BODY
    steps = [e for e in events if isinstance(e, Progress)]
    assert [steps[0].state, steps[-1].state] == ["begin", "done"]
    assert all(e.unit == "bytes" and e.total == len(BODY) for e in steps if e.state == "update")
    discard(file)
    assert list(paths.downloads_dir().iterdir()) == []


def test_a_whole_pinned_download_is_not_fetched_again(origin: Origin) -> None:
    fetch(origin.url, SHA256)
    assert fetch(origin.url, SHA256)[0].read_bytes() == BODY
    assert origin.requests == [None]


def test_a_cut_download_goes_on_where_it_stopped(origin: Origin) -> None:
    origin.cuts = [1_000_000, 1_000_000]
    file, _ = fetch(origin.url, SHA256)
    assert file.read_bytes() == BODY
    assert origin.requests == [None, "bytes=1000000-", "bytes=2000000-"]


def test_what_an_earlier_call_left_is_continued(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FRUITLESS_ATTEMPTS", 1)
    origin.cuts = [1_000_000, 0]
    with pytest.raises(Unreachable):
        fetch(origin.url, SHA256)
    assert part_of(origin.url, SHA256).stat().st_size == 1_000_000
    origin.requests.clear()
    file, _ = fetch(origin.url, SHA256)
    assert file.read_bytes() == BODY
    assert origin.requests == ["bytes=1000000-"]


def test_a_changed_file_is_taken_from_its_beginning(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FRUITLESS_ATTEMPTS", 1)
    origin.cuts = [1_000_000, 0]
    with pytest.raises(Unreachable):
        fetch(origin.url)
    origin.body, origin.etag = b"changed" * 300_000, '"two"'
    file, _ = fetch(origin.url)
    assert file.read_bytes() == origin.body


def test_a_server_without_ranges_starts_again(origin: Origin) -> None:
    origin.ranges = False
    origin.cuts = [1_000_000]
    file, _ = fetch(origin.url, SHA256)
    assert file.read_bytes() == BODY
    assert origin.requests == [None, "bytes=1000000-"]


def test_a_wrong_digest_is_said_and_discarded(origin: Origin) -> None:
    with pytest.raises(ImageError, match="discarded") as caught:
        fetch(origin.url, "0" * 64)
    assert SHA256 in caught.value.why
    assert not isinstance(caught.value, Unreachable)
    assert not part_of(origin.url, "0" * 64).exists()


def test_a_damaged_part_cannot_pass(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FRUITLESS_ATTEMPTS", 1)
    origin.cuts = [1_000_000, 0]
    with pytest.raises(Unreachable):
        fetch(origin.url, SHA256)
    part_of(origin.url, SHA256).write_bytes(bytes(1_000_000))
    with pytest.raises(ImageError, match="discarded"):
        fetch(origin.url, SHA256)
    assert fetch(origin.url, SHA256)[0].read_bytes() == BODY


def test_a_full_disk_is_said_and_costs_nothing(origin: Origin) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, hard))
    try:
        with pytest.raises(ImageError, match="no space") as caught:
            fetch(origin.url, SHA256)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "kept" in caught.value.hint
    assert part_of(origin.url, SHA256).stat().st_size == 2_000_000
    assert fetch(origin.url, SHA256)[0].read_bytes() == BODY
    assert origin.requests == [None, "bytes=2000000-"]


def test_too_little_space_is_seen_before_anything_comes(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs(paths.downloads_dir().parent.parent)
    small = os.statvfs_result((*real[:4], 1, *real[5:10]))
    monkeypatch.setattr(module.os, "statvfs", lambda _: small)
    with pytest.raises(ImageError, match="are free"):
        fetch(origin.url)


@pytest.mark.parametrize("status", [403, 404, 503])
def test_a_refusal_lets_another_source_serve(origin: Origin, status: int) -> None:
    origin.status = status
    with pytest.raises(Unreachable, match=f"HTTP {status}"):
        fetch(origin.url)


def test_a_closed_port_is_unreachable(origin: Origin) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(Unreachable, match="refused"):
            fetch(f"http://127.0.0.1:{closed.getsockname()[1]}/x.raw")


def test_a_server_that_says_nothing_is_given_up(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETBOX_TIMEOUT_SCALE", "0.02")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(Unreachable, match=r"no answer|in time"):
            fetch(f"http://127.0.0.1:{silent.getsockname()[1]}/x.raw")


def test_a_cancelled_download_leaves_a_part_to_continue(origin: Origin) -> None:
    origin.hold_after = 1_000_000

    async def cancel_once_it_has_begun() -> None:
        task = asyncio.ensure_future(download(origin.url, SHA256, lambda _: None))
        while not (part_of(origin.url, SHA256).exists() and part_of(origin.url, SHA256).stat().st_size > 0):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel_once_it_has_begun())
    for thread in [t for t in threading.enumerate() if t.name == "files"]:
        thread.join(10)
        assert not thread.is_alive()
    origin.hold_after = -1
    origin.requests.clear()
    assert fetch(origin.url, SHA256)[0].read_bytes() == BODY
    assert origin.requests[0] is not None
    assert int(origin.requests[0].removeprefix("bytes=").rstrip("-")) > 0


def test_passwords_in_addresses_are_not_shown() -> None:
    assert shown("https://user:secret@example.org:8443/a.img") == "https://example.org:8443/a.img"


def test_a_whole_download_without_a_pin_is_checked_with_the_server(origin: Origin) -> None:
    fetch(origin.url)
    assert fetch(origin.url)[0].read_bytes() == BODY
    assert origin.requests == [None, f"bytes={len(BODY)}-"]
    origin.body, origin.etag = b"changed" * 300_000, '"two"'
    assert fetch(origin.url)[0].read_bytes() == origin.body
