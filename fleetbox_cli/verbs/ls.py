"""`fleetbox ls`: from the records, without a holder."""

from __future__ import annotations

import sys

from fleetbox.errors import RecordError
from fleetbox.records import read_cluster, read_clusters
from fleetbox_cli.render import Output, Table
from fleetbox_cli.report import error_lines
from fleetbox_cli.settings import Settings
from fleetbox_cli.verb import verb
from fleetbox_cli.views import ClusterView, bound_lines, cluster_view, member_table


@verb("""
    fleetbox ls
    fleetbox ls --cluster mycluster
    fleetbox ls --json
""")
def ls(settings: Settings) -> Output:
    """List clusters and members.

    Reads the records only. One that cannot be read is named on standard error and hides no other.
    """
    views: list[ClusterView] = []
    unreadable: list[RecordError] = []
    for entry in [read_cluster(settings.cluster)] if settings.cluster else read_clusters():
        if isinstance(entry, RecordError):
            unreadable.append(entry)
        else:
            views.append(cluster_view(entry))
    for error in unreadable:
        sys.stderr.write("".join(f"{line}\n" for line in error_lines(error)).replace("error:", "warning:", 1))
    members = [m for view in views for m in view.members]
    empty = [view.name for view in views if not view.members]
    table = member_table(members, with_cluster=True)
    text: list[str | Table] = [table, *(f"{name}  (no members)" for name in empty)] if members or empty else []
    text += bound_lines(views)
    if not text and not unreadable and not settings.quiet:
        text = ["no clusters; `fleetbox up mycluster` makes one"]
    return Output("clusters", {"clusters": views, "unreadable": [e.to_wire() for e in unreadable]}, text)
