"""The folders below which everything is, by the environment alone (XDG Base Directory Specification).

`fleetbox.paths` makes every path of them. Here stand plain strings and nothing is imported, as completion needs them
within milliseconds.
"""

from __future__ import annotations

import os

_XDG = {
    "data": ("XDG_DATA_HOME", "~/.local/share"),
    "state": ("XDG_STATE_HOME", "~/.local/state"),
    "cache": ("XDG_CACHE_HOME", "~/.cache"),
}


def root(kind: str) -> str:
    """The folder for `data`, `state`, `cache` or `run`.

    `FLEETBOX_HOME=DIR` puts all of them under DIR. A relative path in an XDG variable is ignored, as its specification
    says.
    """
    if home := os.environ.get("FLEETBOX_HOME"):
        return f"{os.path.abspath(home)}/{kind}"
    if kind == "run":
        return _runtime_root()
    variable, default = _XDG[kind]
    base = os.environ.get(variable, "")
    return f"{base if os.path.isabs(base) else os.path.expanduser(default)}/fleetbox"


def _runtime_root() -> str:
    # A socket needs one predictable private place, also where no session has made one.
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base and os.path.isdir(base):
        return f"{base}/fleetbox"
    if os.geteuid() == 0:
        return "/run/fleetbox/0"
    return f"/tmp/fleetbox-{os.geteuid()}"  # noqa: S108 - private_dir() checks owner and mode
