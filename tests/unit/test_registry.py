"""Which backend, and why."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fleetbox.backends import registry
from fleetbox.backends.base import BackendEnvironment
from fleetbox.backends.fake import FakeBackend
from fleetbox.backends.host.thread import HostThread
from fleetbox.backends.qemu import accelerator
from fleetbox.backends.qemu.accelerator import Accelerator
from fleetbox.errors import ConflictError, UsageError


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLEETBOX_BACKEND", raising=False)


@pytest.mark.parametrize(
    ("flag", "environment", "recorded", "name", "reason"),
    [
        ("fake", "", "", "fake", "--backend"),
        ("fake", "qemu", "", "fake", "--backend"),
        ("", "fake", "", "fake", "FLEETBOX_BACKEND"),
        ("", "", "fake", "fake", "made with it"),
        ("", "qemu", "fake", "fake", "made with it"),
        ("fake", "qemu", "fake", "fake", "made with it"),
    ],
)
def test_backend_is_chosen_for_a_reason(
    monkeypatch: pytest.MonkeyPatch, flag: str, environment: str, recorded: str, name: str, reason: str
) -> None:
    monkeypatch.setenv("FLEETBOX_BACKEND", environment)
    choice = registry.choose(flag, recorded)
    assert choice.name == name
    assert reason in choice.reason


@pytest.mark.parametrize(
    ("found", "name", "otherwise"),
    [
        (Accelerator("kvm", "it ran guest code", True), "cloud-hypervisor", "qemu"),
        (Accelerator("kvm", "FLEETBOX_ACCELERATOR says so", None), "cloud-hypervisor", "qemu"),
        (Accelerator("tcg", "/dev/kvm is denied", False), "qemu", ""),
        (Accelerator("tcg", "FLEETBOX_ACCELERATOR says so", None), "qemu", ""),
    ],
)
def test_auto_goes_by_kvm_and_says_so(
    monkeypatch: pytest.MonkeyPatch, found: Accelerator, name: str, otherwise: str
) -> None:
    monkeypatch.setattr(accelerator, "probe", lambda: found)
    choice = registry.choose()
    assert (choice.name, choice.otherwise) == (name, otherwise)
    assert choice.reason.startswith("auto")
    assert found.reason in choice.reason
    assert registry.choose(name).otherwise == "", "what was asked for is taken or refused"


def test_unknown_backend_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="'vmware'") as error:
        registry.choose("vmware")
    assert "fake" in error.value.hint
    monkeypatch.setenv("FLEETBOX_BACKEND", "vmware")
    with pytest.raises(UsageError, match="'vmware'"):
        registry.choose()


def test_existing_cluster_keeps_its_backend() -> None:
    with pytest.raises(ConflictError, match="fake"):
        registry.choose("qemu", recorded="fake")


def test_backend_is_made_from_its_module() -> None:
    host = HostThread()
    try:
        assert isinstance(registry.create("fake", BackendEnvironment(host)), FakeBackend)
        with pytest.raises(UsageError):
            registry.create("vmware", BackendEnvironment(host))
    finally:
        host.close()


def test_looking_at_the_registry_imports_no_backend() -> None:
    program = "import sys; from fleetbox.backends import registry; registry.choose('fake'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "fleetbox.backends.registry" in loaded
    for name in registry.names():
        assert f"fleetbox.backends.{name}" not in loaded
