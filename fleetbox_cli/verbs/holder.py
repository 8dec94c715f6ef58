"""`fleetbox holder`: the processes that keep clusters' machines."""

from __future__ import annotations

from typing import Annotated

import typer

import fleetbox
from fleetbox.cluster import Cluster
from fleetbox.holders import Holder
from fleetbox_cli.progress import progress
from fleetbox_cli.render import Output, Table
from fleetbox_cli.settings import Settings
from fleetbox_cli.targets import act
from fleetbox_cli.verb import Entry, LazyGroup, verb


@verb("""
    fleetbox holder ls
""")
def ls(settings: Settings) -> Output:
    """List holders, and clusters whose machines run without one until the next command.

    Reads records only.
    """
    found = fleetbox.holders.list_holders()
    rows = tuple((h.cluster, str(h.pid or ""), h.version, str(h.protocol or ""), str(h.machines)) for h in found)
    text: list[str | Table] = [Table(("CLUSTER", "PID", "VERSION", "PROTOCOL", "MACHINES"), rows)] if rows else []
    if not rows and not settings.quiet:
        text = ["no holder runs"]
    return Output("holders", {"holders": found}, text)


@verb("""
    fleetbox holder restart mycluster
    fleetbox holder restart    # of every cluster, for example after an upgrade
""")
def restart(
    settings: Settings,
    clusters: Annotated[
        list[str] | None, typer.Argument(metavar="CLUSTER...", show_default=False, help="Clusters; none means all.")
    ] = None,
) -> Output:
    """Put a new holder in the place of a cluster's holder, of whatever version it is.

    Machines run on, SSH sessions stay open. An operation under way is finished first. A cluster of which nothing runs
    gets no holder. Bound clusters end with their holder, and keep it.
    """
    names = clusters or [h.cluster for h in fleetbox.holders.list_holders() if not h.bound]
    found: list[Holder] = []
    with progress(settings) as on_event:
        act(
            [(Cluster(name), ()) for name in dict.fromkeys(names)],
            {},
            lambda cluster, _: found.append(fleetbox.holders.restart(cluster.name, on_event=on_event)),
            "restart the holder of",
        )
    text = [
        f"{h.cluster}: pid {h.pid}, version {h.version}, {h.machines} machines"
        if h.pid
        else f"{h.cluster}: nothing runs"
        for h in found
    ]
    if not found and not settings.quiet:
        text = ["no holder runs"]
    return Output("holders", {"holders": found}, [] if settings.quiet else text)


_SELF = "fleetbox_cli.verbs.holder:"
holder = LazyGroup(
    "holder",
    "List and restart holders: the processes that keep clusters' machines.",
    {
        "ls": Entry(_SELF + "ls", "List holders."),
        "restart": Entry(_SELF + "restart", "Replace holders; machines run on."),
    },
)
