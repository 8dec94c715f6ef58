"""`fleetbox template`: the family of template verbs."""

from __future__ import annotations

import time
from typing import Annotated

import typer

import fleetbox
from fleetbox.sizes import format_size
from fleetbox_cli.render import Output, Table, age
from fleetbox_cli.settings import Settings
from fleetbox_cli.verb import Entry, LazyGroup, verb
from fleetbox_cli.verbs.host import prune_output
from fleetbox_cli.views import short_image, template_view

_DAY_S = 86400.0


@verb("""
    fleetbox template ls
""")
def ls(settings: Settings) -> Output:
    """List the templates that are here.

    They are a cache: one that is missing is made again by the next `up` that wants it.
    """
    found = fleetbox.templates.list_templates()
    now = time.time()
    rows = tuple(
        (
            t.key[:12],
            short_image(t.image),
            t.backend,
            t.accelerator,
            str(t.cpus),
            format_size(t.memory_bytes),
            format_size(t.stored_bytes),
            age(now - max(t.used_at, t.created_at)),
        )
        for t in found
    )
    columns = ("KEY", "IMAGE", "BACKEND", "ACCELERATOR", "CPUS", "MEMORY", "STORED", "USED")
    text: list[str | Table] = [Table(columns, rows)] if rows else []
    if not rows and not settings.quiet:
        text = ["no templates; `fleetbox up` makes one by itself"]
    return Output("templates", {"templates": [template_view(t) for t in found]}, text)


@verb("""
    fleetbox template rm 3f2a
""")
def rm(
    settings: Settings,
    templates: Annotated[
        list[str], typer.Argument(metavar="TEMPLATE...", show_default=False, help="Keys or beginnings of keys.")
    ],
) -> Output:
    """Remove templates. Members that were cloned from one live on."""
    removed = fleetbox.templates.remove(templates)
    text = [] if settings.quiet else [f"removed {t.key[:12]}" for t in removed]
    return Output("templates", {"templates": [template_view(t) for t in removed]}, text)


@verb("""
    fleetbox template prune
    fleetbox template prune --days 0    # all that are not in use at this moment
""")
def prune(
    settings: Settings,
    days: Annotated[
        float, typer.Option("--days", metavar="DAYS", min=0, help="Remove what was not used for so long.")
    ] = fleetbox.templates.DEFAULT_UNUSED_S / _DAY_S,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
) -> Output:
    """Remove templates that were not used for a while, and what interrupted makers left."""
    report = fleetbox.templates.prune(unused_for_s=days * _DAY_S, dry_run=dry_run)
    return prune_output(report, settings, dry_run=dry_run)


_SELF = "fleetbox_cli.verbs.template:"
template = LazyGroup(
    "template",
    "List and remove templates: the warm machines that new members are cloned from.",
    {
        "ls": Entry(_SELF + "ls", "List the templates that are here."),
        "rm": Entry(_SELF + "rm", "Remove templates."),
        "prune": Entry(_SELF + "prune", "Remove templates that were not used for a while."),
    },
)
