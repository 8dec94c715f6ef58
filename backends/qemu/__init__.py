"""The `qemu` backend."""

from fleetbox.backends.base import Backend, BackendEnvironment


def create_backend(environment: BackendEnvironment) -> Backend:
    """Make the backend; nothing of the host is looked at yet."""
    from fleetbox.backends.qemu.backend import QemuBackend

    return QemuBackend(environment)
