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
    fleetbox ssh -L 8080:localhost:80 node-1  # its port 80 is our 8080
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
    local: Annotated[
        list[str] | None, typer.Option("-L", metavar="FORWARD", help="Forward a port here to there, as in ssh(1).")
    ] = None,
    remote: Annotated[
        list[str] | None, typer.Option("-R", metavar="FORWARD", help="Forward a port there to here.")
    ] = None,
    dynamic: Annotated[list[str] | None, typer.Option("-D", metavar="PORT", help="A SOCKS proxy on this port.")] = None,
    agent: Annotated[bool, typer.Option("-A", help="Forward the SSH agent.")] = False,
    terminal: Annotated[
        int, typer.Option("-t", count=True, show_default=False, help="Give the command a terminal; twice: in any case.")
    ] = 0,
    nothing: Annotated[bool, typer.Option("-N", help="Run no command: forward ports only.")] = False,
) -> Output:
    """Open a shell on a member, or run a command on it.

    This is the system's OpenSSH as the user fleet, who may use sudo. The connection stays open for a while, so the next
    command is fast; one with forwardings is a connection of its own and ends with its command. Options of ssh stand
    before REF; everything after it belongs to the command, whose exit code is passed on.
    """
    words = command_words(command or [])
    forwards = [("-L", local), ("-R", remote), ("-D", dynamic)]
    own = [word for option, values in forwards for value in values or () for word in (option, value)]
    own += [flag for flag, given in (("-A", agent), ("-N", nothing)) if given]
    if not settings.json:
        login(ref, words, settings, [*own, *["-t"] * terminal], multiplex=not own)
    if own or terminal:
        raise UsageError("`ssh --json` takes none of ssh's own options", why="it prints what a command has printed")
    if not words:
        raise UsageError("`ssh --json` needs a command", why="a shell has no JSON", hint="leave --json out")
    from fleetbox.refs import resolve_member
    from fleetbox_cli.parallel import collect

    member = resolve_member(ref, cluster=settings.scope)
    [outcome] = collect([(member.ref, member.ssh_argv(words, tty=False))])
    return Output("ssh", outcome, exit_code=outcome.exit_code)
