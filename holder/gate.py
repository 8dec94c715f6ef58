"""How many members boot at once, and how close together.

Booting takes whole cores, so no more boot at once than the host can serve. Emulated guests besides disturb each other's
timer calibration when they begin together (a guest then runs with a wrong clock, or panics), so each begins when the
one before has calibrated.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fleetbox.backends.base import VM, timeout_scale

CALIBRATION_LIMIT_S = 20.0


class BootGate:
    """One per holder; `emulated` is the backend's capability."""

    def __init__(self, *, emulated: bool, cores: int | None = None) -> None:
        cores = cores or os.cpu_count() or 1
        # An emulated boot waits for its own timers about a third of its time: half as many again keep the cores busy.
        self._slots = asyncio.Semaphore(cores + (cores + 1) // 2 if emulated else 4 * cores)
        self._turn = asyncio.Lock() if emulated else None

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Hold a place among those that boot, until the member is ready."""
        async with self._slots:
            yield

    @asynccontextmanager
    async def launching(self, vm: VM) -> AsyncIterator[None]:
        """The body starts the machine; under emulation one at a time, until it has calibrated its timers."""
        async with self._turn or contextlib.nullcontext():
            yield
            if self._turn is not None:
                await vm.booted_past_calibration(CALIBRATION_LIMIT_S * timeout_scale())
