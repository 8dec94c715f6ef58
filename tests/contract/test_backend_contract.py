"""What a backend says of itself is true."""

from __future__ import annotations

from fleetbox.backends import registry
from fleetbox.backends.base import Adopts
from fleetbox.errors import FleetboxError

from .conftest import Bench


def test_description_is_consistent(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            backend = holder.backend
            able = backend.capabilities()
            assert backend.name == bench.backend_name in registry.names()
            assert backend.accelerator in ("kvm", "tcg", "")
            assert able.emulated == (backend.accelerator == "tcg")
            assert set(able.disk_formats) <= {"raw", "qcow2"}
            assert able.disk_formats
            assert able.direct_boot or able.firmware_boot
            assert able.adoption == isinstance(backend, Adopts)
            assert able.max_cpus is None or able.max_cpus >= 1
            assert not (backend.nested_virt_supported() and able.emulated)
            assert backend.supports_clustering() is True
            assert all(isinstance(note, str) and note for note in backend.notes)

    bench.run(scenario)


def test_check_passes_where_the_suite_runs(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            try:
                await holder.backend.check()
            except FleetboxError as e:
                raise AssertionError(f"{e}; {e.hint}") from e

    bench.run(scenario)
