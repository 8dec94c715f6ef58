"""What `fleetbox version` says. No Typer here: it is a fast path."""

from __future__ import annotations

import platform

from fleetbox import __version__
from fleetbox_cli.render import Output


def version() -> Output:
    """The version, and for programs also the protocol's and Python's."""
    from fleetbox.wire import PROTOCOL

    data = {"version": __version__, "protocol": PROTOCOL, "python": platform.python_version()}
    return Output("version", data, [f"fleetbox {__version__}"])
