"""What runs machines here: the backend, KVM, and QEMU's program. Everything here blocks."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path

from fleetbox.backends import registry
from fleetbox.backends.host import programs
from fleetbox.errors import HostError
from fleetbox.host import Check

KVM = Path("/dev/kvm")
GROUP = "kvm"

# Below it templates and snapshots work, but what they were measured and tested with is this or newer.
TESTED_QEMU = (7, 2)


def check_backend() -> Check:
    """What a new cluster gets, and why. Raises UsageError when FLEETBOX_BACKEND names none."""
    choice = registry.choose()
    if choice.name != "qemu":
        return Check("backend", "ok", f"{choice.name} ({choice.reason})")
    from fleetbox.backends.qemu import accelerator

    return Check("backend", "ok", f"{choice.name} ({choice.reason}) with {accelerator.probe().name}")


def check_kvm() -> Check:
    """Whether guest code really runs fast on KVM."""
    # Imported here: what keeps the qemu backend from being imported is one failed check, not a failed doctor.
    from fleetbox.backends.qemu import accelerator

    verdict = accelerator.probe()
    if verdict.kvm_works is False:
        hint = "nothing, if slow boots are fine; else a host, or a nested cloud instance, whose KVM runs guests"
        return Check("kvm", "warn", f"not used: {verdict.reason}", hint)
    return Check("kvm", "ok", verdict.reason)


def check_kvm_access(device: Path = KVM) -> Check:
    """Whether this user may open /dev/kvm, and what group lets it."""
    if not device.exists():
        return Check("kvm access", "ok", f"there is no {device}")
    if os.access(device, os.R_OK | os.W_OK):
        return Check("kvm access", "ok", f"{device} can be opened")
    user = pwd.getpwuid(os.geteuid()).pw_name
    gid = device.stat().st_gid
    owner = grp.getgrgid(gid).gr_name
    if gid in os.getgrouplist(user, os.getegid()):
        hint = f"log out and in again, or run: newgrp {owner}"
        return Check("kvm access", "warn", f"{user} is in the group {owner}, but this session is not", hint)
    hint = f"run: sudo usermod -aG {owner} {user}; then log in again"
    return Check("kvm access", "warn", f"{user} may not open {device} (group {owner})", hint, fixable=owner == GROUP)


def check_pinned(name: str) -> Check:
    """Which program of a hypervisor with a pinned release is used, and its version."""
    from fleetbox.backends.vmm import pinned

    try:
        found = pinned.find(name)
    except HostError as e:
        return Check(name, "warn", f"{e.message}: {e.why}" if e.why else e.message, e.hint)
    passed_over = pinned.passed_over(name)
    beside = f"; not the one on PATH: {passed_over}" if passed_over else ""
    if found is None:
        release = pinned.pins()[name].version
        return Check(name, "ok", f"not here; version {release} is downloaded when it is first used{beside}")
    return Check(name, "ok", f"{found.path}, version {found.version} ({found.source}){beside}")


def check_qemu() -> Check:
    """QEMU's version, and whether it can confine itself."""
    from fleetbox.backends.qemu import binary

    name = programs.QEMU
    if binary.find() is None and not os.environ.get(binary.OVERRIDE):
        return Check(name, "fail", "not installed", programs.missing(name).hint, fixable=True)
    try:
        qemu = binary.require()
    except HostError as e:
        return Check(name, "fail", f"{e.message}: {e.why}" if e.why else e.message, e.hint)
    message = f"{qemu.path}, version {qemu.version_text}{'' if qemu.sandbox else ', without seccomp'}"
    if qemu.version[:2] < TESTED_QEMU:
        tested = ".".join(map(str, TESTED_QEMU))
        return Check(name, "warn", f"{message}: old", f"install {tested} or newer, or name one by {binary.OVERRIDE}")
    if not qemu.sandbox:
        return Check(name, "warn", message, "install a QEMU that is built with seccomp: it confines machines")
    return Check(name, "ok", message)
