"""Reading a serial log line by line."""

from __future__ import annotations

from pathlib import Path

from fleetbox import seriallog


def test_lines_are_put_together_across_blocks() -> None:
    blocks = iter([b"one\r\ntw", b"o\n\nlo", b"gin: "])
    assert list(seriallog.lines(blocks)) == ["one", "two", "", "login: "]
    assert list(seriallog.lines(iter([]))) == []
    assert list(seriallog.lines(iter([b"caf\xc3", b"\xa9 \xff\n"]))) == ["caf\u00e9 \ufffd"]


def test_a_line_without_an_end_is_cut() -> None:
    endless = (b"x" * 1000 for _ in range(200))
    lengths = [len(line) for line in seriallog.lines(endless)]
    assert sum(lengths) == 200_000
    assert max(lengths) <= seriallog.LINE_BYTES_MAX + 1000


def test_reading_from_an_offset(tmp_path: Path) -> None:
    path = tmp_path / "serial.log"
    path.write_bytes(b"x" * seriallog.BLOCK_BYTES + b"tail")
    assert [len(block) for block in seriallog.read(path)] == [seriallog.BLOCK_BYTES, 4]
    assert b"".join(seriallog.read(path, seriallog.BLOCK_BYTES)) == b"tail"
