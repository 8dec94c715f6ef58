"""The escape character: OpenSSH's rules, at whatever places the keys' bytes are cut into reads."""

from __future__ import annotations

import pytest

from fleetbox.errors import UsageError
from fleetbox_cli.escape import Action, EscapeFilter, help_text, parse, shown


def _feed(*reads: bytes, escape: bytes = b"~") -> list[bytes | Action]:
    keys = EscapeFilter(escape)
    found: list[bytes | Action] = []
    for part in (part for read in reads for part in keys.feed(read)):
        if isinstance(part, bytes) and found and isinstance(found[-1], bytes):
            found[-1] += part
        else:
            found.append(part)
    return found


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        (b"ls\r", [b"ls\r"]),
        (b"~.", [Action.LEAVE]),
        (b"ls\r~.", [b"ls\r", Action.LEAVE]),
        (b"a~.", [b"a~."]),  # not at the beginning of a line
        (b"~~.", [b"~."]),
        (b"~~~.", [b"~~."]),
        (b"\n~?~.", [b"\n", Action.HELP, Action.LEAVE]),  # after one escape another may follow
        (b"~\x1a", [Action.SUSPEND]),
        (b"~x", [b"~x"]),
        (b"~\r~.", [b"~\r", Action.LEAVE]),
    ],
)
def test_escapes_count_at_the_beginning_of_a_line(typed: bytes, found: list[bytes | Action]) -> None:
    assert _feed(typed) == found
    assert _feed(*(bytes([key]) for key in typed)) == found


def test_another_escape_character() -> None:
    assert _feed(b"~.\x1d.", escape=b"\x1d") == [b"~.\x1d."]
    assert _feed(b"\x1d.", escape=b"\x1d") == [Action.LEAVE]


def test_names_of_escape_characters() -> None:
    assert [parse(text) for text in ("~", "^]", "^a", "none", "%")] == [b"~", b"\x1d", b"\x01", b"", b"%"]
    assert [shown(parse(text)) for text in ("~", "^]", "^a")] == ["~", "^]", "^A"]
    assert "^].  " in help_text(b"\x1d")
    for text in ("", "ab", "^^^", "é", "\n"):
        with pytest.raises(UsageError):
            parse(text)
