"""`python -m fleetbox.holder CLUSTER`: the holder of one cluster. Users start it through the `fleetbox` command."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fleetbox.backends.host.isolation import Isolation


def main() -> int:
    """Parse, detach, serve."""
    parser = argparse.ArgumentParser(prog="python -m fleetbox.holder", description=__doc__)
    parser.add_argument("--detach", action="store_true", help="go on in the background, in a session of its own")
    parser.add_argument("--ready-fd", type=int, help="descriptor that gets one JSON line when it serves, or why not")
    parser.add_argument("--network", choices=("host", "private"), default="host", help="where its network is made")
    parser.add_argument("cluster")
    args = parser.parse_args()
    if args.detach and os.fork():  # before any import that could start a thread
        os._exit(0)
    isolation = _isolation(args.cluster) if args.network == "private" else None  # likewise
    from fleetbox.errors import FleetboxError, HostError
    from fleetbox.holder.daemon import Daemon
    from fleetbox.names import check_label

    logging.basicConfig(
        level=os.environ.get("FLEETBOX_LOG", "INFO").upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )

    def ready(said: dict[str, object]) -> None:
        fd, args.ready_fd = args.ready_fd, None
        if fd is not None:
            with contextlib.suppress(BrokenPipeError):  # the starter has gone: whoever comes next finds us
                os.write(fd, json.dumps(said).encode() + b"\n")
            os.close(fd)

    async def serve() -> None:
        daemon = Daemon(check_label(args.cluster, "cluster name"), isolation)
        await daemon.run(ready)
        if daemon.handed_over:
            logging.shutdown()
            os._exit(0)  # as a kill would: no task that watches a machine is cancelled, and undoes what it holds

    os.umask(0o077)
    try:
        asyncio.run(serve())
    except (FleetboxError, OSError) as error:
        e = error if isinstance(error, FleetboxError) else HostError("the holder cannot go on", why=str(error))
        logging.getLogger(__name__).error("%s", e)  # noqa: TRY400 - the error explains itself
        ready({"error": e.to_wire()})
        return e.exit_code
    return 0


def _isolation(cluster: str) -> Isolation:
    """The private network's place: where the cluster's live machines are, or a new one."""
    from fleetbox.backends.host.isolation import isolate
    from fleetbox.errors import FleetboxError
    from fleetbox.records import read_cluster

    try:
        members = read_cluster(cluster).members.values()
    except FleetboxError:  # there is none yet, or it cannot be read: the daemon says so
        return isolate(())
    return isolate(member.handle.process for member in members if member.handle)


if __name__ == "__main__":
    sys.exit(main())
