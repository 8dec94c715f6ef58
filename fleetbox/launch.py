"""Finding a cluster's holder, or starting one.

A holder is found through what it wrote into its lock file (pid, start, boot, socket), never through a pidfile alone.
When none lives, one is started, detached, in a session of its own. Of several started at once, the one that takes the
cluster's lock wins; the others say so and end, and their clients go to the winner.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from fleetbox import paths, wire
from fleetbox.control import ControlSocket
from fleetbox.errors import FleetboxError, HolderError, HostError, ProtocolError, from_wire
from fleetbox.faultpoint import reach
from fleetbox.network import Network, choose_network
from fleetbox.records import live_holder
from fleetbox.specs import NetworkMode

START_LIMIT_S = 30.0


def find_holder(cluster: str) -> ControlSocket | None:
    """The socket of the cluster's live holder, None when no holder lives. Never starts one. Raises ProtocolError."""
    holder = live_holder(cluster)
    if holder is None:
        return None
    if holder.protocol != wire.PROTOCOL:
        raise ProtocolError(
            f"the holder of {cluster!r} is of another version",
            why=f"it is fleetbox {holder.version} (protocol {holder.protocol}), this one speaks {wire.PROTOCOL}",
            hint=f"`fleetbox holder restart {cluster}` replaces it; its machines run on",
        )
    return ControlSocket(Path(holder.socket))


def ensure_holder(cluster: str, network: NetworkMode = "auto") -> ControlSocket:
    """The socket of the cluster's holder, started when none lives; a new cluster gets that `network`.

    Raises HolderError when none can be started, HostError when its folders cannot be made, ConflictError when the
    cluster has another network, RecordError.
    """
    deadline = time.monotonic() + START_LIMIT_S
    while True:
        control = find_holder(cluster)
        if control is not None:
            with contextlib.suppress(HolderError):
                control.get("/v1/ping", wire.Ping, timeout_s=5.0)
                return control
        if _start(cluster, choose_network(cluster, network)):
            continue  # it is ready, and its record says where
        if time.monotonic() > deadline:
            raise HolderError(
                f"the holder of {cluster!r} does not answer",
                why="a process holds its lock, but its socket is silent",
                hint=f"see {paths.holder_log(cluster)}",
            )
        time.sleep(0.05)  # somebody else's holder is on its way up or down


def _start(cluster: str, network: Network) -> bool:
    """Start a holder: True when it serves, False when another one has the lock. Raises its error."""
    reach("client.start")
    try:
        paths.private_dir(paths.cluster_state_dir(cluster))
        log = os.open(paths.holder_log(cluster), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise HostError(
            f"the folder {paths.cluster_state_dir(cluster)} cannot be written",
            why=e.strerror or str(e),
            hint="free some space or correct its owner, or set FLEETBOX_HOME to another folder",
        ) from e
    ready, ready_child = os.pipe()
    with contextlib.ExitStack() as fds:
        fds.callback(os.close, ready)
        with contextlib.ExitStack() as childs:
            childs.callback(os.close, log)
            childs.callback(os.close, ready_child)
            # -P: a folder named fleetbox in the user's working folder must not be taken for this package.
            child = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "fleetbox.holder",
                    "--detach",
                    "--ready-fd",
                    str(ready_child),
                    "--network",
                    network,
                    "--",
                    cluster,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                pass_fds=(ready_child,),
                start_new_session=True,
            )
        child.wait()  # the detaching parent ends at once
        with open(ready, "rb", closefd=False) as pipe:
            answer = pipe.readline()
    if not answer:
        raise _did_not_start(cluster)
    reach("client.started")
    said = msgspec.json.decode(answer)
    if "error" in said:
        raise from_wire(said["error"])
    return bool(said.get("ready"))


def _did_not_start(cluster: str) -> FleetboxError:
    with contextlib.suppress(OSError):
        lines = paths.holder_log(cluster).read_text(errors="replace").splitlines()[-15:]
        return HolderError(f"the holder of {cluster!r} did not start", why=lines[-1] if lines else "", details=lines)
    return HolderError(f"the holder of {cluster!r} did not start", hint="see `fleetbox doctor`")
