"""The one thread that makes everything of a cluster's host side.

Netlink sockets, sockets into the network and child processes are made in this thread and nowhere else: a private
cluster unshares the thread's network namespace, and whatever it makes is inside (design §7). It lives as long as the
holder, as a child's parent-death signal fires when the *thread* that spawned it ends (prctl(2)).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from fleetbox.backends.host.isolation import Isolation

T = TypeVar("T")


class HostThread:
    """Runs blocking functions one after another in one lasting thread."""

    def __init__(self, name: str = "host", isolation: Isolation | None = None) -> None:
        """`isolation` is what a private cluster's thread enters; None: it stays in the host's network."""
        self.isolation = isolation
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    async def run(self, function: Callable[..., T], *args: object, undo: Callable[[T], object] | None = None) -> T:
        """Call `function(*args)` in the thread and return its result.

        A thread cannot be interrupted: when the caller is cancelled while the function runs, `undo` gets its result (in
        the thread as well) before the cancellation is passed on. So nothing is made that nobody knows of.
        """
        running = self._executor.submit(lambda: function(*args))
        try:
            return await asyncio.shield(asyncio.wrap_future(running))
        except asyncio.CancelledError:
            if not running.cancel():

                def settle() -> None:
                    if running.exception() is None and undo is not None:
                        undo(running.result())

                # The thread takes one thing after another: it settles once the function has returned, whether or not
                # we are cancelled again while we wait for it.
                await asyncio.wait({asyncio.wrap_future(self._executor.submit(settle))})
            raise

    def call(self, function: Callable[..., T], *args: object) -> T:
        """The same for callers without an event loop; blocks."""
        return self._executor.submit(lambda: function(*args)).result()

    def close(self) -> None:
        """End the thread once its queue is done."""
        self._executor.shutdown(wait=True)
