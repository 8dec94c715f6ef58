"""Firecracker: microVMs by its REST API, on KVM."""

from __future__ import annotations

from fleetbox.backends.base import BackendEnvironment
from fleetbox.backends.firecracker.backend import FirecrackerBackend


def create_backend(environment: BackendEnvironment) -> FirecrackerBackend:
    """See `fleetbox.backends.base.CreateBackend`."""
    return FirecrackerBackend(environment)
