"""Templates, for Python: list, remove, prune. They are a cache: what is removed is made again when it is wanted."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from fleetbox.host import PruneReport
from fleetbox.job import run_job
from fleetbox.template import Template

DEFAULT_UNUSED_S = 7 * 86400.0


def list_templates() -> list[Template]:
    """All templates, the newest last.

    >>> with fleetbox.up("web", memory_bytes=512 << 20):
    ...     (512 << 20) in [template.memory_bytes for template in fleetbox.templates.list_templates()]
    True
    """
    return msgspec.convert(run_job("template.list", {}), list[Template])


def remove(refs: Sequence[str]) -> list[Template]:
    """Remove templates by key or an unambiguous prefix of it (4 digits or more), and return them.

    Members that were cloned from one live on. Raises NotFoundError, AmbiguousError, PartialError.
    """
    return msgspec.convert(run_job("template.remove", {"refs": list(refs)}), list[Template])


def prune(*, unused_for_s: float = DEFAULT_UNUSED_S, dry_run: bool = False) -> PruneReport:
    """Remove templates that no member was cloned from for so many seconds, and what interrupted makers left."""
    request = {"unused_for_s": unused_for_s, "dry_run": dry_run}
    return msgspec.convert(run_job("template.prune", request), PruneReport)
