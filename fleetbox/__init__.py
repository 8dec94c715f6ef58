"""fleetbox: clusters of real Linux virtual machines.

>>> import fleetbox
>>> with fleetbox.up("mycluster", members=3) as cluster:               # doctest: +GUEST
...     print(cluster.member("node-1").ssh("uname").stdout)
Linux
<BLANKLINE>

Names are imported when they are first used: `import fleetbox` itself costs nothing.
"""

from __future__ import annotations

from fleetbox._version import __version__

TYPE_CHECKING = False  # as `typing` has it: importing that would cost completion milliseconds
if TYPE_CHECKING:
    from fleetbox import holders, host, images, snapshots, templates, wait
    from fleetbox.cluster import Cluster, clusters, up
    from fleetbox.errors import FleetboxError
    from fleetbox.events import LoggedEvent
    from fleetbox.image import Image
    from fleetbox.member import Member, SSHResult
    from fleetbox.records import ClusterRecord, MemberRecord, MemberState
    from fleetbox.refs import resolve, resolve_many, resolve_member
    from fleetbox.snapshot import Snapshot
    from fleetbox.specs import Fixture, MemberSpec

__all__ = [
    "Cluster",
    "ClusterRecord",
    "Fixture",
    "FleetboxError",
    "Image",
    "LoggedEvent",
    "Member",
    "MemberRecord",
    "MemberSpec",
    "MemberState",
    "SSHResult",
    "Snapshot",
    "__version__",
    "clusters",
    "holders",
    "host",
    "images",
    "resolve",
    "resolve_many",
    "resolve_member",
    "snapshots",
    "templates",
    "up",
    "wait",
]

_HOME = {
    "Cluster": "cluster",
    "ClusterRecord": "records",
    "Fixture": "specs",
    "FleetboxError": "errors",
    "Image": "image",
    "LoggedEvent": "events",
    "Member": "member",
    "MemberRecord": "records",
    "MemberSpec": "specs",
    "MemberState": "records",
    "SSHResult": "member",
    "Snapshot": "snapshot",
    "clusters": "cluster",
    "resolve": "refs",
    "resolve_many": "refs",
    "resolve_member": "refs",
    "up": "cluster",
}


def __getattr__(name: str) -> object:
    import importlib

    if name in ("holders", "host", "images", "snapshots", "templates", "wait"):
        return importlib.import_module(f"fleetbox.{name}")
    if name in _HOME:
        value = getattr(importlib.import_module(f"fleetbox.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'fleetbox' has no attribute {name!r}")
