"""The escape character of `fleetbox console`, as OpenSSH has it (ssh(1), ESCAPE CHARACTERS)."""

from __future__ import annotations

import enum
from collections.abc import Iterator

from fleetbox.errors import UsageError


class Action(enum.Enum):
    """What an escape asks for."""

    LEAVE = b"."
    SUSPEND = b"\x1a"
    HELP = b"?"


_ACTIONS = {action.value: action for action in Action}


def parse(text: str) -> bytes:
    """The escape character that `-e` names: a character, `^` and a letter, or `none` (empty). Raises UsageError."""
    if text == "none":
        return b""
    if len(text) == 2 and text[0] == "^" and "@" <= text[1].upper() <= "_":
        return bytes([ord(text[1].upper()) & 0x1F])
    if len(text) == 1 and text.isascii() and text not in "\r\n":
        return text.encode()
    raise UsageError(f"{text!r} is no escape character", why="it is one character, ^ and a letter, or none")


def shown(escape: bytes) -> str:
    """The escape character as a user reads it."""
    return f"^{chr(escape[0] | 0x40)}" if escape < b" " else escape.decode()


def help_text(escape: bytes) -> str:
    """What `~?` shows."""
    e = shown(escape)
    return (
        "Escapes, at the beginning of a line:\n"
        f" {e}.   - leave the console; the machine runs on\n"
        f" {e}^Z  - suspend fleetbox\n"
        f" {e}?   - this message\n"
        f" {e}{e}   - type the escape character itself\n"
    )


class EscapeFilter:
    """Takes the escapes out of what is typed. They count only as the first of a line."""

    def __init__(self, escape: bytes) -> None:
        self._escape = escape
        self._at_start = True
        self._pending = False

    def feed(self, typed: bytes) -> Iterator[bytes | Action]:
        """What to type to the guest, and what to do, in order."""
        text = bytearray()
        for number in typed:
            char = bytes([number])
            if self._pending:
                self._pending = False
                if action := _ACTIONS.get(char):
                    if text:
                        yield bytes(text)
                        text.clear()
                    yield action
                    self._at_start = True
                    continue
                if char != self._escape:
                    text += self._escape  # it was no escape after all
            elif self._at_start and char == self._escape:
                self._pending = True
                continue
            text += char
            self._at_start = char in b"\r\n"
        if text:
            yield bytes(text)
