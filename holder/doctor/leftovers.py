"""What crashes have left on this host. Blocks."""

from __future__ import annotations

import asyncio
from collections import Counter

from fleetbox.holder.collection.prune import prune
from fleetbox.host import Check


def check() -> Check:
    """What `fleetbox prune` would remove."""
    found = Counter(item.kind for item in asyncio.run(prune(dry_run=True)).items if not item.kept)
    if not found:
        return Check("leftovers", "ok", "none")
    message = ", ".join(f"{count} {kind}" for kind, count in sorted(found.items()))
    return Check("leftovers", "warn", message, "run: fleetbox prune (with --dry-run it only says what)", fixable=True)
