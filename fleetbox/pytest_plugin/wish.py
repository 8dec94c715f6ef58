"""What a test says about its cluster by the marker `fleetbox`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict, cast, get_args

import pytest

from fleetbox.errors import UsageError
from fleetbox.sizes import parse_size
from fleetbox.specs import Fixture, NetworkMode, parse_fixture

Scope = Literal["function", "module", "session"]


class UpWords(TypedDict, total=False):
    """What `fleetbox.up` takes and a fleet passes on; the name and to whom the cluster is bound are the fleet's."""

    members: int | None
    names: Sequence[str]
    image: str | None
    cpus: int | None
    memory_bytes: int | None
    disk_bytes: int | None
    fixtures: Sequence[Fixture] | None
    boot: str | None
    kernel: str | None
    backend: str
    network: NetworkMode
    cold: bool
    control_line: bool
    timeout_s: float


@dataclass(frozen=True)
class Wish:
    """The marker's words. Equal wishes of one scope share a cluster. `timeout_s` as for `fleetbox.up`."""

    members: int | None = None
    names: tuple[str, ...] = ()
    image: str | None = None
    cpus: int | None = None
    memory_bytes: int | None = None
    disk_bytes: int | None = None
    fixtures: tuple[Fixture, ...] = ()
    backend: str = ""
    network: NetworkMode = "auto"
    cold: bool = False
    timeout_s: float = 0.0
    scope: Scope = "function"
    reset: bool = False
    real: bool = False

    def up_words(self) -> UpWords:
        """The wish as `fleetbox.up` takes it."""
        words = {f.name: getattr(self, f.name) for f in fields(self) if f.name in UpWords.__annotations__}
        return cast("UpWords", words)


def wish_of(item: pytest.Item) -> Wish:
    """The wish of a test: what stands nearer to it (function, class, module) wins, word by word.

    Raises UsageError for words that the marker does not have.
    """
    said: dict[str, Any] = {}
    for marker in reversed(list(item.iter_markers("fleetbox"))):
        if len(marker.args) > 1:
            raise UsageError("the marker fleetbox takes one plain argument", hint="@pytest.mark.fleetbox(members=3)")
        said |= {"members": marker.args[0]} if marker.args else {}
        said |= marker.kwargs
    return _wish(said)


def _wish(said: Mapping[str, Any]) -> Wish:
    words = dict(said)
    for word in ("memory", "disk"):
        if (value := words.pop(word, None)) is not None:
            words[f"{word}_bytes"] = value if isinstance(value, int) else parse_size(value, f"{word} size")
    words["names"] = tuple(words.get("names", ()))
    words["fixtures"] = tuple(f if isinstance(f, Fixture) else parse_fixture(f) for f in words.get("fixtures", ()))
    unknown = sorted(words.keys() - {f.name for f in fields(Wish)})
    if unknown:
        raise UsageError(
            f"the marker fleetbox does not know {', '.join(unknown)}", hint="`pytest --markers` lists what it takes"
        )
    wish = Wish(**words)
    if wish.scope not in get_args(Scope):
        raise UsageError(f"{wish.scope!r} is no scope of a cluster", why="it is function, module or session")
    if wish.reset and wish.scope == "function":
        raise UsageError("a cluster of one test is never reset", hint='say scope="module" or "session" as well')
    return wish
