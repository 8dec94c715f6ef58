"""`fleetbox ssh`: becomes OpenSSH. No Typer here: it is a fast path."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from fleetbox.errors import HostError
from fleetbox.refs import resolve_member
from fleetbox_cli.settings import Settings


def login(
    ref: str, command: Sequence[str], settings: Settings, options: Sequence[str] = (), *, multiplex: bool = True
) -> NoReturn:
    """Replace this process by ssh to the member, with further `options` of ssh(1).

    A command gets a terminal when it is run from one, so that `sudo` and `top` work. Without `multiplex` the connection
    is its own: a forwarding or an agent would stay with a shared one.

    Raises NotFoundError, AmbiguousError, MachineError when the member is not running, HostError without OpenSSH.
    """
    words = command_words(command)
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    tty = True if words and terminal and "-t" not in options else None
    argv = resolve_member(ref, cluster=settings.scope).ssh_argv(words, tty=tty, multiplex=multiplex)
    argv[1:1] = options
    try:
        os.execvp(argv[0], argv)  # noqa: S606 - an argv list, no shell
    except FileNotFoundError:
        raise HostError(
            "there is no ssh on this host", hint="install openssh-client, or run `fleetbox doctor --fix`"
        ) from None


def command_words(command: Sequence[str]) -> list[str]:
    """The guest's command; a first `--`, which ended our own options, is not part of it."""
    return list(command[1:] if command[:1] == ["--"] else command)
