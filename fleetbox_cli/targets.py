"""Acting on several refs: what fails is named, the rest is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fleetbox.cluster import Cluster
from fleetbox.errors import FleetboxError, OperationInterrupted, PartialError
from fleetbox.refs import resolve, resolve_many
from fleetbox_cli.settings import Settings

Target = tuple[Cluster, tuple[str, ...]]


def find(refs: Sequence[str], settings: Settings) -> tuple[list[Target], dict[str, FleetboxError]]:
    """The targets that the refs name, grouped by cluster, and the error of each ref that names none."""
    good: list[str] = []
    failures: dict[str, FleetboxError] = {}
    for ref in refs:
        try:
            resolve(ref, cluster=settings.scope)
            good.append(ref)
        except FleetboxError as e:
            failures[ref] = e
    return (resolve_many(good, cluster=settings.scope) if good else []), failures


def describe(target: Target) -> str:
    """`demo` for a whole cluster, `demo/node-1, demo/node-2` for members."""
    cluster, members = target
    return ", ".join(f"{cluster.name}/{m}" for m in members) or cluster.name


def act(
    targets: Sequence[Target],
    failures: dict[str, FleetboxError],
    action: Callable[[Cluster, tuple[str, ...]], object],
    what: str,
) -> list[str]:
    """Call `action` for every target and return the names of those done; `failures` are those that were not found.

    A single failing target raises its own error, several raise PartialError; an interrupt ends it all.
    """
    failures = dict(failures)
    wanted = len(failures) + len(targets)
    done: list[str] = []
    for target in targets:
        cluster, members = target
        try:
            action(cluster, members)
            done.append(describe(target))
        except OperationInterrupted:
            raise
        except PartialError as e:
            failures |= {name if "/" in name else f"{cluster.name}/{name}": error for name, error in e.failures.items()}
        except FleetboxError as e:
            failures[describe(target)] = e
    if not failures:
        return done
    if wanted == 1 and len(failures) == 1:
        raise next(iter(failures.values()))
    raise PartialError(f"could not {what} {', '.join(failures)}", failures, why=f"done: {', '.join(done) or 'none'}")
