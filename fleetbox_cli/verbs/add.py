"""`fleetbox add`."""

from __future__ import annotations

from typing import Annotated

import typer

from fleetbox.cluster import Cluster
from fleetbox_cli import options
from fleetbox_cli.progress import progress
from fleetbox_cli.render import Output
from fleetbox_cli.settings import Settings
from fleetbox_cli.verb import verb
from fleetbox_cli.views import member_table, member_view


@verb("""
    fleetbox add mycluster               # one more, with the next free name
    fleetbox add mycluster --count 2
    fleetbox add mycluster db --memory 4G
""")
def add(
    settings: Settings,
    cluster: options.ClusterName,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", show_default=False, help="Names of the new members.")
    ] = None,
    count: Annotated[int | None, typer.Option("--count", metavar="N", help="How many. [default: 1]")] = None,
    image: options.Image = None,
    cpus: options.Cpus = None,
    memory: options.Memory = None,
    disk: options.Disk = None,
    fixture: options.Fixtures = None,
    boot: options.Boot = None,
    kernel: options.Kernel = None,
    cold: options.Cold = False,
    no_control_line: options.NoControlLine = False,
    timeout: options.Timeout = 0.0,
) -> Output:
    """Add members to a cluster and start them.

    What is not said is as for the cluster's other members.
    """
    spec = options.spec_keywords(image, cpus, memory, disk, fixture, boot, kernel)
    with progress(settings) as on_event:
        added = Cluster(cluster).add(
            tuple(names or ()),
            count,
            cold=cold,
            control_line=not no_control_line,
            timeout_s=timeout,
            on_event=on_event,
            **spec,
        )
    views = [member_view(m.cluster, m.record) for m in added]
    return Output("members", {"members": views}, [member_table(views, with_cluster=False)])
