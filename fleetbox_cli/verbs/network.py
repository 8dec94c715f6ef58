"""`fleetbox enter` and `forward`: being on a cluster's network, and bringing a part of it here."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import ExitStack
from typing import Annotated

import typer

from fleetbox.errors import NotFoundError, UsageError
from fleetbox_cli.login import command_words
from fleetbox_cli.options import ClusterName, Ref
from fleetbox_cli.render import Output
from fleetbox_cli.settings import Settings
from fleetbox_cli.verb import verb


@verb(
    """
    fleetbox enter mycluster -- psql -h node-1      # members' names are known inside
    fleetbox enter mycluster -- curl http://node-2
    fleetbox enter mycluster                        # a shell
    """,
    passthrough=True,
)
def enter(
    settings: Settings,
    cluster: ClusterName,
    command: Annotated[
        list[str] | None, typer.Argument(metavar="[COMMAND]...", help="What to run; without it, your shell.")
    ] = None,
) -> None:
    """Run a program of this host on a cluster's network.

    On a private network the program sees the cluster's network in the place of the host's, and members by their names;
    files, user and rights are its own. Where the network is the host's it is merely run. Its exit code is passed on.
    """
    from fleetbox.inside import enter as move
    from fleetbox.records import read_cluster

    words = command_words(command or []) or [os.environ.get("SHELL", "/bin/sh")]
    move(read_cluster(cluster))
    try:
        os.execvp(words[0], words)  # noqa: S606 - the user's own program
    except FileNotFoundError:
        raise NotFoundError(f"there is no program {words[0]!r}") from None


@verb("""
    fleetbox forward web 8080:80          # http://127.0.0.1:8080 is the member's port 80
    fleetbox forward db/node-1 5432       # the same number on both ends
    fleetbox forward web 8080:80 2222:22
""")
def forward(
    settings: Settings,
    ref: Ref,
    ports: Annotated[
        list[str], typer.Argument(metavar="PORT[:PORT]...", show_default=False, help="Local port, and the member's.")
    ],
) -> Output:
    """Open ports of a member on this host's loopback, until interrupted."""
    from fleetbox.refs import resolve_member

    pairs = [_pair(text) for text in ports]
    member = resolve_member(ref, cluster=settings.scope)
    member.require_running()
    with ExitStack() as stack:
        lines = []
        for local, remote in pairs:
            opened = stack.enter_context(member.forward(remote, local_port=local))
            lines.append(f"127.0.0.1:{opened.port} is port {remote} of {member.ref}")
        if not settings.quiet:
            print("\n".join([*lines, "Ctrl-C ends it"]), file=sys.stderr, flush=True)  # noqa: T201
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
    return Output("forward", {"ref": member.ref, "ports": [{"local": a, "member": b} for a, b in pairs]}, [])


def _pair(text: str) -> tuple[int, int]:
    local, _, remote = text.partition(":")
    try:
        pair = int(local), int(remote or local)
    except ValueError:
        pair = (-1, -1)
    if not all(0 < port < 65536 for port in pair):
        raise UsageError(f"{text!r} is no port", hint="write LOCAL:REMOTE, such as 8080:80")
    return pair
