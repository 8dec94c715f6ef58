"""Choosing between KVM and emulation: the verdict's words, its cache, and what overrides it."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from fleetbox import paths
from fleetbox.backends.qemu import accelerator, binary, kvm_probe
from fleetbox.backends.qemu.accelerator import Outcome, judge, probe
from fleetbox.errors import HostError, UsageError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLEETBOX_HOME", str(tmp_path))
    monkeypatch.delenv("FLEETBOX_ACCELERATOR", raising=False)
    return tmp_path


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Something that can be opened where /dev/kvm would be."""
    path = tmp_path / "kvm"
    path.touch()
    monkeypatch.setattr(accelerator, "DEVICE", path)
    return path


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch) -> list[Path | None]:
    """Counts examinations, all of which find working KVM."""
    calls: list[Path | None] = []

    def examine(qemu: Path | None) -> tuple[bool, str]:
        calls.append(qemu)
        return True, "it ran"

    monkeypatch.setattr(accelerator, "examine", examine)
    return calls


def test_fast_guest_code_is_working_kvm() -> None:
    works, reason = judge(Outcome(instructions=kvm_probe.INSTRUCTIONS, seconds=0.004))
    assert works
    assert "8 million guest instructions in 0.004 s" in reason


def test_interpreted_guest_code_is_not() -> None:
    works, reason = judge(Outcome(instructions=600_000, seconds=0.4))
    assert not works
    assert "did not run guest code at speed: 1.5 million instructions a second" in reason


def test_errors_and_denial_are_told_apart() -> None:
    assert judge(Outcome(error="Function not implemented")) == (
        False,
        "/dev/kvm opens but did not run guest code: Function not implemented",
    )
    works, reason = judge(Outcome(error="Permission denied", denied=True))
    assert not works
    assert "group kvm" in reason


def test_override_is_believed_unseen(examined: list[Path | None]) -> None:
    assert probe({"FLEETBOX_ACCELERATOR": "kvm"}).name == "kvm"
    assert probe({"FLEETBOX_ACCELERATOR": "tcg"}).kvm_works is None
    assert examined == []
    with pytest.raises(UsageError, match="hvf"):
        probe({"FLEETBOX_ACCELERATOR": "hvf"})


def test_no_device_is_emulation(device: Path) -> None:
    device.unlink()
    chosen = probe({})
    assert (chosen.name, chosen.kvm_works) == ("tcg", False)
    assert "no " in chosen.reason


def test_verdict_is_kept_across_processes(
    device: Path, examined: list[Path | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert probe({}).name == "kvm"
    assert probe({}).name == "kvm"
    assert len(examined) == 1
    accelerator._kept_verdict.cache_clear()  # as in another process
    assert probe({}).reason == "it ran"
    assert len(examined) == 1
    accelerator._kept_verdict.cache_clear()
    monkeypatch.setattr(platform, "release", lambda: "6.99-other")
    probe({})
    assert len(examined) == 2  # another kernel: another verdict
    accelerator._kept_verdict.cache_clear()
    paths.kvm_verdict().write_text("{")
    probe({})
    assert len(examined) == 3  # an unreadable cache is none


def test_a_denied_device_is_asked_again(
    device: Path, examined: list[Path | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as denied:
        denied.setattr(os, "access", lambda *_: False)
        chosen = probe({})
        assert chosen.name == "tcg"
        assert "group kvm" in chosen.reason
    assert probe({}).name == "kvm"


def test_a_cache_that_cannot_be_written_costs_nothing_else(
    device: Path, examined: list[Path | None], home: Path
) -> None:
    (home / "cache").write_text("a file in the folder's place")
    assert probe({}).name == "kvm"


def test_probe_runs_guest_code_for_real_or_says_why_not(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = accelerator._run_probe()
    assert outcome.error or outcome.instructions >= kvm_probe.CHUNK
    if platform.machine() == "x86_64":
        works, reason = judge(outcome)
        assert works == (outcome.instructions >= kvm_probe.INSTRUCTIONS), reason


def test_probe_that_dies_is_a_verdict(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "dies.py"
    script.write_text("import os; os.abort()")
    monkeypatch.setattr(kvm_probe, "__file__", str(script))
    works, reason = judge(accelerator._run_probe())
    assert not works
    assert "did not run guest code: exit code -6" in reason
    script.write_text("print('half')")
    assert "cut short" in judge(accelerator._run_probe())[1]


def test_qemu_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "_run_probe", lambda: Outcome(kvm_probe.INSTRUCTIONS, 0.004))

    def refuse(*_: object) -> None:
        raise HostError("it does not start", why="failed to set MSR 0x10a")

    monkeypatch.setattr(binary, "try_start", refuse)
    works, reason = accelerator.examine(Path("/usr/bin/qemu"))
    assert not works
    assert "QEMU cannot use it: failed to set MSR 0x10a" in reason
    monkeypatch.setattr(binary, "try_start", lambda *_: (7, 2, 0))
    assert accelerator.examine(Path("/usr/bin/qemu"))[0]
    assert not accelerator.examine(None)[0]
