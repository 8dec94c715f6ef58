"""How a holder keeps its cluster's network to itself: decided before it has threads, entered by its host thread.

A holder of a private network moves into a user namespace of its own (root needs none), and its host thread alone into
a network namespace: bridge, taps, firewall, machines and their resolver are inside, everything else of the holder
stays in the host's network. After a crash the machines keep both namespaces alive, and the next holder joins them
through one of them, the user namespace first: in the other order the kernel refuses (setns(2)).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from fleetbox.backends.host import namespaces
from fleetbox.errors import HostError
from fleetbox.identity import ProcessIdentity, open_pidfd


@dataclass
class Isolation:
    """What `isolate` has prepared; `problem` is why it could not, and is raised where a network is made."""

    problem: HostError | None = None
    _pidfd: int = -1
    _inside: bool = field(default=False, init=False)

    def enter(self) -> None:
        """Bring the calling thread into the cluster's network namespace, a new one or the machines'; repeatable.

        Raises HostError.
        """
        if self.problem is not None:
            raise self.problem
        if self._inside:
            return
        try:
            if self._pidfd >= 0:
                namespaces.join_network(self._pidfd)
                os.close(self._pidfd)
            else:
                namespaces.new_network()
                # Interfaces that come later, such as the uplink, forward from their first moment on.
                Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        except OSError as e:
            raise HostError(
                "a private network cannot be made", why=e.strerror or str(e), hint="see `fleetbox doctor`"
            ) from e
        self._inside = True


def isolate(machines: Iterable[ProcessIdentity]) -> Isolation:
    """Prepare this process, which must have one thread, for the network that these machines are on, if any lives."""
    for machine in machines:
        pidfd = open_pidfd(machine)
        if pidfd is not None:
            return _join(pidfd)
    if os.geteuid() != 0:
        try:
            namespaces.new_user()
        except HostError as e:
            return Isolation(e)
    return Isolation()


def _join(pidfd: int) -> Isolation:
    if os.geteuid() != 0:
        try:
            namespaces.join_user(pidfd)
        except OSError as e:
            os.close(pidfd)
            why = f"the user namespace of its machines cannot be joined: {e.strerror}"
            return Isolation(HostError("the cluster's private network cannot be taken over", why=why))
    return Isolation(_pidfd=pidfd)
