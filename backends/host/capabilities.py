"""What the calling thread may do, and passing single capabilities on to one program (capabilities(7)).

A program that an ordinary user starts has no capability, even inside a user namespace of the user's own. The few that
need one (nft, dnsmasq, pasta) get it as an *ambient* capability, raised around their start alone: machines, which the
same thread starts, get none. Credentials belong to threads, so nothing here disturbs another thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

from fleetbox.network import effective_capabilities

NET_BIND_SERVICE = 10
NET_ADMIN = 12
SYS_ADMIN = 21

_PR_CAP_AMBIENT, _RAISE, _LOWER = 47, 2, 3  # linux/prctl.h
_VERSION_3 = 0x20080522  # linux/capability.h


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def has(capability: int) -> bool:
    """Whether the calling thread may use it."""
    return bool(effective_capabilities() >> capability & 1)


@contextlib.contextmanager
def passed_on(*capabilities: int) -> Iterator[None]:
    """What the calling thread starts meanwhile has these, as far as the thread has them; root's programs do anyway."""
    if not capabilities or os.geteuid() == 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    raised = [capability for capability in capabilities if has(capability)]
    _make_inheritable(libc, raised)
    try:
        for capability in raised:
            _ambient(libc, _RAISE, capability)
        yield
    finally:
        for capability in raised:
            _ambient(libc, _LOWER, capability)


def _ambient(libc: ctypes.CDLL, order: int, capability: int) -> None:
    if libc.prctl(_PR_CAP_AMBIENT, order, capability, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"capability {capability} cannot be passed on")


def _make_inheritable(libc: ctypes.CDLL, capabilities: list[int]) -> None:
    header, sets = _Header(_VERSION_3, 0), (_Sets * 2)()
    if libc.capget(ctypes.byref(header), ctypes.byref(sets)) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    for capability in capabilities:
        sets[capability // 32].inheritable |= 1 << capability % 32
    if libc.capset(ctypes.byref(header), ctypes.byref(sets)) != 0:
        raise OSError(ctypes.get_errno(), "capset")
