"""`python -m fleetbox.holder.doctor.private`: make a private network and end; what hinders it goes to standard error.

A process of its own, as user namespaces are for those with one thread, and as everything made here ends with it.
"""

from __future__ import annotations

import sys

from fleetbox.backends.host.isolation import isolate
from fleetbox.errors import FleetboxError


def main() -> int:
    """Try it; the exit code. On failure the last line is what to do, those before it are why."""
    isolation = isolate(())
    from fleetbox.backends.host.network import construction
    from fleetbox.holder.doctor.network import make_everything

    try:
        isolation.enter()
        construction.check_host()
        make_everything()
    except FleetboxError as e:
        sys.stderr.write(f"{e.message}: {e.why}\n{e.hint}" if e.why else f"{e.message}\n{e.hint}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
