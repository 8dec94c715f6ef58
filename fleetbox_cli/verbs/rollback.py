"""`fleetbox clone` and `fleetbox restore`: what snapshots are kept for."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

import fleetbox
from fleetbox.cluster import Cluster
from fleetbox.sizes import parse_size
from fleetbox.specs import parse_fixture
from fleetbox_cli import options
from fleetbox_cli.progress import progress
from fleetbox_cli.render import Output
from fleetbox_cli.settings import Settings
from fleetbox_cli.verb import verb
from fleetbox_cli.views import cluster_view, member_table, member_view


@verb("""
    fleetbox clone before-upgrade                  # as it was called, or with the next free name
    fleetbox clone before-upgrade mycluster/node-9
    fleetbox clone three-nodes second              # a cluster's snapshot becomes a new cluster
    fleetbox clone - copy < saved.tar              # straight from an archive
""")
def clone(
    settings: Settings,
    snapshot: options.Snapshot,
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", show_default=False, help="CLUSTER, or MEMBER or CLUSTER/MEMBER."),
    ] = None,
    cpus: Annotated[int | None, typer.Option("--cpus", metavar="N", help="Where the backend can change them.")] = None,
    memory: Annotated[str | None, typer.Option("--memory", metavar="SIZE", help="Where the backend can.")] = None,
    disk: options.Disk = None,
    fixture: options.Fixtures = None,
    network: Annotated[
        Literal["auto", "host", "private"] | None,
        typer.Option("--network", metavar="auto|host|private", help="Of a new cluster. [default: auto]"),
    ] = None,
    no_control_line: options.NoControlLine = False,
    timeout: options.Timeout = 0.0,
) -> Output:
    """Make a new member of a member's snapshot, or a new cluster of a cluster's.

    Each gets an identity of its own. A member's snapshot goes into the cluster that it was saved in unless another is
    named. With - the archive comes from standard input and is not kept.
    """
    with progress(settings) as on_event:
        made = fleetbox.snapshots.clone(
            snapshot,
            name or "",
            cluster=settings.scope,
            cpus=cpus,
            memory_bytes=parse_size(memory, "memory size") if memory else None,
            disk_bytes=parse_size(disk, "disk size") if disk else None,
            fixtures=[parse_fixture(f) for f in fixture] if fixture else None,
            network=network or "auto",
            control_line=not no_control_line,
            timeout_s=timeout,
            on_event=on_event,
        )
    if isinstance(made, Cluster):
        view = cluster_view(made.record)
        return Output("cluster", view, [member_table(view.members, with_cluster=True)])
    views = [member_view(made.cluster, made.record)]
    return Output("members", {"members": views}, [member_table(views, with_cluster=True)])


@verb("""
    fleetbox restore mycluster three-nodes
    fleetbox restore mycluster/node-1 before-upgrade
    fleetbox restore mycluster - < saved.tar            # straight from an archive
""")
def restore(
    settings: Settings,
    ref: Annotated[str, typer.Argument(metavar="REF", show_default=False, help="The cluster or member.")],
    snapshot: options.Snapshot,
    timeout: options.Timeout = 0.0,
) -> Output:
    """Put a member or a whole cluster back to a snapshot of it.

    What happened since is lost. Addresses and keys are as they were, and connections between the members go on. When it
    fails, the machines run on as they are. With - the archive comes from standard input and is not kept.
    """
    with progress(settings) as on_event:
        fleetbox.snapshots.restore(ref, snapshot, cluster=settings.scope, timeout_s=timeout, on_event=on_event)
    text = [] if settings.quiet else [f"restored {ref}"]
    return Output("restore", {"restored": ref, "snapshot": snapshot}, text)
