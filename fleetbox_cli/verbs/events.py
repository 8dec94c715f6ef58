"""`fleetbox events`: what happened to a cluster, from its log."""

from __future__ import annotations

import datetime as dt
from typing import Annotated

import typer

from fleetbox.cluster import Cluster
from fleetbox.events import LoggedEvent
from fleetbox_cli import options
from fleetbox_cli.render import Output, printable, write_line
from fleetbox_cli.settings import Settings
from fleetbox_cli.verb import verb


@verb("""
    fleetbox events mycluster
    fleetbox events mycluster -f
    fleetbox events mycluster --since 120 --json
""")
def events(
    settings: Settings,
    cluster: options.ClusterName,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the cluster is destroyed.")] = False,
    since: Annotated[
        int, typer.Option("--since", metavar="N", min=0, show_default=False, help="Only those after event number N.")
    ] = 0,
) -> Output | None:
    """Show what happened to a cluster, in order: changes of its members, steps of operations, notices.

    Reads the cluster's log, and needs no holder. Events are numbered; one that follows sees each exactly once, whatever
    happens to holders meanwhile.
    """
    found = Cluster(cluster).events(follow=follow, since=since)
    if settings.json and not follow:
        return Output("events", {"cluster": cluster, "events": list(found)})
    for event in found:
        if settings.json:
            write_line(event)
        else:
            typer.echo(printable(_line(event)))
    return Output("events", {"cluster": cluster}) if settings.json else None


def _line(event: LoggedEvent) -> str:
    """`120  12:01:07.204  node-1  boot done`: number, local time, whom it is about, and what."""
    at = dt.datetime.fromtimestamp(event.at).astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    return f"{event.seq:>5}  {at}  {event.member or '-':<10}  {_said(event)}"


def _said(event: LoggedEvent) -> str:
    why = f": {event.message}" if event.message else ""
    match event.event:
        case "gap":
            return f"({event.count} earlier events are not kept any more)"
        case "member":
            return f"is {event.state}{why}"
        case "progress":
            return f"{event.step} {event.state}" + (f" ({event.message})" if event.message else "")
        case "operation":
            return f"{event.step} {event.state}{why}"
        case "cluster":
            return f"the cluster was {event.state}"
        case "holder":
            return f"holder {event.state}" + (f", version {event.message}" if event.message else "")
    return event.message
