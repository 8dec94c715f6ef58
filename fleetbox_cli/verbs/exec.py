"""`fleetbox exec`."""

from __future__ import annotations

from typing import Annotated

import typer

from fleetbox.cluster import Cluster
from fleetbox.errors import MachineError, UsageError
from fleetbox.records import MemberState
from fleetbox.refs import resolve
from fleetbox_cli.login import command_words
from fleetbox_cli.options import ClusterName
from fleetbox_cli.parallel import Outcome, collect, show
from fleetbox_cli.render import Output
from fleetbox_cli.settings import Settings, note
from fleetbox_cli.verb import verb


@verb(
    """
    fleetbox exec mycluster uname -a
    fleetbox exec mycluster 'sudo apt-get update && sudo apt-get install -y curl'
    fleetbox exec --fail-fast mycluster make test
    fleetbox exec --json mycluster hostname    # output and exit code of each member
    """,
    name="exec",
    passthrough=True,
)
def exec_(
    settings: Settings,
    cluster: ClusterName,
    command: Annotated[list[str], typer.Argument(metavar="COMMAND...", show_default=False, help="What to run.")],
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="End the others as soon as one fails.")] = False,
) -> Output:
    """Run a command on all running members of a cluster at once.

    Each line of output comes as it is printed and carries the member's name; a summary follows on standard error. The
    exit code is the highest of all members' codes. Everything after CLUSTER belongs to the command.
    """
    words = command_words(command)
    if not words:
        raise UsageError("no command is given", hint=f"for example: fleetbox exec {cluster} uname -a")
    found = resolve(cluster, cluster=settings.scope)
    members = found.members if isinstance(found, Cluster) else [found]
    running = [m for m in members if m.state is MemberState.RUNNING]
    skipped = [m.ref for m in members if m not in running]
    if not running:
        raise MachineError(
            f"no member of {cluster!r} is running", hint=f"`fleetbox start {cluster}` starts its members"
        )
    if skipped and not settings.json:
        note(f"note: not running, left out: {', '.join(skipped)}", settings)
    run = collect if settings.json else show
    jobs = {m.ref if settings.json else m.name: (m.ref, m.ssh_argv(words, tty=False)) for m in running}
    outcomes = run([(name, argv) for name, (_, argv) in jobs.items()], fail_fast=fail_fast)
    ended = {outcome.ref for outcome in outcomes}
    stopped = [ref for name, (ref, _) in jobs.items() if name not in ended]
    if not settings.json and len(jobs) > 1:
        note(_summary(outcomes, stopped), settings)
    worst = max(outcome.exit_code for outcome in outcomes)
    return Output("exec", {"members": outcomes, "skipped": skipped, "stopped": stopped}, exit_code=worst)


def _summary(outcomes: list[Outcome], stopped: list[str]) -> str:
    """`2 of 3 members succeeded; exit code 3 on node-2`."""
    failed: dict[int, list[str]] = {}
    for outcome in outcomes:
        if outcome.exit_code:
            failed.setdefault(outcome.exit_code, []).append(outcome.ref)
    count = len(outcomes) + len(stopped)
    parts = [f"{sum(o.exit_code == 0 for o in outcomes)} of {count} members succeeded"]
    parts += [f"exit code {code} on {', '.join(names)}" for code, names in sorted(failed.items())]
    if stopped:
        parts.append(f"ended before they were done: {', '.join(stopped)}")
    return "; ".join(parts)
