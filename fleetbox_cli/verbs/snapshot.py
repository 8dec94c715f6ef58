"""`fleetbox snapshot`: the family of snapshot verbs."""

from __future__ import annotations

import time
from typing import Annotated

import typer

import fleetbox
from fleetbox.errors import UsageError
from fleetbox.sizes import format_size, parse_size
from fleetbox_cli import options
from fleetbox_cli.progress import progress
from fleetbox_cli.render import Output, Table, age, fields
from fleetbox_cli.report import error_lines
from fleetbox_cli.settings import Settings, note
from fleetbox_cli.verb import Entry, LazyGroup, verb
from fleetbox_cli.views import snapshot_view

Name = Annotated[str, typer.Option("--name", metavar="NAME", show_default=False, help="Name the snapshot.")]


def _output(snapshot: fleetbox.Snapshot, done: str) -> Output:
    name = f" ({snapshot.name})" if snapshot.name else ""
    count = f"{len(snapshot.members)} member{'s' if len(snapshot.members) != 1 else ''}"
    stored = format_size(snapshot.stored_bytes)
    return Output(
        "snapshot", snapshot_view(snapshot), [f"{done} {snapshot.id}{name}: {count} of {snapshot.cluster}, {stored}"]
    )


def _check_stream(file: str | None, settings: Settings) -> None:
    if file == "-" and settings.json:
        raise UsageError("--json and an archive cannot both go to standard output", hint="name a file")


