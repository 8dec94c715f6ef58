"""`fleetbox cp`."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from fleetbox.errors import UsageError
from fleetbox.files.copying import copy
from fleetbox.files.location import parse
from fleetbox.refs import resolve_member
from fleetbox.sizes import format_size
from fleetbox_cli.progress import progress
from fleetbox_cli.render import Output
from fleetbox_cli.settings import Settings
from fleetbox_cli.verb import verb


@verb("""
    fleetbox cp setup.sh node-1:/tmp/
    fleetbox cp -- ./site config.toml node-1:           # to the home folder there
    fleetbox cp 'node-1:/var/log/*.log' logs/           # the quotes leave the pattern to the guest
    fleetbox cp node-1:/etc/hosts node-2:/tmp/hosts     # between two members
    fleetbox cp node-1:/etc/os-release -                # to standard output
    pg_dump mydb | fleetbox cp - node-1:mydb.sql
""")
def cp(
    settings: Settings,
    paths: Annotated[
        list[str],
        typer.Argument(metavar="SRC... DST", show_default=False, help="Files and folders: PATH here, REF:PATH there."),
    ],
) -> Output | None:
    """Copy files and folders to members, from members, and between members.

    REF:PATH is a path on a member, counted from the home folder of its user fleet; REF: is that folder itself. Folders
    are copied whole, with modes, times and symbolic links. An existing folder DST takes everything in under its own
    name. A file is replaced at once when all of it is there, so an interrupted copy leaves no half file.

    A - is standard input or output. A path here that looks like REF:PATH is written ./REF:PATH. Names and links by
    which a guest would write outside of DST are refused, and set-user-ID bits of a guest's files are left out.
    """
    if len(paths) < 2:
        raise UsageError("a source and a destination are needed", hint="for example: fleetbox cp file node-1:/tmp/")
    *sources, destination = [parse(path) for path in paths]
    to_stream = destination.is_stream
    if to_stream and settings.json:
        raise UsageError("`cp --json` cannot write to standard output", why="the JSON stands there")
    with progress(settings) as on_event:
        copied = copy(sources, destination, lambda ref: resolve_member(ref, cluster=settings.scope), on_event)
    if to_stream:
        return None
    count = f"{copied.files} file{'s' if copied.files != 1 else ''}"
    text = [] if settings.quiet else [f"copied {count}, {format_size(copied.size_bytes)}"]
    return Output("cp", msgspec.to_builtins(copied), text)
