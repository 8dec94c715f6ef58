"""The `fake` backend: a public test double that is instant, needs no root and no image, and fails on request.

Each machine is a real child process (a shell of about one megabyte) with a pidfile, a serial log and a guest that can
be told to power off, reboot or panic (`tell`) and remembers what else it is told (`recall`), so that everything above a
hypervisor can be tested anywhere: it outlives its holder and is adopted by the next, is paused, saved and restored with
its memory. Its network is bookkeeping only. Faults are scripted by `FLEETBOX_FAKE_FAULTS`, see
`fleetbox.backends.fake.faults`.
"""

from __future__ import annotations

from fleetbox.backends.base import BackendEnvironment
from fleetbox.backends.fake.backend import FakeBackend
from fleetbox.backends.fake.faults import Fault, Faults
from fleetbox.backends.fake.guest import recall, tell
from fleetbox.backends.fake.machine import FakeVM
from fleetbox.backends.fake.network import FakeNetwork

__all__ = ["FakeBackend", "FakeNetwork", "FakeVM", "Fault", "Faults", "create_backend", "recall", "tell"]


def create_backend(environment: BackendEnvironment) -> FakeBackend:
    """The backend with the faults of `FLEETBOX_FAKE_FAULTS`; raises UsageError for an unknown one."""
    return FakeBackend(environment.host, Faults(environment.settings.get("FLEETBOX_FAKE_FAULTS", "")))
