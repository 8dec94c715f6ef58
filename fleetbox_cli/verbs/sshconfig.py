"""`fleetbox ssh-config`."""

from __future__ import annotations

from typing import Annotated

import typer

from fleetbox import ssh
from fleetbox.cluster import Cluster
from fleetbox.records import ClusterRecord, read_clusters
from fleetbox.refs import resolve
from fleetbox_cli.render import Output
from fleetbox_cli.settings import Settings
from fleetbox_cli.verb import verb


@verb(
    """
    fleetbox ssh-config > ~/.ssh/fleetbox           # then "Include fleetbox" at the top of ~/.ssh/config
    fleetbox ssh-config mycluster > cluster.conf    # rsync -e 'ssh -F cluster.conf' …
    """,
    name="ssh-config",
)
def ssh_config(
    settings: Settings,
    cluster: Annotated[
        str | None, typer.Argument(metavar="[CLUSTER]", show_default=False, help="Only its members. [default: all]")
    ] = None,
) -> Output:
    """Print the members as a configuration of OpenSSH, for ssh, scp, rsync and Ansible.

    A member is known as node-1.mycluster.fleetbox and node-1.mycluster, and by its bare name where no other has it.
    Host keys are checked strictly, and the connection is the one that fleetbox ssh uses. Print it anew when members
    were added.
    """
    scope = cluster or settings.scope
    records = [_record(scope, settings)] if scope else [r for r in read_clusters() if isinstance(r, ClusterRecord)]
    text, hosts = ssh.configuration(records)
    return Output("ssh-config", {"config": text, "hosts": hosts}, [text.rstrip("\n")])


def _record(scope: str, settings: Settings) -> ClusterRecord:
    found = resolve(scope, cluster=settings.scope)
    return (found if isinstance(found, Cluster) else Cluster(found.cluster)).record
