"""Options that several verbs share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from fleetbox.sizes import parse_size
from fleetbox.specs import parse_fixture

Ref = Annotated[str, typer.Argument(metavar="REF", show_default=False, help="A member, CLUSTER/MEMBER, or id.")]
Refs = Annotated[
    list[str],
    typer.Argument(metavar="REF...", show_default=False, help="Clusters or members."),
]
ClusterName = Annotated[str, typer.Argument(metavar="CLUSTER", show_default=False, help="The cluster's name.")]
Image = Annotated[
    str | None, typer.Option("--image", metavar="IMAGE", help="Alias, digest, name, URL or file. [default: debian-12]")
]
Cpus = Annotated[int | None, typer.Option("--cpus", metavar="N", help="Virtual cores of a member. [default: 2]")]
Memory = Annotated[str | None, typer.Option("--memory", metavar="SIZE", help="For example 512M. [default: 1G]")]
Disk = Annotated[
    str | None, typer.Option("--disk", metavar="SIZE", help="Grow the disk to this. [default: as the image]")
]
Fixtures = Annotated[
    list[str] | None,
    typer.Option("--fixture", metavar="HOST:GUEST", help="Show a host folder read-only in the guest. Repeatable."),
]
Boot = Annotated[
    Literal["auto", "direct", "firmware"] | None,
    typer.Option("--boot", metavar="auto|direct|firmware", help="How a member starts. [default: auto]"),
]
Kernel = Annotated[str | None, typer.Option("--kernel", metavar="FILE", help="Boot this kernel, not the image's.")]
Cold = Annotated[bool, typer.Option("--cold", help="Boot the new members instead of cloning a warm template.")]
NoControlLine = Annotated[
    bool, typer.Option("--no-control-line", help="Tell a clone who it is by SSH, not over its second serial port.")
]
Snapshot = Annotated[
    str, typer.Argument(metavar="SNAPSHOT", show_default=False, help="A snapshot's name, id or beginning of an id.")
]
Timeout = Annotated[
    float,
    typer.Option("--timeout", metavar="SECONDS", min=0, show_default=False, help="Give up after so long."),
]


def spec_keywords(
    image: str | None,
    cpus: int | None,
    memory: str | None,
    disk: str | None,
    fixture: list[str] | None,
    boot: str | None,
    kernel: str | None,
) -> dict[str, Any]:
    """The keywords of `fleetbox.up` and `Cluster.add` for what the user said. Raises UsageError."""
    return {
        "image": image,
        "cpus": cpus,
        "memory_bytes": parse_size(memory, "memory size") if memory else None,
        "disk_bytes": parse_size(disk, "disk size") if disk else None,
        "fixtures": [parse_fixture(f) for f in fixture] if fixture else None,
        "boot": boot,
        "kernel": kernel,
    }
