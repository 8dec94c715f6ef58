"""How guest code is run: by KVM where it truly works, by emulation (tcg) where not, and why.

A /dev/kvm that opens proves nothing: in nested clouds a paravirtual KVM makes machines and then interprets a stock
guest's instructions one by one, or lacks what QEMU needs. So guest code is run for real, by `kvm_probe` in a child
process, and then QEMU is asked to make a machine. The verdict is kept in memory and, keyed by everything that it
hangs on, in the cache folder; a denied device is not kept, as permissions change while the host runs.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fleetbox import paths
from fleetbox.backends.base import timeout_scale
from fleetbox.backends.host import process
from fleetbox.backends.qemu import binary, kvm_probe
from fleetbox.errors import FleetboxError, HostError, UsageError
from fleetbox.identity import boot_id
from fleetbox.shapes import UNDECODABLE

DEVICE = Path("/dev/kvm")
OVERRIDE = "FLEETBOX_ACCELERATOR"


@dataclass(frozen=True)
class Accelerator:
    """`name` is `kvm` or `tcg`; `reason` says in words why.

    `kvm_works` is None when it was not looked at (an override).
    """

    name: str
    reason: str
    kvm_works: bool | None


class Verdict(msgspec.Struct, frozen=True):
    """What a probe found out; `key` names the host and kernel that it holds for."""

    key: str
    works: bool
    reason: str


def probe(environ: Mapping[str, str] = os.environ) -> Accelerator:
    """Decide between KVM and emulation. Blocks: about a second the first time on a host, then microseconds.

    Raises UsageError when `FLEETBOX_ACCELERATOR` is neither kvm nor tcg.
    """
    wanted = environ.get(OVERRIDE, "")
    if wanted not in ("", "auto", "kvm", "tcg"):
        raise UsageError(f"there is no accelerator {wanted!r}", why=f"{OVERRIDE} says so", hint="use kvm or tcg")
    if wanted in ("kvm", "tcg"):
        return Accelerator(wanted, f"{OVERRIDE} says so", None)
    found = binary.find(environ)
    verdict = _verdict(found, paths.kvm_verdict())
    return Accelerator("kvm" if verdict.works else "tcg", verdict.reason, verdict.works)


def _verdict(qemu: Path | None, cache: Path) -> Verdict:
    if not DEVICE.exists():
        return Verdict("", False, f"this host has no {DEVICE}: no virtualisation, or its kernel module is not loaded")
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return Verdict("", False, f"{DEVICE} is denied: add yourself to the group kvm and log in again")
    return _kept_verdict(_key(qemu), qemu, cache)


@functools.lru_cache(maxsize=4)
def _kept_verdict(key: str, qemu: Path | None, cache: Path) -> Verdict:
    try:
        kept = msgspec.json.decode(cache.read_bytes(), type=Verdict)
    except (OSError, *UNDECODABLE):
        kept = None  # a cache entry that cannot be read is none
    if kept is not None and kept.key == key:
        return kept
    works, reason = examine(qemu)
    verdict = Verdict(key, works, reason)
    _keep(verdict, cache)
    return verdict


def _keep(verdict: Verdict, cache: Path) -> None:
    temporary = cache.with_name(f"{cache.name}.{os.getpid()}")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(msgspec.json.encode(verdict))
        temporary.replace(cache)
    except OSError:
        with contextlib.suppress(OSError):  # without a cache the next process probes again
            temporary.unlink()


def _key(qemu: Path | None) -> str:
    """Everything that the verdict hangs on: this boot, the kernel, the processor, the device, QEMU's program."""
    program = f"{qemu} {qemu.stat().st_mtime_ns}" if qemu else ""
    parts = (boot_id(), platform.release(), platform.machine(), host_cpu(), str(DEVICE.stat().st_rdev), program)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@functools.cache
def host_cpu() -> str:
    """This host's processor in words; its features count, as microcode and hypervisors take some away."""
    model, features = platform.machine(), ""
    for line in Path("/proc/cpuinfo").read_text(errors="replace").split("\n\n")[0].splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key in ("model name", "CPU part"):
            model = value
        elif key in ("flags", "Features"):
            features = hashlib.sha256(value.encode()).hexdigest()[:8]
    return f"{model} ({features})"


def examine(qemu: Path | None) -> tuple[bool, str]:
    """Whether KVM works, and why or why not, in words; nothing is cached."""
    counted = ""
    if platform.machine() == "x86_64":
        works, counted = judge(_run_probe())
        if not works:
            return False, counted
    if qemu is None:
        return False, f"{counted or DEVICE.name + ' is there'}, but QEMU is not installed"
    try:
        binary.try_start(qemu, ("-machine", f"{binary.MACHINE},accel=kvm", "-cpu", "host"))
    except HostError as e:
        return False, f"{DEVICE} opens but QEMU cannot use it: {e.why}"
    return True, counted or f"{DEVICE} opens and QEMU accepts it (guest code is not tried on {platform.machine()})"


class Outcome(msgspec.Struct, frozen=True):
    """What `kvm_probe` printed."""

    instructions: int = 0
    seconds: float = 0.0
    error: str = ""
    denied: bool = False


def _run_probe() -> Outcome:
    # -I -S: neither the user's settings nor site-packages; it starts in 20 ms.
    argv = [sys.executable, "-I", "-S", kvm_probe.__file__]
    try:
        return msgspec.json.decode(process.run_blocking(argv, timeout_s=10 * timeout_scale()), type=Outcome)
    except FleetboxError as e:
        return Outcome(error=e.why or e.message)
    except UNDECODABLE:
        return Outcome(error="the probe was cut short")


def judge(outcome: Outcome) -> tuple[bool, str]:
    """The verdict on a run of the probe, in words."""
    if outcome.denied:
        return False, f"{DEVICE} is denied: add yourself to the group kvm and log in again"
    if outcome.error:
        return False, f"{DEVICE} opens but did not run guest code: {outcome.error}"
    rate = outcome.instructions / max(outcome.seconds, 1e-6) / 1e6
    if outcome.instructions < kvm_probe.INSTRUCTIONS:
        return False, (
            f"{DEVICE} opens but did not run guest code at speed: {rate:.1f} million instructions a second, "
            "as a paravirtual KVM that interprets does"
        )
    return True, f"{DEVICE} ran {outcome.instructions / 1e6:.0f} million guest instructions in {outcome.seconds:.3f} s"