@verb("""
    fleetbox snapshot save mycluster --name three-nodes
    fleetbox snapshot save mycluster/node-1 --description "before the upgrade"
    fleetbox snapshot save mycluster --output - | ssh other fleetbox clone -
""")
def save(
    settings: Settings,
    ref: Annotated[str, typer.Argument(metavar="REF", show_default=False, help="A cluster or member.")],
    name: Name = "",
    description: Annotated[
        str, typer.Option("--description", metavar="TEXT", show_default=False, help="What it is for.")
    ] = "",
    output: Annotated[
        str | None,
        typer.Option("--output", metavar="FILE", help="Write an archive there (-: standard output) and keep nothing."),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep it when its cluster is bound and goes.")] = False,
) -> Output | None:
    """Save a member, or a whole cluster at one instant: memory, disks and records.

    All members of a cluster stand still until the last is saved, then they go on.
    """
    _check_stream(output, settings)
    if output is not None and (name or description):
        raise UsageError("--output keeps no snapshot that could be named", hint="leave --name and --description out")
    with progress(settings) as on_event:
        if output is None:
            saved = fleetbox.snapshots.save(
                ref, name=name, description=description, cluster=settings.scope, keep=keep, on_event=on_event
            )
        else:
            saved = fleetbox.snapshots.save_to(ref, output, cluster=settings.scope, on_event=on_event)
    return None if output == "-" else _output(saved, "saved")


@verb("""
    fleetbox snapshot ls
    fleetbox snapshot ls --json
""")
def ls(settings: Settings) -> Output:
    """List the snapshots that are here."""
    found, unreadable = fleetbox.snapshots.read_snapshots()
    now = time.time()
    rows = tuple(
        (
            s.name,
            s.id,
            s.kind,
            s.cluster if s.kind == "cluster" else f"{s.cluster}/{next(iter(s.members))}",
            str(len(s.members)),
            format_size(s.stored_bytes),
            age(now - s.created_at),
            s.description.partition("\n")[0],
        )
        for s in found
    )
    columns = ("NAME", "ID", "KIND", "OF", "MEMBERS", "STORED", "AGE", "DESCRIPTION")
    text: list[str | Table] = [Table(columns, rows)] if rows else []
    if not rows and not unreadable and not settings.quiet:
        text = ["no snapshots; `fleetbox snapshot save` makes one"]
    if not settings.json:
        for error in unreadable:
            note("\n".join(error_lines(error)), settings)
    data = {"snapshots": [snapshot_view(s) for s in found], "unreadable": [e.to_wire() for e in unreadable]}
    return Output("snapshots", data, text)


@verb("""
    fleetbox snapshot inspect three-nodes
    fleetbox snapshot inspect 3f2a --json
""")
def inspect(settings: Settings, snapshot: options.Snapshot) -> Output:
    """Show a snapshot in detail."""
    found = fleetbox.snapshots.inspect(snapshot)
    view = snapshot_view(found)
    shown = [
        ("id", view.id),
        ("name", view.name),
        ("description", view.description),
        ("kind", view.kind),
        ("cluster", view.cluster),
        ("subnet", view.subnet),
        ("tied to", ", ".join(f"{key} {value}" for key, value in sorted(view.identity.items()))),
        ("size", f"{format_size(view.size_bytes)}, {format_size(view.stored_bytes)} stored"),
        ("images", ", ".join(digest[:12] for digest in view.images)),
        ("folder", view.folder),
    ]
    rows = tuple(
        (m.name, "running" if m.running else "stopped", m.ip, str(m.cpus), format_size(m.memory_bytes))
        for m in view.members
    )
    table = Table(("MEMBER", "SAVED", "ADDRESS", "CPUS", "MEMORY"), rows)
    return Output("snapshot", view, [fields(shown), "", table])


@verb("""
    fleetbox snapshot rm three-nodes
""")
def rm(
    settings: Settings,
    snapshots: Annotated[list[str], typer.Argument(metavar="SNAPSHOT...", show_default=False, help="Names or ids.")],
) -> Output:
    """Remove snapshots. What was cloned from one lives on."""
    removed = fleetbox.snapshots.remove(snapshots)
    text = [] if settings.quiet else [f"removed {s.name or s.id}" for s in removed]
    return Output("snapshots", {"snapshots": [snapshot_view(s) for s in removed]}, text)


@verb("""
    fleetbox snapshot export three-nodes saved.tar
    fleetbox snapshot export three-nodes - | ssh other fleetbox snapshot import -
""")
def export(
    settings: Settings,
    snapshot: options.Snapshot,
    file: Annotated[
        str, typer.Argument(metavar="FILE", show_default=False, help="The archive, or - for standard output.")
    ],
) -> Output | None:
    """Write a snapshot as a tar, with the images that it rests on; holes take no room in it.

    The archive holds all that the machines held: their memory, their keys.
    """
    _check_stream(file, settings)
    with progress(settings) as on_event:
        found = fleetbox.snapshots.export(snapshot, file, on_event=on_event)
    return None if file == "-" else _output(found, "exported")


@verb(
    """
    fleetbox snapshot import saved.tar
    ssh other fleetbox snapshot export three-nodes - | fleetbox snapshot import - --name from-other
    """,
    name="import",
)
def import_(
    settings: Settings,
    file: Annotated[
        str, typer.Argument(metavar="FILE", show_default=False, help="The archive, or - for standard input.")
    ],
    name: Name = "",
    max_size: Annotated[
        str | None, typer.Option("--max-size", metavar="SIZE", help="Refuse what would store more. [default: no limit]")
    ] = None,
) -> Output:
    """Take in a snapshot that was exported, here or on a host of the same kind.

    The state of a machine's devices is to be trusted like a program: import only what comes from somebody whose
    programs you would run. A damaged or hostile archive is refused, and nothing of it stays.
    """
    limit = parse_size(max_size, "size") if max_size else 0
    with progress(settings) as on_event:
        found = fleetbox.snapshots.import_(file, name=name, max_size_bytes=limit, on_event=on_event)
    return _output(found, "imported")


_SELF = "fleetbox_cli.verbs.snapshot:"
snapshot = LazyGroup(
    "snapshot",
    "Save members and whole clusters, and carry them elsewhere.",
    {
        "save": Entry(_SELF + "save", "Save a member, or a whole cluster at one instant."),
        "ls": Entry(_SELF + "ls", "List the snapshots that are here."),
        "inspect": Entry(_SELF + "inspect", "Show a snapshot in detail."),
        "rm": Entry(_SELF + "rm", "Remove snapshots."),
        "export": Entry(_SELF + "export", "Write a snapshot as a tar."),
        "import": Entry(_SELF + "import_", "Take in a snapshot that was exported."),
    },
)
