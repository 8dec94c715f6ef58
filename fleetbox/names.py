"""Names: what a cluster or member may be called, and how a user refers to one.

A name is an RFC 1123 label: 1 to 63 of `a-z`, `0-9` and `-`, beginning and ending with a letter or digit. Such a name
is safe as a host name, a folder name and an argument, and can never look like an option.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

from fleetbox.errors import UsageError

T = TypeVar("T")

_HEX = re.compile(r"[0-9a-f]+")
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


def check_label(name: str, what: str) -> str:
    """Return `name` when it is an RFC 1123 label; raise UsageError naming `what` it should have been ("cluster
    name").
    """
    if _LABEL.fullmatch(name):
        return name
    raise UsageError(
        f"{name!r} is not a valid {what}",
        why="a name has 1 to 63 of a-z, 0-9 and -, and begins and ends with a letter or digit",
        hint=f"try {_suggest(name)!r}" if _suggest(name) else "choose a name such as 'mycluster'",
    )


def _suggest(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower())[:63].strip("-")


def new_id() -> str:
    """A fresh member, cluster or operation id: 16 hexadecimal digits."""
    return secrets.token_hex(8)


def matching(
    text: str, items: Iterable[T], identity: Callable[[T], str], named: Callable[[T], Iterable[str]], digits: int = 4
) -> list[T]:
    """The items that a user may mean by `text`: those of exactly that id or name, else those whose id begins so.

    Such a beginning has at least so many hexadecimal `digits`.
    """
    items = list(items)
    exact = [item for item in items if text and (text == identity(item) or text in named(item))]
    if exact or len(text) < digits or not _HEX.fullmatch(text):
        return exact
    return [item for item in items if identity(item).startswith(text)]


class Ref(NamedTuple):
    """A parsed ref: `node-1` has no cluster, `mycluster/node-1` has both."""

    cluster: str | None
    name: str

    def __str__(self) -> str:
        return f"{self.cluster}/{self.name}" if self.cluster else self.name


def parse_ref(text: str) -> Ref:
    """Parse `node-1`, `mycluster/node-1` or an id (prefix); raise UsageError on anything else."""
    cluster, slash, name = text.rpartition("/")
    if slash:
        return Ref(check_label(cluster, "cluster name"), check_label(name, "member name"))
    return Ref(None, check_label(name, "name of a member or cluster"))
