"""`fleetbox up`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

import fleetbox
from fleetbox_cli import options
from fleetbox_cli.progress import progress
from fleetbox_cli.render import Output, Table
from fleetbox_cli.settings import Settings
from fleetbox_cli.verb import verb
from fleetbox_cli.views import cluster_view, member_table


@verb("""
    fleetbox up mycluster                                   # one member, node-1
    fleetbox up mycluster --members 3 --memory 2G --cpus 4
    fleetbox up mycluster --name web --name db              # members by name
    fleetbox up mycluster --fixture ./data:/srv/data        # ./data, read-only in each guest
    fleetbox up mycluster --image ./my-image.qcow2
    fleetbox up mycluster --cold                            # really boot
""")
def up(
    settings: Settings,
    cluster: options.ClusterName,
    members: Annotated[
        int | None, typer.Option("--members", "-n", metavar="N", help="How many members. [default: as it is, or 1]")
    ] = None,
    name: Annotated[
        list[str] | None, typer.Option("--name", metavar="NAME", help="A member by this name. Repeatable.")
    ] = None,
    image: options.Image = None,
    cpus: options.Cpus = None,
    memory: options.Memory = None,
    disk: options.Disk = None,
    fixture: options.Fixtures = None,
    backend: Annotated[
        str, typer.Option("--backend", metavar="NAME", show_default=False, help="Hypervisor. [env: FLEETBOX_BACKEND]")
    ] = "",
    network: Annotated[
        Literal["auto", "host", "private"] | None,
        typer.Option(
            "--network", metavar="auto|host|private", help="Where the cluster's network is made. [default: auto]"
        ),
    ] = None,
    boot: options.Boot = None,
    kernel: options.Kernel = None,
    cold: options.Cold = False,
    no_control_line: options.NoControlLine = False,
    timeout: options.Timeout = 0.0,
) -> Output:
    """Make a cluster exist and run.

    Missing members are created, stopped ones are started, running ones are left alone, so it can be repeated. A member
    is ready when SSH answers. Ctrl-C undoes what was begun and keeps what was there.

    New members are clones of a warm template: a machine of the same image and resources that was booted once and saved.
    The first of a kind has to wait for it.
    """
    spec = options.spec_keywords(image, cpus, memory, disk, fixture, boot, kernel)
    with progress(settings) as on_event:
        made = fleetbox.up(
            cluster,
            members=members,
            names=tuple(name or ()),
            backend=backend,
            network=network or "auto",
            cold=cold,
            control_line=not no_control_line,
            timeout_s=timeout,
            on_event=on_event,
            **spec,
        )
    view = cluster_view(made.record)
    count = f"{len(view.members)} member{'s' if len(view.members) != 1 else ''}"
    text: list[str | Table] = [
        member_table(view.members, with_cluster=False),
        "",
        f"{view.name} is up: {count} on {view.backend}{f' ({view.accelerator})' if view.accelerator else ''}",
    ]
    if not settings.quiet:
        first = view.members[0].ref if view.members else view.name
        text += [f"  fleetbox ssh {first}", f"  fleetbox exec {view.name} uname -a", f"  fleetbox destroy {view.name}"]
    return Output("cluster", view, text)
