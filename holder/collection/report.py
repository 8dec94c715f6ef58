"""What a prune does, written down as it does it: one failure is named and stops nothing else."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from fleetbox.errors import FleetboxError
from fleetbox.host import PruneItem, PruneReport

log = logging.getLogger(__name__)


class Pruning:
    """One prune; with `dry_run` it only says what it would remove."""

    def __init__(self, *, dry_run: bool) -> None:
        self.dry_run = dry_run
        self._items: list[PruneItem] = []

    async def remove(self, kind: str, name: str, reason: str, work: Callable[[], Awaitable[None]]) -> bool:
        """Remove something by `work`, and say so; whether it is gone now (never in a dry run)."""
        if self.dry_run:
            self._items.append(PruneItem(kind, name, reason, removed=False))
            return False
        try:
            await work()
        except (FleetboxError, OSError) as e:
            log.warning("%s %s stays: %s", kind, name, e)
            self._items.append(PruneItem(kind, name, f"{reason}, but it cannot be removed: {e}", removed=False))
            return False
        self._items.append(PruneItem(kind, name, reason, removed=True))
        return True

    async def remove_path(self, kind: str, path: Path, reason: str) -> bool:
        """Remove a file, or a folder with all that is in it."""

        async def work() -> None:
            await asyncio.to_thread(_delete, path)

        return await self.remove(kind, str(path), reason, work)

    def keep(self, kind: str, name: str, reason: str) -> None:
        """Say what is left alone although it looks as if nobody owned it, and why."""
        self._items.append(PruneItem(kind, name, reason, removed=False, kept=True))

    def failed(self, kind: str, name: str, reason: str) -> None:
        """Say what could not be looked at."""
        self._items.append(PruneItem(kind, name, reason, removed=False))

    def done(self, items: Iterable[PruneItem]) -> None:
        """Take over what a store has removed by itself, or would."""
        self._items += items

    def report(self) -> PruneReport:
        return PruneReport(tuple(self._items))


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
