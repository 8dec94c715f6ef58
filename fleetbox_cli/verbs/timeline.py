"""`fleetbox timeline`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from fleetbox.cluster import Cluster
from fleetbox.errors import FleetboxError, UsageError
from fleetbox.refs import resolve
from fleetbox_cli import options
from fleetbox_cli.render import Output, printable
from fleetbox_cli.settings import Settings
from fleetbox_cli.verb import verb


@verb("""
    fleetbox timeline mycluster
    fleetbox timeline mycluster -o boot.svg    # a picture
    fleetbox timeline mycluster --json
""")
def timeline(
    settings: Settings,
    cluster: options.ClusterName,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", show_default=False, help="Draw an SVG there (-: out).")
    ] = "",
    text: Annotated[bool, typer.Option("--text", help="Print bars. [default without -o]")] = False,
) -> Output | None:
    """Show where the time of each member's last boot or clone went, step by step.

    It is made of the cluster's event log. Members that came up in one operation stand together, on its seconds.
    """
    found = resolve(cluster, cluster=settings.scope)
    made = (found if isinstance(found, Cluster) else Cluster(found.cluster)).timeline()
    if output == "-":
        if settings.json or text:
            raise UsageError("a picture on standard output stands there alone", hint="give -o the name of a file")
        sys.stdout.write(made.svg())
        return None
    if output:
        try:
            Path(output).write_text(made.svg(), encoding="utf-8")
        except OSError as e:
            raise FleetboxError(f"{output} cannot be written", why=e.strerror or str(e)) from e
    lines = made.text(shutil.get_terminal_size((100, 24)).columns).splitlines() if text or not output else []
    return Output("timeline", msgspec.to_builtins(made), [printable(line) for line in lines])
