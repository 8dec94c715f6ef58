"""Sizes in bytes, as users write them and as they read them."""

from __future__ import annotations

import re

from fleetbox.errors import UsageError

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
_LIMIT = 1 << 63  # what a signed 64-bit file offset holds
_UNITS = {"": 1, "k": KIB, "m": MIB, "g": GIB, "t": TIB}
_SIZE = re.compile(r"(\d{1,19}(?:\.\d{1,18})?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)


def parse_size(text: str, what: str = "size") -> int:
    """Bytes of `512M`, `1G`, `1.5GiB` or `1073741824`; units are powers of 1024. Raises UsageError."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise UsageError(
            f"{text!r} is not a {what}", why="a size is a number with K, M, G or T", hint="for example 512M or 1G"
        )
    number = float(match[1]) if "." in match[1] else int(match[1])
    size = int(number * _UNITS[match[2].lower()])
    if not 0 < size < _LIMIT:
        why = "it must be more than zero" if size <= 0 else f"it must be less than {format_size(_LIMIT)}"
        raise UsageError(f"{text!r} is not a {what}", why=why, hint="for example 512M or 1G")
    return size


def format_size(size: float) -> str:
    """`1.5G` for 1610612736: three significant digits at most, powers of 1024."""
    for unit in ("B", "K", "M", "G"):
        if abs(size) < 1024:
            return f"{size:.0f}{unit}" if size >= 10 or size == int(size) else f"{size:.1f}{unit}"
        size /= 1024
    return f"{size:.1f}T"
