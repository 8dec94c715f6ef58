"""`fleetbox doctor` and `prune`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import fleetbox
from fleetbox.errors import HostError
from fleetbox.host import PruneItem, PruneReport
from fleetbox_cli.progress import progress
from fleetbox_cli.render import Output, Table
from fleetbox_cli.settings import Settings, wants_color
from fleetbox_cli.verb import verb

_MARKS = {"ok": ("✓", "32"), "warn": ("!", "33"), "fail": ("✗", "1;31")}


@verb("""
    fleetbox doctor
    fleetbox doctor --fix    # installs missing host programs (Debian and Ubuntu, as root) and repairs what it can
""")
def doctor(
    settings: Settings, fix: Annotated[bool, typer.Option("--fix", help="Repair what can be repaired.")] = False
) -> Output:
    """Check whether this host can run machines, and say what a new cluster would get.

    The exit code is 6 when something is missing that machines need.
    """
    with progress(settings) as on_event:
        report = fleetbox.host.doctor(fix=fix, on_event=on_event)
    color = wants_color(sys.stdout)
    width = max((len(check.name) for check in report.checks), default=0)
    text: list[str | Table] = []
    for check in report.checks:
        mark, code = _MARKS[check.status]
        shown = f"\x1b[{code}m{mark}\x1b[0m" if color else mark
        text.append(f"{shown} {check.name.ljust(width)}  {check.message}")
        if check.status != "ok":
            text += [
                f"  {' ' * width}  {word}: {said}" for word, said in (("why", check.why), ("fix", check.hint)) if said
            ]
    if not fix and any(check.fixable for check in report.checks):
        text += ["", "`fleetbox doctor --fix` repairs some of this"]
    if report.backend:
        network = f", network {report.network}" if report.network else ", no network can be made"
        text += ["", f"a new cluster gets {report.backend} with {report.accelerator}{network}"]
    failed = any(check.status == "fail" for check in report.checks)
    return Output("doctor", report, text, HostError.exit_code if failed else 0)


@verb("""
    fleetbox prune --dry-run    # only says what it would remove
    fleetbox prune
    fleetbox prune --images --templates    # also what can be had again
""")
def prune(
    settings: Settings,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    images: Annotated[bool, typer.Option("--images", help="Also images that nothing stands on.")] = False,
    templates: Annotated[bool, typer.Option("--templates", help="Also templates, which are a cache.")] = False,
) -> Output:
    """Remove what nobody owns any more: processes, networks, sockets, half made members, files of interrupted commands.

    Never touched: disks of members, running or stopped; snapshots; machines that the next command takes over; anything
    of a live holder or of another installation. A record that cannot be read protects all that might belong to it.
    """
    with progress(settings) as on_event:
        report = fleetbox.host.prune(dry_run=dry_run, images=images, templates=templates, on_event=on_event)
    return prune_output(report, settings, dry_run=dry_run)


def prune_output(report: PruneReport, settings: Settings, *, dry_run: bool) -> Output:
    """What was removed, or would be, and what was kept on purpose."""
    rows = tuple((i.kind, i.name, i.reason, _outcome(i)) for i in report.items)
    text: list[str | Table] = [Table(("KIND", "NAME", "REASON", "REMOVED"), rows)] if rows else []
    if not rows and not settings.quiet:
        text = ["nothing to remove"]
    failed = not dry_run and any(not item.removed and not item.kept for item in report.items)
    return Output("prune", {"dry_run": dry_run, "items": report.items}, text, 1 if failed else 0)


def _outcome(item: PruneItem) -> str:
    return "kept" if item.kept else "yes" if item.removed else "no"
