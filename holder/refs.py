"""Acting on stored things by what users call them: one or many, under one lock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from fleetbox.errors import AmbiguousError, FleetboxError, PartialError
from fleetbox.names import matching

T = TypeVar("T")


def the_one(
    ref: str,
    items: Iterable[T],
    kind: str,
    identity: Callable[[T], str],
    named: Callable[[T], Iterable[str]] = lambda _: (),
    digits: int = 4,
) -> T | None:
    """The item of that id, name or beginning of an id; None without one. Raises AmbiguousError, listing them."""
    found = matching(ref, items, identity, named, digits)
    if len(found) > 1:
        raise AmbiguousError(
            f"several {kind}s begin with {ref}",
            why=", ".join(identity(item)[:16] for item in found),
            hint="give more digits, or a name",
        )
    return found[0] if found else None


def each_of(refs: Sequence[str], act: Callable[[str], T], kind: str, done: str) -> list[T]:
    """Do `act` for every ref, once each, and return the results.

    Raises the error of a single ref, or PartialError after the others of several are done.
    """
    results: list[T] = []
    failures: dict[str, FleetboxError] = {}
    for ref in dict.fromkeys(refs):
        try:
            results.append(act(ref))
        except FleetboxError as e:
            failures[ref] = e
    if failures and len(refs) == 1:
        raise failures[refs[0]]
    if failures:
        raise PartialError(f"{len(failures)} of {len(refs)} {kind}s were not {done}", failures)
    return results
