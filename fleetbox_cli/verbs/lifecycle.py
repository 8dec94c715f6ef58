"""`fleetbox start`, `stop` and `destroy`: one action on several clusters or members."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from fleetbox.cluster import Cluster
from fleetbox.errors import UsageError
from fleetbox_cli import options
from fleetbox_cli.progress import OnEvent, progress
from fleetbox_cli.render import Output
from fleetbox_cli.settings import Settings
from fleetbox_cli.targets import act, describe, find
from fleetbox_cli.verb import verb

Action = Callable[[Cluster, tuple[str, ...], OnEvent], None]


def _apply(settings: Settings, refs: list[str], what: str, past: str, action: Action) -> Output:
    targets, failures = find(refs, settings)
    with progress(settings) as on_event:
        done = act(targets, failures, lambda cluster, names: action(cluster, names, on_event), what)
    text = [] if settings.quiet else [f"{past} {name}" for name in done]
    return Output(what, {past: done}, text)


@verb("""
    fleetbox start mycluster
    fleetbox start mycluster/node-1 mycluster/node-2
""")
def start(settings: Settings, refs: options.Refs, timeout: options.Timeout = 0.0) -> Output:
    """Start stopped clusters or members; disks and addresses are as before."""

    def action(cluster: Cluster, names: tuple[str, ...], on_event: OnEvent) -> None:
        cluster.start(names, timeout_s=timeout, on_event=on_event)

    return _apply(settings, refs, "start", "started", action)


@verb("""
    fleetbox stop mycluster
    fleetbox stop mycluster/node-1 --timeout 5
""")
def stop(settings: Settings, refs: options.Refs, timeout: options.Timeout = 0.0) -> Output:
    """Shut clusters or members down.

    The guest is asked to shut down; after the timeout the machine is ended. Disks and addresses are kept.
    """

    def action(cluster: Cluster, names: tuple[str, ...], on_event: OnEvent) -> None:
        cluster.stop(names, timeout_s=timeout, on_event=on_event)

    return _apply(settings, refs, "stop", "stopped", action)


@verb("""
    fleetbox destroy mycluster               # asks first
    fleetbox destroy --yes mycluster other
    fleetbox destroy mycluster/node-3
""")
def destroy(
    settings: Settings,
    refs: options.Refs,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> Output:
    """Delete clusters or members and their disks.

    Machines are ended at once, as their disks go. Without a terminal to ask on, --yes is needed.
    """
    if not yes:
        _confirm(settings, refs)

    def action(cluster: Cluster, names: tuple[str, ...], on_event: OnEvent) -> None:
        cluster.destroy(names, on_event=on_event)

    return _apply(settings, refs, "destroy", "destroyed", action)


def _confirm(settings: Settings, refs: list[str]) -> None:
    """Ask on the terminal what is about to be lost. Raises UsageError when nobody can be asked, Abort on a no."""
    targets, _ = find(refs, settings)
    if not targets:
        return  # nothing is lost; the errors follow
    if settings.json or not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(
            "destroy needs --yes here", why="there is no terminal to ask on", hint="add --yes when you are sure"
        )
    listed = "; ".join(f"{describe(t)}{'' if t[1] else f' ({len(t[0].members)} members)'}" for t in targets)
    if not typer.confirm(f"Delete {listed} with all disks?", err=True):
        raise typer.Exit(1)
