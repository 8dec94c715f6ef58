"""`fleetbox inspect`."""

from __future__ import annotations

import msgspec

from fleetbox.cluster import Cluster
from fleetbox.refs import resolve
from fleetbox_cli.options import Ref
from fleetbox_cli.render import Output
from fleetbox_cli.settings import Settings
from fleetbox_cli.verb import verb


@verb("""
    fleetbox inspect mycluster
    fleetbox inspect mycluster/node-1
    fleetbox inspect node-1 --json    # on one line, in the envelope
""")
def inspect(settings: Settings, ref: Ref) -> Output:
    """Show the record of a cluster or member as JSON.

    This is what fleetbox keeps on disk. Programs that need stable keys read `fleetbox ls --json`.
    """
    found = resolve(ref, cluster=settings.scope)
    kind = "cluster-record" if isinstance(found, Cluster) else "member-record"
    record = found.record
    return Output(kind, record, [msgspec.json.format(msgspec.json.encode(record)).decode()])
