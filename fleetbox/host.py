"""This host: whether it can run machines, and clearing away what nobody owns."""

from __future__ import annotations

from typing import Literal

import msgspec

from fleetbox.job import run_job
from fleetbox.stream import OnEvent


class Check(msgspec.Struct, frozen=True):
    """One thing that was looked at. `fail` keeps machines from running, `warn` makes them slower or less able.

    `message` is what was found, `why` what fleetbox needs it for, `hint` what to do, empty when all is well. `fixable`
    says that `fleetbox doctor --fix` does it.
    """

    name: str
    status: Literal["ok", "warn", "fail"]
    message: str
    hint: str = ""
    why: str = ""
    fixable: bool = False


class DoctorReport(msgspec.Struct, frozen=True):
    """What `fleetbox doctor` found, and what a new cluster would get here.

    `backend` and `accelerator` are what `auto` takes; `network` is `host` or `private`, empty where none can be made.
    """

    checks: tuple[Check, ...]
    backend: str
    accelerator: str
    network: str


class PruneItem(msgspec.Struct, frozen=True):
    """Something that nobody owns any more; `removed` is False in a dry run, or when its removal failed.

    `kept` says that it was left alone on purpose: `reason` says why, and it is for the user to look at.
    """

    kind: str
    name: str
    reason: str
    removed: bool
    kept: bool = False


class PruneReport(msgspec.Struct, frozen=True):
    """What `fleetbox prune` found."""

    items: tuple[PruneItem, ...]


def doctor(*, fix: bool = False, on_event: OnEvent | None = None) -> DoctorReport:
    """Examine this host; with `fix`, repair first what can be repaired: missing programs (Debian and Ubuntu), kernel
    modules, owners and modes of folders, membership of the group kvm, what crashes have left.

    Raises HostError when programs are missing and cannot be installed here; what else stays is in the report.
    """
    return msgspec.convert(run_job("doctor", {"fix": fix}, on_event), DoctorReport)


def prune(
    *, dry_run: bool = False, images: bool = False, templates: bool = False, on_event: OnEvent | None = None
) -> PruneReport:
    """Remove what no live holder owns and none will take over; `images` and `templates`: those too that nobody uses.

    Disks, readable snapshots and readable records are never touched. What cannot be read protects all that might
    belong to it. Safe at any time, twice at once as well.

    >>> fleetbox.host.prune(dry_run=True).items
    ()
    """
    request = {"dry_run": dry_run, "images": images, "templates": templates}
    return msgspec.convert(run_job("prune", request, on_event), PruneReport)
