"""`fleetbox console`: a member's serial console on this terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from fleetbox.console import ConsoleConnection
from fleetbox.errors import FleetboxError, UsageError
from fleetbox.member import Member
from fleetbox.refs import resolve_member
from fleetbox_cli import escape as escapes
from fleetbox_cli.options import Ref
from fleetbox_cli.settings import Settings, note
from fleetbox_cli.terminal import Session
from fleetbox_cli.verb import verb


@verb("""
    fleetbox console node-1
    fleetbox console -e ^] node-1    # another escape character
    fleetbox console -e none node-1  # none: every key goes to the guest
""")
def console(
    settings: Settings,
    ref: Ref,
    escape: Annotated[
        str, typer.Option("--escape", "-e", metavar="CHAR", help="Escape character; none turns it off. [default: ~]")
    ] = "~",
) -> None:
    """Use a member's serial console.

    Every key goes to the guest. At the beginning of a line, ~. leaves the console, ~^Z suspends it and ~? shows the
    escapes, as in ssh. One user at a time may have it; what the guest printed before is in its log (fleetbox logs).
    The guest learns the size of the window once its SSH server answers.

    Without a terminal, standard input is typed as it is, until its end.
    """
    key = escapes.parse(escape)
    if settings.json:
        raise UsageError("a console has no JSON", hint=f"`fleetbox logs --json {ref}` has what the guest prints")
    member = resolve_member(ref, cluster=settings.scope)
    with member.console() as connection:
        way_out = f"{escapes.shown(key)}. leaves, {escapes.shown(key)}? helps" if key else "it ends with the machine"
        note(f"console of {member.ref} ({way_out})", settings)
        ended = Session(connection, key, lambda rows, columns: _size_argv(member, connection, rows, columns)).run()
    note(f"\n{member.ref} has ended" if ended else f"\nleft the console of {member.ref}", settings)


def _size_argv(member: Member, connection: ConsoleConnection, rows: int, columns: int) -> Sequence[str] | None:
    """The command that sets the size of the guest's console, where that is a terminal and SSH may answer."""
    if not connection.guest_device:
        return None
    command = f"sudo stty -F /dev/{connection.guest_device} rows {rows} columns {columns}"
    try:
        return member.ssh_argv([command], tty=False)
    except FleetboxError:
        return None
