"""`fleetbox ssh`, with options; `__main__` takes its plain shape to `fleetbox_cli.login` at once."""

from __future__ import annotations

from typing import Annotated

import typer

from fleetbox.errors import UsageError
from fleetbox_cli.login import command_words, login
from fleetbox_cli.options import Ref
from fleetbox_cli.render import Output
from fleetbox_cli.settings import Settings
from fleetbox_cli.verb import verb


@verb(
    """
    fleetbox ssh node-1                       # a shell
    fleetbox ssh mycluster/node-1 uname -a    # a command
    fleetbox ssh node-1 'cd /srv && ls'       # the guest's shell reads it
    tar c . | fleetbox ssh node-1 tar x       # standard input goes through
    """,
    passthrough=True,
)
def ssh(
    settings: Settings,
    ref: Ref,
    command: Annotated[
        list[str] | None, typer.Argument(metavar="[COMMAND]...", help="What to run; without it, a shell.")
    ] = None,
) -> Output:
    """Open a shell on a member, or run a command on it.

    This is the system's OpenSSH as the user fleet, who may use sudo. The connection stays open for a while, so the next
    command is fast. Everything after REF belongs to the command; its exit code is passed on.
    """
    words = command_words(command or [])
    if not settings.json:
        login(ref, words, settings)
    if not words:
        raise UsageError("`ssh --json` needs a command", why="a shell has no JSON", hint="leave --json out")
    from fleetbox.refs import resolve_member
    from fleetbox_cli.parallel import collect

    member = resolve_member(ref, cluster=settings.scope)
    [outcome] = collect([(member.ref, member.ssh_argv(words, tty=False))])
    return Output("ssh", outcome, exit_code=outcome.exit_code)
