"""The `remote` backend: drives another process, the helper, which has the hypervisor (`fleetbox.holder.remote`).

Nothing in this package, and nothing that it imports, is a hypervisor's.
"""

from __future__ import annotations

from fleetbox.backends.base import BackendEnvironment
from fleetbox.backends.remote.backend import RemoteBackend

__all__ = ["RemoteBackend", "create_backend"]


def create_backend(environment: BackendEnvironment) -> RemoteBackend:
    """The backend of the helper that `FLEETBOX_REMOTE` names."""
    return RemoteBackend(environment)
