"""Sizes as users write and read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetbox.errors import UsageError
from fleetbox.sizes import GIB, KIB, MIB, TIB, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("1", 1),
        ("1073741824", GIB),
        ("512M", 512 * MIB),
        ("512m", 512 * MIB),
        ("512MB", 512 * MIB),
        ("512MiB", 512 * MIB),
        ("1G", GIB),
        (" 1 g ", GIB),
        ("1.5GiB", 3 * GIB // 2),
        ("0.5k", 512),
        ("2T", 2 * TIB),
        ("10b", 10),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_sizes_are_read(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "G",
        "-1G",
        "+1G",
        "1X",
        "1GG",
        "1,5G",
        "1e9",
        "nan",
        "inf",
        "0",
        "0G",
        "0.0001",
        "1 G B",
        "9" * 400 + "T",
        "9" * 18 + "T",
        str(1 << 63),
    ],
)
def test_what_is_no_size_is_refused_by_name(text: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_size(text, "memory size")
    assert "is not a memory size" in error.value.message
    assert error.value.why
    assert error.value.hint


@given(st.integers(1, (1 << 63) - 1))
def test_every_number_of_bytes_is_read_exactly(size_bytes: int) -> None:
    assert parse_size(str(size_bytes)) == size_bytes


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0B"),
        (1, "1B"),
        (1023, "1023B"),
        (KIB, "1K"),
        (1536 * MIB, "1.5G"),
        (512 * MIB, "512M"),
        (GIB, "1G"),
        (10 * GIB + 600 * MIB, "11G"),
        (3 * TIB, "3.0T"),
    ],
)
def test_sizes_are_shown_short(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


@given(st.integers(1, 64 * TIB))
def test_what_is_shown_is_near_and_can_be_typed_in(size_bytes: int) -> None:
    assert parse_size(format_size(size_bytes)) == pytest.approx(size_bytes, rel=0.06)
