"""Operations of the host rather than of a cluster: a short-lived holder process does them.

`fleetbox.holder.job` reads one JSON request `{"operation", "request"}` from standard input and writes the same stream
of events to standard output as a cluster's holder would (`fleetbox.wire`). SIGINT cancels it, and so does the end of
its standard input: a job never outlives its caller.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from typing import Any

import msgspec

from fleetbox.faultpoint import reach
from fleetbox.stream import OnEvent, follow


def run_job(operation: str, request: dict[str, Any], on_event: OnEvent | None = None, fds: tuple[int, ...] = ()) -> Any:
    """Run one host operation to its end and return its JSON result; it inherits `fds` under their numbers.

    Raises its error, or OperationInterrupted.
    """
    reach("client.job")
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "fleetbox.holder.job"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=fds,
        start_new_session=True,  # Ctrl-C on the terminal comes to us alone; `follow` passes it on once
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        reach("client.job.started")
        child.stdin.write(msgspec.json.encode({"operation": operation, "request": request}) + b"\n")
        child.stdin.flush()
        return follow(child.stdout, on_event, lambda: child.send_signal(signal.SIGINT))
    finally:
        with contextlib.suppress(OSError):
            child.stdin.close()
        child.stdout.close()
        child.wait()
