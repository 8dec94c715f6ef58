"""`python -m fleetbox.holder.remote`: the helper of the `remote` backend, in the foreground."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path

from fleetbox import paths
from fleetbox.errors import FleetboxError
from fleetbox.holder.remote.daemon import run


def main() -> int:
    """Parse and serve."""
    parser = argparse.ArgumentParser(prog="python -m fleetbox.holder.remote", description=__doc__)
    parser.add_argument("--folder", type=Path, help="all files of the helper (default: helper/ in the data folder)")
    parser.add_argument("--socket", type=Path, help="where it listens (default: helper.sock in the runtime folder)")
    parser.add_argument("--backend", default="", help="its hypervisor (default: what suits the host)")
    parser.add_argument("--ready-fd", type=int, help="descriptor that gets one line when it serves")
    args = parser.parse_args()
    logging.basicConfig(
        level=os.environ.get("FLEETBOX_LOG", "INFO").upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    os.umask(0o077)

    def ready() -> None:
        if args.ready_fd is not None:
            os.write(args.ready_fd, b"ready\n")
            os.close(args.ready_fd)

    folder = (args.folder or paths.data_dir() / "helper").absolute()
    socket = (args.socket or paths.helper_socket()).absolute()
    try:
        asyncio.run(run(folder, socket, args.backend, ready))
    except FleetboxError as e:
        lines = (f"fleetbox helper: {e.message}", e.why, e.hint)
        sys.stderr.write("".join(f"{line}\n" for line in lines if line))
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
