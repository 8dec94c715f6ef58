"""`fleetbox exec`."""

from __future__ import annotations

from typing import Annotated

import typer

from fleetbox.cluster import Cluster
from fleetbox.errors import MachineError, UsageError
from fleetbox.records import MemberState
from fleetbox.refs import resolve
from fleetbox_cli.login import command_words
from fleetbox_cli.options import ClusterName
from fleetbox_cli.parallel import collect, show
from fleetbox_cli.render import Output
from fleetbox_cli.settings import Settings, note
from fleetbox_cli.verb import verb


@verb(
    """
    fleetbox exec mycluster uname -a
    fleetbox exec mycluster 'sudo apt-get update && sudo apt-get install -y curl'
    fleetbox exec --json mycluster hostname    # output and exit code of each member
    """,
    name="exec",
    passthrough=True,
)
def exec_(
    settings: Settings,
    cluster: ClusterName,
    command: Annotated[list[str], typer.Argument(metavar="COMMAND...", show_default=False, help="What to run.")],
) -> Output:
    """Run a command on all running members of a cluster at once.

    Each line of output carries the member's name. The exit code is the highest of all members' codes.
    """
    words = command_words(command)
    if not words:
        raise UsageError("no command is given", hint=f"for example: fleetbox exec {cluster} uname -a")
    found = resolve(cluster, cluster=settings.scope)
    members = found.members if isinstance(found, Cluster) else [found]
    running = [m for m in members if m.state is MemberState.RUNNING]
    skipped = [m.ref for m in members if m not in running]
    if not running:
        raise MachineError(
            f"no member of {cluster!r} is running", hint=f"`fleetbox start {cluster}` starts its members"
        )
    if skipped and not settings.json:
        note(f"note: not running, left out: {', '.join(skipped)}", settings)
    if settings.json:
        outcomes = collect([(m.ref, m.ssh_argv(words, tty=False)) for m in running])
    else:
        outcomes = show([(m.name, m.ssh_argv(words, tty=False)) for m in running])
    worst = max(o.exit_code for o in outcomes)
    return Output("exec", {"members": outcomes, "skipped": skipped}, exit_code=worst)
