"""The `cloud-hypervisor` backend."""

from fleetbox.backends.base import Backend, BackendEnvironment


def create_backend(environment: BackendEnvironment) -> Backend:
    """Make the backend; nothing of the host is looked at yet."""
    from fleetbox.backends.cloud_hypervisor.backend import CloudHypervisorBackend

    return CloudHypervisorBackend(environment)
