"""`fleetbox status`."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from fleetbox.cluster import Cluster
from fleetbox.refs import resolve
from fleetbox_cli import options
from fleetbox_cli.render import Output, Table, age, fields
from fleetbox_cli.settings import Settings
from fleetbox_cli.verb import verb
from fleetbox_cli.views import bound_lines, cluster_view, member_table


@verb("""
    fleetbox status mycluster
    fleetbox status mycluster --json
    fleetbox status mycluster --watch    # live, with what each member uses; Ctrl-C ends it
""")
def status(
    settings: Settings,
    cluster: options.ClusterName,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on showing it, with what each member uses.")] = False,
    interval: Annotated[
        float, typer.Option("--interval", metavar="SECONDS", min=0.1, help="How often --watch measures. [default: 2]")
    ] = 2.0,
) -> Output:
    """Show a cluster in detail: its holder, backend and network, and each member.

    With --watch, changes show at once. CPU is of one core; MEMORY is what the member's process has resident, pages
    shared with other members included; the rates are bytes a second as the guest sees them.
    """
    found = resolve(cluster, cluster=settings.scope)
    named = found if isinstance(found, Cluster) else Cluster(found.cluster)
    if watch:
        from fleetbox_cli.watch import watch as go_on

        return go_on(named, interval, settings)
    live = named.status()
    view = cluster_view(live.record)
    holder = f"pid {view.holder_pid}, up {age(live.uptime_s)}" if live.holder_running else "not running"
    accelerator = f", {view.accelerator}" if view.accelerator else ""
    text: list[str | Table] = [
        fields(
            [
                ("cluster", f"{view.name} ({view.id})"),
                ("holder", f"{holder}{f', version {view.holder_version}' if view.holder_version else ''}"),
                ("backend", f"{view.backend}{accelerator} ({view.backend_reason})"),
                ("network", " ".join(filter(None, [view.network, view.subnet, view.bridge]))),
                *(("note", line) for line in live.notes),
            ]
        ),
        "",
        member_table(view.members, with_cluster=False),
        *(f"{m.name}: {m.error}" for m in view.members if m.error),
        *bound_lines([view]),
    ]
    data = msgspec.to_builtins(view) | {"uptime_s": live.uptime_s, "notes": list(live.notes)}
    return Output("status", data, text)
