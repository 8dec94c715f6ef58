"""What fleetbox asks of a host, in the order of the report: a name, why it matters, and how it is looked at.

What a finding's hint says is what a user types; `holder.doctor.repairs` does the ones that are `fixable`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from fleetbox.backends.host import programs
from fleetbox.backends.host.programs import Program
from fleetbox.holder.doctor import firewall, hypervisor, leftovers, machine, network
from fleetbox.host import Check


@dataclass(frozen=True)
class Requirement:
    """`find` blocks, in a thread of its own; it may raise FleetboxError, which is then the finding."""

    name: str
    why: str
    find: Callable[[], Check]


def requirements() -> list[Requirement]:
    """Every requirement."""
    return [
        Requirement("backend", "it runs the machines", hypervisor.check_backend),
        Requirement("kvm", "without it machines are emulated, and boot many times slower", hypervisor.check_kvm),
        Requirement("kvm access", "only who may open /dev/kvm can use it", hypervisor.check_kvm_access),
        Requirement(
            "cloud-hypervisor",
            "it runs the machines where KVM works",
            partial(hypervisor.check_pinned, "cloud-hypervisor"),
        ),
        Requirement(
            "firecracker",
            "it runs the machines where --backend asks for it",
            partial(hypervisor.check_pinned, "firecracker"),
        ),
        *(Requirement(p.name, f"it {p.purpose}", partial(check_program, p)) for p in programs.PROGRAMS),
        Requirement("network", "each cluster has a bridge, taps and rules of its own", network.check),
        Requirement("private networks", "without root clusters have no other", network.check_private),
        Requirement("subnets", "a cluster's addresses must clash with no route of this host", network.check_subnets),
        Requirement("firewall", "a rule that drops forwarded packets cuts members off", firewall.check_forward),
        Requirement(
            "bridge netfilter", "it sends members' own traffic through the host's rules", firewall.check_bridge
        ),
        Requirement(
            "rp_filter", "strict, it drops packets that do not come the way that answers go", firewall.check_rp
        ),
        Requirement(
            "folders", "disks, records and sockets are kept there, for their owner alone", machine.check_folders
        ),
        Requirement("disk space", "an image takes about 1 GiB, a member what it writes", machine.check_disk_space),
        Requirement("memory", "a member's memory is taken from the host's", machine.check_memory),
        Requirement("cores", "members share them", machine.check_cores),
        Requirement("clock", "guests are given it; TLS and package archives refuse a wrong one", machine.check_clock),
        Requirement("leftovers", "what a crash has left takes memory, addresses and space", leftovers.check),
    ]


def check_program(program: Program) -> Check:
    """Whether a program is installed, and for QEMU whether it works."""
    if program.name == programs.QEMU:
        return hypervisor.check_qemu()
    found = programs.find(program.name)
    if found is not None:
        return Check(program.name, "ok", str(found))
    hint = programs.missing(program.name).hint
    return Check(program.name, "warn" if program.optional else "fail", "not installed", hint, fixable=True)
