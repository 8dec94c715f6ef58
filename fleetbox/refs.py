"""Which cluster or members a user means (design §2: *ref*).

A ref is `node-1`, `mycluster/node-1`, a cluster's name, an id or an unambiguous id prefix (4 digits or more). Only
records are read; no holder is started. `FLEETBOX_CLUSTER` scopes bare names as `cluster=` does.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from fleetbox import names
from fleetbox.cluster import Cluster
from fleetbox.errors import AmbiguousError, NotFoundError, RecordError, UsageError
from fleetbox.member import Member
from fleetbox.records import ClusterRecord, read_cluster, read_clusters


def resolve(text: str, *, cluster: str | None = None) -> Cluster | Member:
    """The cluster or member that `text` names.

    A cluster's own name comes before a member of that name elsewhere. Raises NotFoundError, AmbiguousError (which
    lists the candidates), UsageError for text that can be no ref, RecordError when the one that is meant cannot be
    read.

    >>> fleetbox.resolve("demo"), fleetbox.resolve("node-2")
    (Cluster('demo'), Member('demo/node-2'))
    """
    ref = names.parse_ref(text)
    if ref.cluster is not None:
        return _member_of(read_cluster(ref.cluster), ref.name)
    scope = cluster or os.environ.get("FLEETBOX_CLUSTER")
    if scope:
        record = read_cluster(names.check_label(scope, "cluster name"))
        if ref.name == record.name and ref.name not in record.members:
            return Cluster(record.name)
        return _member_of(record, ref.name)
    readable: list[ClusterRecord] = []
    unreadable: list[RecordError] = []
    for entry in read_clusters():
        if isinstance(entry, RecordError):
            unreadable.append(entry)
        else:
            readable.append(entry)
    if any(record.name == ref.name for record in readable):
        return Cluster(ref.name)
    read_cluster_if_named(ref.name)
    found = _candidates(readable, ref.name)
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(sorted(c.ref if isinstance(c, Member) else c.name for c in found))
        raise AmbiguousError(
            f"{text!r} is ambiguous", why=f"it may be {listed}", hint="write CLUSTER/MEMBER, or use --cluster"
        )
    raise NotFoundError(
        f"there is no cluster or member {text!r}",
        why="; ".join(e.message for e in unreadable),
        hint="`fleetbox ls` lists what there is",
    )


def read_cluster_if_named(name: str) -> None:
    """Raise the RecordError of a cluster of exactly this name whose record cannot be read."""
    try:
        read_cluster(name)
    except NotFoundError:
        return


def _candidates(records: Iterable[ClusterRecord], text: str) -> list[Cluster | Member]:
    """Members of that name; else members and clusters whose id is `text` or begins so."""
    known: list[tuple[Cluster | Member, str, str]] = []
    for record in records:
        known.append((Cluster(record.name), record.id, ""))
        known += [(Member(record.name, member.name), member.id, member.name) for member in record.members.values()]
    return [found for found, _, _ in names.matching(text, known, lambda k: k[1], lambda k: (k[2],))]


def _member_of(record: ClusterRecord, name: str) -> Member:
    found = _candidates([record], name)
    members = [c for c in found if isinstance(c, Member)]
    if len(members) == 1:
        return members[0]
    if members:
        raise AmbiguousError(f"{name!r} is ambiguous in {record.name!r}", why=", ".join(m.name for m in members))
    raise NotFoundError(
        f"the cluster {record.name!r} has no member {name!r}",
        why=f"its members are {', '.join(record.members) or 'none'}",
        hint=f"`fleetbox add {record.name} {name}` would make it",
    )


def resolve_member(text: str, *, cluster: str | None = None) -> Member:
    """The one member that `text` names; a cluster of one counts as its member. Raises as `resolve` does.

    >>> fleetbox.resolve_member("demo/node-1")
    Member('demo/node-1')
    """
    found = resolve(text, cluster=cluster)
    if isinstance(found, Member):
        return found
    members = found.members
    if len(members) == 1:
        return members[0]
    if not members:
        raise NotFoundError(f"the cluster {found.name!r} has no members", hint=f"`fleetbox up {found.name}` makes one")
    raise AmbiguousError(
        f"{text!r} is a cluster of {len(members)} members",
        why=f"it may be {', '.join(m.ref for m in members)}",
        hint="name one of them",
    )


def resolve_many(texts: Iterable[str], *, cluster: str | None = None) -> list[tuple[Cluster, tuple[str, ...]]]:
    """Refs grouped by cluster, in the order given; no member names stands for the whole cluster.

    Every ref is resolved before anything is returned. Raises as `resolve` does, for the first that fails.

    >>> fleetbox.resolve_many(["node-1", "demo/node-3"])
    [(Cluster('demo'), ('node-1', 'node-3'))]
    """
    grouped: dict[str, list[str] | None] = {}
    for text in texts:
        found = resolve(text, cluster=cluster)
        if isinstance(found, Cluster):
            grouped[found.name] = None
        elif (chosen := grouped.setdefault(found.cluster, [])) is not None and found.name not in chosen:
            chosen.append(found.name)
    if not grouped:
        raise UsageError("no cluster or member is named", hint="name one, for example mycluster or mycluster/node-1")
    return [(Cluster(name), tuple(members or ())) for name, members in grouped.items()]
