"""`fleetbox version`."""

from __future__ import annotations

from fleetbox_cli.render import Output
from fleetbox_cli.settings import Settings
from fleetbox_cli.verb import verb
from fleetbox_cli.version import version as _version


@verb("""
    fleetbox version
    fleetbox version --json    # also the protocol's and Python's version
""")
def version(settings: Settings) -> Output:
    """Show the version."""
    return _version()
